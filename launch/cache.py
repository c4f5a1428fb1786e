"""Keep compiled programs in a folder that many processes share and nobody else can poison.

root/<key>/kernel.cpp               the source: readable from before the compilation on, kept after
root/<key>/build/kernel.so          the product; `build` appears whole, by one rename,
root/<key>/build/manifest.json      with the hashes of both
root/<key>/lock                     flock that spares ranks the same work; nothing relies on it
root/.tmp-<owner>-<random>/         private work of one process
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from ark_dist.core.errors import CacheError
from ark_dist.core.source import Binary, Source
from ark_dist.launch.cache_files import (
    open_own,
    private_folder,
    stamp,
    sweep,
    unsafe,
    write_new,
)

LOG = logging.getLogger("ark_dist.cache")
FORMAT = 1
FILES = {"c++": ("kernel.cpp", "kernel.so"), "cuda": ("kernel.cu", "kernel.cubin")}
TOOLS = ".tools"  # compilers keep their own caches there
MANIFEST = "manifest.json"
MANIFEST_LIMIT_BYTES = 1 << 20
NAME_LIMIT = 200  # characters of the user's program name that `ls` shows
PUBLISH_TRIES = 5
ABSENT = "is not there"
MALFORMED = (ValueError, KeyError, TypeError, RecursionError)  # what a hostile manifest raises
KEY = re.compile(r"[0-9a-f]{64}")
WAY_OUT = "set ARK_DIST_CACHE_DIR to a folder that only you can write to"

Build = Callable[[Path, Path, Path], None]  # final source file, file to make, scratch folder


@dataclass(frozen=True, slots=True)
class Job:
    """One program that is wanted, and how to build it.

    Attributes:
        key: sha256 over everything that goes in, 64 hexadecimal digits.
        source: the program; its name is shown by `ls` and is no part of any path.
        isa: instruction set or GPU architecture, for `ls`.
        build: makes the product; its errors pass through, and the source file stays.
        wait_s: limit for waiting on another process that builds the same.
        on_source: called with the source file before a build and on a hit; it must not raise.
    """

    key: str
    source: Source
    isa: str
    build: Build
    wait_s: float
    on_source: Callable[[Path], None] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One compiled program in the cache; `created` (seconds since 1970) only informs."""

    key: str
    name: str
    size_bytes: int
    created: float
    language: str
    isa: str


class CompileCache:
    """Compiled programs under one folder, found by the hash of everything that went in."""

    def __init__(self, root: Path | None) -> None:
        """Name the folder; None means the user's cache folder. Nothing is touched yet."""
        self.root = (default_root() if root is None else root).absolute()
        self._guard = threading.Lock()
        self._private: Path | None = None  # used instead of root once that has failed

    def get_or_build(self, job: Job) -> Binary:
        """Return the verified product of a job, building it where the cache lacks it.

        Raises:
            CacheError: not even a private temporary folder can be written.
        """
        folder = self._folder()
        if folder == self.root:
            try:
                return _get_or_build(folder, job)
            except OSError as error:
                folder = self._fall_back(f"can't be used ({error.strerror or error})")
        try:
            return _get_or_build(folder, job)
        except OSError as error:
            raise _unusable(folder, error) from error

    def ls(self) -> tuple[Entry, ...]:
        """List the complete entries, oldest first.

        Raises:
            CacheError: the folder can't be trusted.
        """
        entries = []
        for folder in self._entries():
            with contextlib.suppress(OSError, *MALFORMED):
                entries.append(Entry(**_manifest(folder)["entry"]))
        return tuple(sorted(entries, key=lambda entry: (entry.created, entry.key)))

    def clear(self) -> int:
        """Remove all entries but those being built now; return how many. Loaded ones stay valid.

        Raises:
            CacheError: the folder can't be trusted or changed.
        """
        entries = self._entries()
        removed = 0
        try:
            for entry in entries:
                with _locked(entry, 0.0) as is_free:
                    if is_free:
                        _discard(self.root, entry)
                        removed += 1
        except OSError as error:
            raise _unusable(self.root, error) from error
        if removed == len(entries):
            shutil.rmtree(self.root / TOOLS, ignore_errors=True)
        return removed

    def verify(self) -> tuple[str, ...]:
        """Check every entry against its manifest; return one line per problem."""
        try:
            entries = self._entries()
        except CacheError as error:
            return (str(error),)
        checked = [(entry.name, _problem(entry)) for entry in entries]
        return tuple(f"{key}: {what}" for key, what in checked if what not in (None, ABSENT))

    def _entries(self) -> list[Path]:
        try:
            if problem := unsafe(self.root):
                raise CacheError(f"cache folder {self.root} {problem}; {WAY_OUT}")
            return sorted(path for path in self.root.iterdir() if KEY.fullmatch(path.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unusable(self.root, error) from error

    def _folder(self) -> Path:
        if self._private is not None:
            return self._private
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            problem = unsafe(self.root)
        except OSError as error:
            problem = f"can't be used ({error.strerror or error})"
        return self._fall_back(problem) if problem else self.root

    def _fall_back(self, problem: str) -> Path:
        with self._guard:
            if self._private is None:
                try:
                    temp = Path(tempfile.gettempdir())
                    sweep(temp, "ark_dist-")
                    prefix = f"ark_dist-{stamp(os.getpid())}-"
                    self._private = Path(tempfile.mkdtemp(prefix=prefix, dir=temp))
                except OSError as error:
                    raise _unusable(self.root, error) from error
                text = "cache folder %s %s; this process keeps its kernels in %s; %s"
                LOG.warning(text, self.root, problem, self._private, WAY_OUT)
            return self._private


_OPEN_GUARD = threading.Lock()
_open = functools.cache(CompileCache)


def open_cache(root: Path | None) -> CompileCache:
    """Return this process's one cache for a folder, so that it warns once; None: the default."""
    with _OPEN_GUARD:
        return _open(default_root() if root is None else root.absolute())


def default_root() -> Path:
    """Return the user's cache folder for ark_dist."""
    return Path(platformdirs.user_cache_dir("ark_dist"))


def _get_or_build(root: Path, job: Job) -> Binary:
    source_name, product_name = FILES[job.source.language]
    entry = root / job.key
    found = Binary(entry / "build" / product_name, entry / source_name, job.key, is_cached=True)
    data = job.source.text.encode("utf-8", "backslashreplace")
    problem = _problem(entry)
    if problem not in (None, ABSENT):
        LOG.warning("cache entry %s is damaged: %s; compiling it again", entry, problem)
    if problem is not None:
        _write_source(root, found.source_path, data)
    if job.on_source is not None:
        job.on_source(found.source_path)
    if problem is None:
        return found
    with _locked(entry, job.wait_s):
        if _problem(entry) is None:  # built while this process waited
            return found
        _write_source(root, found.source_path, data)  # `clear` may have come between
        _build_entry(root, found, job, data)
    return dataclasses.replace(found, is_cached=False)


def _build_entry(root: Path, target: Binary, job: Job, data: bytes) -> None:
    """Build in a private folder, then publish the whole folder by one rename."""
    with private_folder(root) as work:
        made = work / "build"
        scratch = work / "scratch"
        made.mkdir(mode=0o700)
        scratch.mkdir(mode=0o700)
        product = made / target.path.name
        job.build(target.source_path, product, scratch)
        product.chmod(0o700)  # whatever the umask was
        files = {target.source_path.name: _facts(data), product.name: _facts(product.read_bytes())}
        size_bytes = sum(size_bytes for _, size_bytes in files.values())
        name, language = job.source.name[:NAME_LIMIT], job.source.language
        entry = Entry(job.key, name, size_bytes, time.time(), language, job.isa)
        manifest = {"format": FORMAT, "entry": dataclasses.asdict(entry), "files": files}
        write_new(made / MANIFEST, json.dumps(manifest, indent=1).encode("ascii"))
        _publish(root, made, target, data)


def _publish(root: Path, made: Path, target: Binary, data: bytes) -> None:
    entry = target.source_path.parent
    for _ in range(PUBLISH_TRIES):
        try:
            made.rename(entry / "build")
            return
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                if _problem(entry) is None:
                    return  # another process was first: its product serves, ours goes
                _discard(root, entry / "build")
            elif error.errno != errno.ENOENT:
                raise
        _write_source(root, target.source_path, data)  # `clear` may have taken the entry's folder
    raise OSError(errno.EBUSY, f"{entry} changed {PUBLISH_TRIES} times while it was published")


def _problem(entry: Path) -> str | None:
    """Say why an entry can't be used, or None."""
    if not os.path.lexists(entry / "build"):
        return ABSENT
    try:
        for folder in (entry, entry / "build"):
            if problem := unsafe(folder):
                return f"{folder.name} {problem}"
        manifest = _manifest(entry)
        if manifest["entry"]["key"] != entry.name or manifest["format"] != FORMAT:
            return "its manifest belongs to another entry"
        source_name, product_name = FILES[manifest["entry"]["language"]]
        for path in (entry / source_name, entry / "build" / product_name):
            sha256, size_bytes = manifest["files"][path.name]
            with open_own(path) as file:
                if (found_bytes := os.fstat(file.fileno()).st_size) != size_bytes:
                    return f"{path.name} has {found_bytes} bytes, not {size_bytes}"
                if _facts(file.read()) != (sha256, size_bytes):
                    return f"the sha256 of {path.name} differs from the manifest"
    except (OSError, *MALFORMED) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _manifest(entry: Path) -> dict[str, Any]:
    with open_own(entry / "build" / MANIFEST) as file:
        manifest: dict[str, Any] = json.loads(file.read(MANIFEST_LIMIT_BYTES))
        return manifest


def _facts(data: bytes) -> tuple[str, int]:
    return hashlib.sha256(data).hexdigest(), len(data)


def _write_source(root: Path, path: Path, data: bytes) -> None:
    """Put the source under its final name, whole; make the entry's folder where it is missing."""
    entry = path.parent
    if os.path.lexists(entry) and unsafe(entry):
        _discard(root, entry)
    entry.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(OSError), open_own(path) as file:
        if file.read() == data:
            return
    with private_folder(root) as work:
        write_new(work / path.name, data)
        (work / path.name).replace(path)


def _discard(root: Path, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError), private_folder(root) as work:
        path.rename(work / "discarded")


@contextlib.contextmanager
def _locked(entry: Path, wait_s: float) -> Iterator[bool]:
    """Hold an entry's lock if that can be had in time; yield False while another holds it."""
    lock = filelock.FileLock(entry / "lock", timeout=wait_s, mode=0o600)
    is_free = True
    try:
        if unsafe(entry) is None:
            lock.acquire()
    except filelock.Timeout:
        is_free = False
        if wait_s:
            LOG.warning("waited %g s for another process to build %s; going on", wait_s, entry)
    except (OSError, NotImplementedError):
        LOG.debug("no locks on %s; renames alone keep the cache right", entry)
    try:
        yield is_free
    finally:
        lock.release()


def _unusable(folder: Path, error: OSError) -> CacheError:
    return CacheError(f"cache folder {folder} can't be used: {error}; {WAY_OUT}")
