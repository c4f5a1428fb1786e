"""Let Hugging Face transformers write and read with a model, in a process of its own.

`python -m ark_dist.bench.transformers_peer FOLDER DTYPE THREADS` answers as `text_peer` says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from ark_dist.bench.text_peer import Floats, Prompts, answer_questions
from ark_dist.core.errors import ConfigError

TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Transformers:
    """The model.

    Raises:
        ConfigError: for weights of a dtype that it is not compared in.
        ImportError: without the packages torch and transformers.
    """

    def __init__(self, folder: str, dtype: str, threads: int) -> None:
        if dtype not in TORCH_DTYPES:
            raise ConfigError(f"it is compared in {', '.join(TORCH_DTYPES)}, not in {dtype}")
        import torch  # type: ignore[import-not-found,unused-ignore]  # optional: a peer
        import transformers  # type: ignore[import-not-found,unused-ignore]  # optional: a peer

        torch.set_num_threads(threads)
        kind = getattr(torch, TORCH_DTYPES[dtype])
        self.name = f"transformers {transformers.__version__}"
        self._torch = torch
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()

    def write(self, prompts: Prompts, count: int) -> None:
        """Generate greedily, whatever the tokens are."""
        ids = self._torch.tensor(prompts)
        with self._torch.inference_mode():
            self._model.generate(
                ids, attention_mask=self._torch.ones_like(ids), do_sample=False,
                max_new_tokens=count, min_new_tokens=count, pad_token_id=0,
            )  # fmt: skip

    def read(self, prompts: Prompts) -> None:
        """Compute the logits of the last tokens."""
        ids = self._torch.tensor(prompts)
        with self._torch.inference_mode():
            self._model(ids, attention_mask=self._torch.ones_like(ids), logits_to_keep=1)

    def logits(self, text: Sequence[int]) -> Floats:
        """Logits after each token."""
        with self._torch.inference_mode():
            found: Floats = self._model(self._torch.tensor([text])).logits[0].float().numpy()
        return found


if __name__ == "__main__":
    answer_questions(partial(Transformers, sys.argv[1], sys.argv[2], int(sys.argv[3])))
