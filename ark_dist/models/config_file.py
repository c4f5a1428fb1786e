"""Turn the JSON files of a model's folder into values that were checked one by one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from ark_dist.core.errors import CheckpointError, ModelConfigError
from ark_dist.json_file import read_json

FILE = "config.json"
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
MAX_BYTES = 1 << 20
MAX_SIZE = 1 << 30
# A model is built before its weights are read: a wrong count must not take all memory.
MAX_LAYERS = 1 << 10


@dataclass(frozen=True, slots=True)
class Keys:
    """Typed access to a file's keys; null is as good as missing.

    Attributes:
        table: what the file holds.
        source: what errors call it.
    """

    table: Mapping[str, object]
    source: str

    def error(self, what: str) -> ModelConfigError:
        """Return an error that names the file."""
        return ModelConfigError(f"{self.source}: {what}")

    def size(self, name: str, default: int | None = None, *, most: int = MAX_SIZE) -> int:
        """Return a number of things, 1 or more."""
        value = self.table.get(name)
        if value is None:
            value = default
        if value is None:
            raise self.error(f"{name} is missing; wanted a number")
        if not is_int(value) or not 0 < value <= most:
            raise self.error(f"{name} is {value!r:.80}, wanted a whole number from 1 to {most}")
        return value

    def layers(self) -> int:
        """Return how many layers there are."""
        return self.size("num_hidden_layers", most=MAX_LAYERS)

    def number(self, name: str, default: float) -> float:
        """Return a number above 0."""
        value = self.table.get(name)
        if value is None:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.error(f"{name} is {value!r:.80}, wanted a number")
        if not 0 < value <= sys.float_info.max:
            raise self.error(f"{name} is {value!r:.80}, wanted a number above 0")
        return float(value)

    def flag(self, name: str) -> bool:
        """Return true or false; what is missing is false."""
        value = self.table.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.error(f"{name} is {value!r:.80}, wanted true or false")
        return bool(value)

    def dtype(self) -> str:
        """Return the weights' dtype, by its name here; transformers 5 has another key for it."""
        found = self.table.get("dtype", self.table.get("torch_dtype")) or "float32"
        if not isinstance(found, str) or found not in DTYPES:
            raise self.error(f"torch_dtype is {found!r:.80}, wanted one of {', '.join(DTYPES)}")
        return DTYPES[found]

    def check_architecture(self, *wanted: str) -> None:
        """Refuse a model that is none of these."""
        found = self.table.get("architectures")
        names = found if isinstance(found, list) else [found]
        if not any(name in wanted for name in names):
            raise self.error(
                f"architectures is {found!r:.80}, wanted one of {', '.join(wanted)}; "
                "other models are not supported"
            )


def is_int(value: object) -> TypeGuard[int]:
    """Whether a value of a JSON file is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def keys_of(table: object, source: str) -> Keys:
    """Return the keys of what a file holds; raise ModelConfigError where that is no object."""
    if not isinstance(table, Mapping):
        raise ModelConfigError(f"{source}: holds a {type(table).__name__}, wanted an object")
    return Keys(table, source)


def read_config(folder: str | os.PathLike[str]) -> Keys:
    """Return what `config.json` of a folder holds.

    Raises:
        ModelConfigError: if it is missing or damaged.
    """
    path = Path(folder) / FILE
    with config_errors(path, f"a model's folder as Hugging Face has it, with {FILE}"):
        return Keys(read_json(path, max_bytes=MAX_BYTES), str(path))


@contextmanager
def config_errors(path: Path, wanted: str) -> Iterator[None]:
    """Make a ModelConfigError of what goes wrong while a file of a folder is read."""
    try:
        yield
    except OSError as error:
        raise ModelConfigError(
            f"{path}: can't be read ({error.strerror}); wanted {wanted} and safetensors files"
        ) from None
    except ModelConfigError:
        raise
    except CheckpointError as error:
        raise ModelConfigError(str(error)) from None
