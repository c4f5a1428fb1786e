"""Continue a text with a language model, on one rank or many.

`python examples/generate.py`, or `mpirun -n 2 python examples/generate.py`; `--model folder/` takes
any Hugging Face folder of the Llama family, and SmolLM2-135M-Instruct is fetched without it.
"""

import argparse
import sys

import ark_dist as ark
from ark_dist.demo_model import SMOLLM2, fetch_model

parser = argparse.ArgumentParser(description="Continue a text with a language model.")
parser.add_argument("prompt", nargs="?", default="Once upon a time")
parser.add_argument("--model", help="a Hugging Face folder of the Llama family")
parser.add_argument("--context", type=int, help="most tokens of prompt and text")
parser.add_argument("--max-new-tokens", type=int, default=64)
parser.add_argument("--temperature", type=float, default=0.0)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

is_first = ark.rank() == 0


def show(row: int, text: str) -> None:
    print(text, end="", flush=True)


# Every rank makes the model and asks for the same texts; the first one prints.
folder = options.model or fetch_model(SMOLLM2)
with ark.LanguageModel(folder, context=options.context) as model:
    if is_first:
        print(options.prompt, end="", flush=True)
    found = model.generate(
        options.prompt,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=options.seed,
        on_text=show if is_first else None,
    )[0]
    if is_first:
        print(
            f"\n{len(found.token_ids)} tokens, {model.timing.tokens_per_s:.1f} tokens/s; "
            f"ranks: {ark.world_size()}",
            file=sys.stderr,
        )
