"""Keep plans in a cache's folder: a program that was planned once starts without planning.

root/plans/<key>      one plan: MAGIC, the sha256 of the rest, the key, a head for `ls`, the entry
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from dataclasses import asdict
from pathlib import Path

from ark_dist.core.errors import ArkError, CacheError
from ark_dist.launch.cache import KEY, MALFORMED, NAME_LIMIT, WAY_OUT, Entry, default_root
from ark_dist.launch.cache_files import open_own, private_folder, unsafe, write_new
from ark_dist.launch.plan_entry import PlanEntry, entry_from_bytes, entry_to_bytes

LOG = logging.getLogger("ark_dist.cache")
FOLDER = "plans"
MAGIC = b"ark_dist planned 1\n"
LANGUAGE = "plan"
DIGEST_BYTES = 32
LENGTH_BYTES = 4
# One plan: what has more is not kept. That of a small language model has 0.6 MB.
MOST_BYTES = 64 * 2**20
# All plans together; the longest unused go first.
LIMIT_BYTES = 256 * 2**20
# A start that finds its plan notes so down, but not more often than this.
TOUCH_S = 3600.0


class PlanCache:
    """Plans under one folder, found by the hash of everything that went in.

    Whatever is wrong with the folder or a file, a plan is just not found, or not kept.
    """

    def __init__(self, root: Path | None) -> None:
        """Name the cache's folder; None means the user's. Nothing is touched yet."""
        self._root = (default_root() if root is None else root).absolute()
        self._folder = self._root / FOLDER

    def load(self, key: str) -> PlanEntry | None:
        """Return what is kept under a key; None if there is nothing that can be used."""
        path = self._folder / key
        try:
            if self._problem() is not None:
                return None
            with open_own(path) as file:
                data = file.read(MOST_BYTES + 1)
                age_s = time.time() - os.fstat(file.fileno()).st_mtime
            entry = entry_from_bytes(_opened(data, key)[1])
        except FileNotFoundError:
            return None
        except (OSError, ArkError, *MALFORMED) as error:
            LOG.warning("cached plan %s is damaged: %s; planning again", path, error)
            return None
        if age_s > TOUCH_S:
            with contextlib.suppress(OSError):
                os.utime(path)
        return entry

    def save(self, key: str, entry: PlanEntry) -> None:
        """Keep an entry, which appears whole, and let go of the longest unused ones."""
        try:
            data = entry_to_bytes(entry)
            name, target = entry.plan.name[:NAME_LIMIT], entry.plan.target
            head = Entry(key, name, len(data), time.time(), LANGUAGE, target.arch)
            data = _closed(key, head, data)
            if len(data) > MOST_BYTES:
                return
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if unsafe(self._root) is not None:
                return
            self._folder.mkdir(mode=0o700, exist_ok=True)
            if unsafe(self._folder) is not None:
                return
            with private_folder(self._root) as work:
                write_new(work / "plan", data)
                (work / "plan").replace(self._folder / key)
            self._shrink()
        except (OSError, ValueError, OverflowError, ArkError) as error:
            LOG.debug("plan %s is not kept: %s", key, error)

    def ls(self) -> tuple[Entry, ...]:
        """List the plans, oldest first.

        Raises:
            CacheError: the folder can't be trusted.
        """
        entries = []
        for path in self._paths():
            with contextlib.suppress(OSError, *MALFORMED), open_own(path) as file:
                entries.append(_opened(file.read(MOST_BYTES + 1), path.name)[0])
        return tuple(sorted(entries, key=lambda entry: (entry.created, entry.key)))

    def clear(self) -> int:
        """Remove all plans and return how many.

        Raises:
            CacheError: the folder can't be trusted or changed.
        """
        paths = self._paths()
        try:
            for path in paths:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise CacheError(f"cache folder {self._folder} can't be used: {error}") from error
        with contextlib.suppress(OSError):  # it was not there, or another plan came
            self._folder.rmdir()
        return len(paths)

    def verify(self) -> tuple[str, ...]:
        """Check every plan against its sum; return one line per problem."""
        problems = []
        for path in self._paths():
            try:
                with open_own(path) as file:
                    _opened(file.read(MOST_BYTES + 1), path.name)
            except (OSError, *MALFORMED) as error:
                problems.append(f"{path.name}: {error}")
        return tuple(problems)

    def _problem(self) -> str | None:
        return unsafe(self._root) or unsafe(self._folder)

    def _paths(self) -> list[Path]:
        try:
            problem = self._problem()
            if problem is not None:
                raise CacheError(f"cache folder {self._folder} {problem}; {WAY_OUT}")
            return sorted(path for path in self._folder.iterdir() if KEY.fullmatch(path.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CacheError(f"cache folder {self._folder} can't be used: {error}") from error

    def _shrink(self) -> None:
        """Remove the longest unused plans until all together are within the limit."""
        found = []
        for path in self._paths():
            with contextlib.suppress(OSError):
                info = path.lstat()
                found.append((info.st_mtime, info.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= LIMIT_BYTES:
                break
            path.unlink(missing_ok=True)
            total -= size


def _closed(key: str, head: Entry, data: bytes) -> bytes:
    text = json.dumps(asdict(head)).encode("ascii")
    rest = b"".join([key.encode("ascii"), len(text).to_bytes(LENGTH_BYTES, "little"), text, data])
    return MAGIC + hashlib.sha256(rest).digest() + rest


def _opened(data: bytes, key: str) -> tuple[Entry, bytes]:
    """Take a file apart; ValueError if it is not whole, or another key's."""
    start = len(MAGIC) + DIGEST_BYTES
    rest = data[start:]
    if data[: len(MAGIC)] != MAGIC or hashlib.sha256(rest).digest() != data[len(MAGIC) : start]:
        raise ValueError(f"the sha256 of its {len(data)} bytes differs")
    if rest[: len(key)] != key.encode("ascii"):
        raise ValueError("it belongs to another key")
    at = len(key) + LENGTH_BYTES
    end = at + int.from_bytes(rest[len(key) : at], "little")
    return Entry(**json.loads(rest[at:end])), rest[end:]
