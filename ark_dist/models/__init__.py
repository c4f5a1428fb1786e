"""Models that are written with `ark_dist.Module` and load checkpoints of Hugging Face."""
