"""Turn a GGUF file into a folder as Hugging Face has it, whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ark_dist.checkpoint.atomic import replacing, sync_folder
from ark_dist.checkpoint.progress import shown_progress
from ark_dist.checkpoint.saver import MAX_SHARD_BYTES, save_checkpoint
from ark_dist.convert.bpe import (
    Vocabulary,
    build_tokenizer,
    generation_config,
    read_vocabulary,
    tokenizer_config,
)
from ark_dist.convert.gguf_file import Gguf, open_gguf
from ark_dist.convert.llama import LlamaSizes, Source, check_tensors, read_sizes, read_tensor
from ark_dist.convert.weights import BESIDE_INT8, TARGET_DTYPES, TORCH_DTYPES, Weights
from ark_dist.core.dtype import INT8
from ark_dist.core.errors import CheckpointError, ShardCorruptError
from ark_dist.models import quantization as quantization_config
from ark_dist.optional import require
from ark_dist.safetensors_file import Array


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion has made."""

    path: str
    dtype: str
    tensors: int
    size_bytes: int


def convert_gguf(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: str = "bf16",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    is_shown: bool = False,
) -> Converted:
    """Write a Llama in GGUF as a Hugging Face folder: configuration, weights and tokenizer.

    The folder is made under another name beside its place and renamed when it is complete. Its
    weights are dequantized and rounded to nearest in `dtype`: "bf16", "fp16" or "fp32". With "int8"
    matrices are, with a scale per row in fp32, and all else is in bf16.

    Args:
        source: the GGUF file.
        target: the folder to make; it must be absent or empty, its parent must be there.
        dtype: of all weights in the folder.
        max_shard_bytes: where to begin another file of weights.
        is_shown: whether to show on stderr how far it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: for another dtype.
        ConfigError: the packages gguf and tokenizers are not installed.
        CheckpointError: for a file that is damaged, not a Llama or not byte-level BPE, and for a
            folder that can't be written.
    """
    if dtype not in TARGET_DTYPES:
        raise ValueError(f"convert: dtype is {dtype!r}; it must be {', '.join(TARGET_DTYPES)}")
    require("tokenizers", "converting a tokenizer")
    place = _checked_place(Path(target))
    with open_gguf(source) as gguf:
        vocabulary = read_vocabulary(gguf)
        sizes = read_sizes(gguf, len(vocabulary.tokens))
        sources = check_tensors(gguf, sizes)
        texts = _config_texts(gguf.path, sizes, vocabulary, dtype)
        with _making(place) as folder:
            size_bytes = _write_weights(folder, gguf, sources, dtype, max_shard_bytes, is_shown)
            _write_texts(folder, texts)
    return Converted(str(place), dtype, len(sources), size_bytes)


def _config_texts(
    path: str, sizes: LlamaSizes, vocabulary: Vocabulary, dtype: str
) -> dict[str, str]:
    """Return the small files of the folder by name."""
    try:
        tokenizer = build_tokenizer(vocabulary)
    except ValueError as error:
        raise ShardCorruptError(
            f"{path}: found a vocabulary that no tokenizer can have: {error}; fetch it again"
        ) from error
    tables = {
        "tokenizer_config.json": tokenizer_config(vocabulary, sizes.max_position_embeddings),
        "generation_config.json": generation_config(vocabulary),
        "config.json": _model_config(sizes, vocabulary, dtype),
    }
    return {"tokenizer.json": tokenizer, **{name: _text(each) for name, each in tables.items()}}


def _write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        with replacing(folder / name, folder / f".{name}.tmp") as write:
            write(text.encode())


def _write_weights(
    folder: Path,
    gguf: Gguf,
    sources: Mapping[str, Source],
    dtype: str,
    max_shard_bytes: int,
    is_shown: bool,
) -> int:
    """Write index and weights; return their bytes."""
    shapes = {name: source.shape for name, source in sources.items()}
    weights = Weights(shapes, lambda name, wanted: read_tensor(gguf, sources[name], wanted), dtype)
    with shown_progress("converting", weights.size_bytes, is_shown) as advance:

        def gather(name: str) -> Array:
            array = weights.read(name)
            advance(array.nbytes)
            return array

        save_checkpoint(folder, weights.layouts, gather, max_shard_bytes=max_shard_bytes)
    return weights.size_bytes


def _model_config(sizes: LlamaSizes, vocabulary: Vocabulary, dtype: str) -> dict[str, object]:
    """Return what config.json holds."""
    is_int8 = dtype == INT8.name
    quantization = {quantization_config.KEY: quantization_config.INT8} if is_int8 else {}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "rope_scaling": None,
        "torch_dtype": TORCH_DTYPES[BESIDE_INT8 if is_int8 else dtype],
        **quantization,
        **asdict(sizes),
        **generation_config(vocabulary),
    }


def _text(table: Mapping[str, object]) -> str:
    return json.dumps(table, ensure_ascii=False, indent=2, sort_keys=True) + "\n"


@contextmanager
def _making(place: Path) -> Iterator[Path]:
    """Give a new folder beside `place`, which takes its place at the end unless there was an error.

    It lies in one with a lock, `.<name>.convert`: what a conversion that was killed has left is
    removed by the next one.
    """
    workplace = place.with_name(f".{place.name}.convert")
    with _named_errors(place), _locked(workplace):
        folder = workplace / "folder"
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        try:
            yield folder
            _checked_place(place)
            sync_folder(folder, place)
            folder.rename(place)  # replaces an empty folder, and nothing else
            sync_folder(place.parent, place)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)


def _checked_place(place: Path) -> Path:
    """Return where the folder goes, without dots; raise CheckpointError if it can't go there."""
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise CheckpointError(f"{place}: found a file or a symlink, wanted nothing to convert to")
    if place.is_dir() and any(place.iterdir()):
        raise CheckpointError(
            f"{place}: found a folder that is not empty; remove what is in it, or name another one"
        )
    place = place.resolve()
    if not place.parent.is_dir():
        raise CheckpointError(f"{place}: there is no folder {place.parent}; make it first")
    return place


@contextmanager
def _locked(workplace: Path) -> Iterator[None]:
    with suppress(FileExistsError):
        workplace.mkdir()
    fd = os.open(workplace, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise CheckpointError(f"{workplace}: another process converts to it now; wait") from None
    finally:
        os.close(fd)


@contextmanager
def _named_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{place}: can't be written: {error.strerror}") from error
