"""Turn model files of other programs into folders as Hugging Face has them."""
