"""What tests of a real model share: its folder, texts, and NumPy's logits for them."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import ark_dist as ark
from ark_dist.core.errors import CacheError
from ark_dist.demo_model import SMOLLM2, fetch_model
from ark_dist.models.llama_config import read_llama_config
from ark_dist.tokenizer import load_tokenizer
from tests.llama_reference import Reference

Logits = npt.NDArray[np.float32]

STEPS = 48
# Of different kinds, each with more tokens than any test takes.
TEXTS = (
    "The old lighthouse stood at the end of the pier, and nobody in the village could remember a "
    "night on which its lamp had not been lit. Anna climbed the stairs every evening at six, "
    "counted the ships that came home, and wrote their names in a book. When the storm came there "
    "were eleven names, and one line was left empty until the morning.",
    "<|im_start|>user\nHow do plants make sugar?<|im_end|>\n<|im_start|>assistant\nPlants make "
    "sugar through photosynthesis. In the green parts of their leaves, chlorophyll takes up light "
    "from the sun. With this energy the plant turns water from the soil and carbon dioxide from "
    "the air into glucose, and gives off oxygen.<|im_end|>\n<|im_start|>user\nThank you!",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    a, b = 0, 1\n    for _ in range(n - 1)"
    ":\n        a, b = b, a + b\n    return b\n\n\nfor i in range(10):\n    print(i, fibonacci(i))"
    "\n\n# 0 0\n# 1 1\n# 2 1\n# 3 2\n# 4 3\n",
    "The French Revolution began in 1789, when the Estates General met in Versailles. On 14 July "
    "a crowd took the Bastille in Paris. In August the National Assembly abolished the privileges "
    "of the nobility and adopted the Declaration of the Rights of Man and of the Citizen. The "
    "king was executed in January 1793.",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, "
    "26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40",
    "Le petit village se trouve au bord de la mer. Chaque matin, les bateaux partent avant le "
    "lever du soleil et reviennent vers midi. Les enfants attendent sur le quai, car il y a "
    "toujours quelque chose à voir, à compter ou à raconter.",
    '{"name": "Ada Lovelace", "born": 1815, "works": [{"title": "Notes on the Analytical Engine", '
    '"year": 1843, "pages": 65}], "languages": ["English", "French"], "is_known_for": "the first '
    'published algorithm meant for a machine", "children": 3}',
    "To make bread you need flour, water, salt and yeast. Mix them in a large bowl and knead the "
    "dough for ten minutes. Cover it with a cloth and let it rise in a warm place for an hour. "
    "Then shape it, let it rest for another half hour, and bake it in a hot oven until the crust "
    "is brown.",
)  # fmt: skip


def folder(dtype: str) -> Path:
    """SmolLM2-135M-Instruct; the test is skipped where it can't be fetched."""
    try:
        return fetch_model(SMOLLM2, dtype=dtype)
    except CacheError as error:
        pytest.skip(f"SmolLM2 is not in the cache and can't be fetched: {error}")


@cache
def reference(dtype: str) -> Reference:
    """The weights of `dtype`, in a model that computes in float32."""
    weights = dict(ark.load(folder(dtype)))
    for name in [name for name in weights if f"{name}_scale" in weights]:
        scale = weights.pop(f"{name}_scale").astype(np.float32)
        weights[name] = weights[name].astype(np.float32) * scale
    return Reference(read_llama_config(folder(dtype)), weights, np.float32)


@cache
def rows() -> list[list[int]]:
    """Tokens of the texts; the i-th has a prompt of 1 + 2 i tokens, then `STEPS` - 1 more."""
    tokenizer = load_tokenizer(folder("bf16"))
    found = [tokenizer.encode(text) for text in TEXTS]
    return [tokens[: 2 * i + STEPS] for i, tokens in enumerate(found)]


@cache
def wanted(dtype: str) -> Logits:
    """NumPy's logits (STEPS, texts, vocabulary) at the positions that `rows` asks for."""
    model = reference(dtype)
    return np.stack([model.logits(tokens)[-STEPS:] for tokens in rows()], axis=1)


def a_prompt(length: int) -> list[int]:
    """Tokens of one text after another."""
    tokenizer = load_tokenizer(folder("bf16"))
    whole = [token for text in TEXTS for token in tokenizer.encode(text)]
    assert len(whole) * 2 >= length
    return (whole * 2)[:length]


def write_rows(path: Path) -> Path:
    """Write the rows for a program of ranks."""
    path.write_text(json.dumps(rows()))
    return path
