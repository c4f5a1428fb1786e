"""Let Hugging Face transformers write and read with the same model, in a process of its own.

`python -m ark_dist.bench.transformers_peer FOLDER DTYPE THREADS` answers JSON objects: with
`tokens` and `count` it writes so many tokens after each row, with `tokens` alone it reads them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def _load(folder: str, dtype: str, threads: int) -> tuple[str, Callable[..., float]] | None:
    try:
        import torch  # type: ignore[import-not-found,unused-ignore]  # optional: a peer
        import transformers  # type: ignore[import-not-found,unused-ignore]  # optional: a peer
    except ImportError:
        return None
    torch.set_num_threads(threads)
    kind = getattr(torch, TORCH_DTYPES[dtype])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=kind).eval()

    def seconds(tokens: list[list[int]], count: int = 0) -> float:
        ids = torch.tensor(tokens)
        mask = torch.ones_like(ids)
        with torch.inference_mode():
            began = time.perf_counter()
            if count:
                model.generate(
                    ids, attention_mask=mask, do_sample=False, max_new_tokens=count,
                    min_new_tokens=count, pad_token_id=0,
                )  # fmt: skip
            else:
                model(ids, attention_mask=mask, logits_to_keep=1)
            return time.perf_counter() - began

    return f"transformers {transformers.__version__}", seconds


def main(folder: str, dtype: str, threads: int) -> None:
    """Answer questions until there are no more."""
    loaded = _load(folder, dtype, threads)
    print(json.dumps({"name": None if loaded is None else loaded[0]}), flush=True)
    for line in sys.stdin if loaded is not None else ():
        assert loaded is not None
        print(json.dumps({"seconds": loaded[1](**json.loads(line))}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
