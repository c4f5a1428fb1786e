"""Write a checkpoint from several ranks: all of it, or the old one stays as it was."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from ark_dist.checkpoint.agree import Agree, RefusedError, alone, share, together_or_refuse
from ark_dist.checkpoint.atomic import PendingFile, find_mode, sync_folder
from ark_dist.checkpoint.folder import read_index
from ark_dist.checkpoint.index import INDEX_NAME, SINGLE_NAME, Index, build_index
from ark_dist.checkpoint.shard_file import ShardFile
from ark_dist.checkpoint.shards import Layout, ShardPlan, fingerprint, plan_shards
from ark_dist.core.errors import CheckpointError
from ark_dist.launch.fault import fault_point
from ark_dist.safetensors_file import Array

# What other tools cut at, too.
MAX_SHARD_BYTES = 5_000_000_000
Gather: TypeAlias = Callable[[str], "Array | None"]

_NOTHING: Mapping[str, str] = MappingProxyType({})
# What a save that was killed leaves.
_DEBRIS = re.compile(
    r"\.ark_dist-[0-9a-f]{8}-\w+\.tmp|model-ark[0-9a-f]{8}-\d{5,}-of-\d{5,}\.safetensors"
)


def save_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Layout],
    gather: Gather,
    *,
    tied: Mapping[str, str] = _NOTHING,
    metadata: Mapping[str, str] = _NOTHING,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    rank: int = 0,
    world_size: int = 1,
    agree: Agree = alone,
) -> None:
    """Write a folder of safetensors files with an index, as Hugging Face does.

    Every rank calls it, with the same arguments but for `rank`. The files have new names; the
    index is replaced last, and at once: until then the folder holds the old checkpoint, and
    after that the new one. Then the files of the old one are removed.

    Args:
        path: the folder; it is made if its parent is there.
        tensors: all tensors of all ranks.
        gather: called on every rank for every tensor, in one order: returns the whole array on
            the tensor's owner; what it returns elsewhere is not looked at.
        tied: alias -> the tensor that holds its data.
        metadata: goes into the header of each file.
        max_shard_bytes: where to begin another file.
        rank: this rank.
        world_size: number of ranks.
        agree: gives a text to all ranks, and returns what each of them gave.

    Raises:
        ValueError: for tensors that a file can't hold, or that differ between ranks.
        CheckpointError: where the folder can't be written, the same on all ranks.
    """
    save = _Save(Path(path), rank)

    def prepare() -> None:
        save.plans = plan_shards(tensors, tied, metadata, max_shard_bytes)
        owner = save.plans[-1].owner
        if owner >= world_size:
            raise ValueError(f"save: rank {owner} owns tensors, there are {world_size} ranks")
        save.claim()

    try:
        together_or_refuse(agree, prepare)
        save.token = _agreed_token(share(agree, f"{save.token} {fingerprint(save.plans)}"))
        together_or_refuse(agree, lambda: save.write(tensors, gather))
        for text in share(agree, json.dumps(save.sums)):
            save.sums.update(json.loads(text))
        together_or_refuse(agree, save.publish)
        together_or_refuse(agree, lambda: save.commit(tensors))
        save.keep()
        together_or_refuse(agree, save.sync)
        save.remove_old()
    except RefusedError as refused:
        save.discard(is_known=True)
        with suppress(Exception):
            agree(None)  # the others' files are gone, too
        save.remove_new_folder()
        raise refused.error from refused.error.__cause__
    except BaseException:
        # Where ranks may not know of it, rank 0 may yet commit: then all files are needed.
        save.discard(is_known=world_size == 1)
        save.remove_new_folder()
        raise
    finally:
        save.release()


def _agreed_token(texts: list[str]) -> str:
    token = texts[0].partition(" ")[0]
    prints = [text.partition(" ")[2] for text in texts]
    others = [rank for rank, other in enumerate(prints) if other != prints[0]]
    if others:
        raise ValueError(
            f"save: ranks {others} were given other tensors, ties, metadata or max_shard_bytes "
            "than rank 0; give all ranks the same"
        )
    return token


class _Save:
    """One rank's part of a save: its files, and on rank 0 the folder.

    Attributes:
        plans: all files of the checkpoint.
        token: tells the files of this save from others; the same on every rank.
        sums: file -> sha256; of this rank's files, and later of all.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.plans: tuple[ShardPlan, ...] = ()
        self.token = secrets.token_hex(4)
        self.sums: dict[str, str] = {}
        self._folder = folder
        self._rank = rank
        self._pending: list[PendingFile] = []
        self._published: list[Path] = []
        self._old: list[str] = []
        self._is_new = False
        self._lock_fd = -1

    def _pass(self, phase: str, path: Path | None = None) -> None:
        """Let a test break this rank here."""
        fault_point(f"save:{phase}", self._rank, path)

    def claim(self) -> None:
        """Make the folder on rank 0, and keep other saves out of it."""
        self._pass("claim")
        if self._rank:
            return
        with self._named_errors():
            try:
                self._folder.mkdir()
                self._is_new = True
            except FileExistsError:
                if self._folder.is_symlink() or not self._folder.is_dir():
                    kind = "a symlink" if self._folder.is_symlink() else "a file"
                    raise CheckpointError(
                        f"{self._folder}: found {kind}, wanted a folder or nothing to save to"
                    ) from None
            is_locked = self._lock()
            for name in (INDEX_NAME, SINGLE_NAME):
                find_mode(self._folder / name)
            self._look_at_old(is_locked)

    def _lock(self) -> bool:
        """Lock the folder; False where its file system has no locks."""
        self._lock_fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"{self._folder}: another process saves to it now; wait, or save to another folder"
            ) from None
        except OSError:
            return False
        return True

    def _look_at_old(self, is_locked: bool) -> None:
        """List the files of the old checkpoint, and remove what killed saves have left."""
        try:
            self._old = read_index(self._folder / INDEX_NAME, allow_links=True).shards
        except FileNotFoundError:
            self._old = [SINGLE_NAME]
        except CheckpointError:
            return  # damaged: nobody knows which files are its own
        if is_locked:
            for path in self._folder.iterdir():
                if _DEBRIS.fullmatch(path.name) and path.name not in self._old:
                    with suppress(OSError):
                        path.unlink()

    def write(self, tensors: Mapping[str, Layout], gather: Gather) -> None:
        """Write this rank's files; after a failure go on gathering, as the others do."""
        failure: Exception | None = None
        for plan in self.plans:
            arrays = (gather(name) for name in plan.names)
            if plan.owner == self._rank and failure is None:
                try:
                    self._write_file(plan, tensors, arrays)
                except Exception as error:
                    failure = error
            for _ in arrays:
                pass
        if failure is not None:
            with self._named_errors():
                raise failure

    def _write_file(
        self, plan: ShardPlan, tensors: Mapping[str, Layout], arrays: Iterator[Array | None]
    ) -> None:
        path = self._folder / self._file(plan)
        temporary = self._temporary(f"{self._rank}_{len(self._pending)}")
        file = ShardFile(path, temporary, like=self._folder / INDEX_NAME)
        self._pending.append(file)
        file.write(plan.header)
        self._pass("header", temporary)
        for name in plan.names:
            file.write_array(name, tensors[name], next(arrays))
            self._pass("tensor", temporary)
        self._pass("finish", temporary)
        file.finish()
        self.sums[path.name] = file.sha256

    def _file(self, plan: ShardPlan) -> str:
        return f"model-ark{self.token}-{plan.tail}"

    def _temporary(self, part: str) -> Path:
        return self._folder / f".ark_dist-{self.token}-{part}.tmp"

    def publish(self) -> None:
        """Give this rank's files their names; no index names them yet."""
        self._pass("rename")
        with self._named_errors():
            for pending in self._pending:
                pending.publish()
                self._published.append(pending.path)
                self._pass("renamed", pending.path)
        if self._published:
            sync_folder(self._folder, self._folder)

    def commit(self, tensors: Mapping[str, Layout]) -> None:
        """Replace the index on rank 0, once it sees all files."""
        self._pass("index")
        if self._rank:
            return
        files: dict[str, str] = {}
        for plan in self.plans:
            files |= dict.fromkeys(plan.names, self._file(plan))
            self._check_size(plan, tensors)
        size_bytes = sum(layout.size_bytes for layout in tensors.values())
        text = build_index(Index(files, size_bytes, self.sums))
        with self._named_errors():
            pending = PendingFile(self._folder / INDEX_NAME, self._temporary("index"))
            self._pending.append(pending)
            pending.write(text)
            pending.finish()
            self._pass("commit")
            pending.publish()

    def _check_size(self, plan: ShardPlan, tensors: Mapping[str, Layout]) -> None:
        path = self._folder / self._file(plan)
        wanted = len(plan.header) + sum(tensors[name].size_bytes for name in plan.names)
        found = path.stat().st_size if path.exists() else None
        if found != wanted:
            raise CheckpointError(
                f"{path}: rank {plan.owner} wrote {wanted} bytes, rank 0 finds "
                f"{'no file' if found is None else f'{found} bytes'}; save to a folder that all "
                "ranks share"
            )

    def keep(self) -> None:
        """From now on there is nothing to discard."""
        self._pending.clear()
        self._published.clear()

    def sync(self) -> None:
        """Wait until the disk knows of the new index."""
        self._pass("sync")
        if not self._rank:
            sync_folder(self._folder, self._folder)

    def remove_old(self) -> None:
        """Remove the old checkpoint's files on rank 0; they are named by no index any more."""
        self._pass("remove")
        new = {self._file(plan) for plan in self.plans}
        for name in self._old:
            if name not in new:
                with suppress(OSError):
                    (self._folder / name).unlink()

    def discard(self, *, is_known: bool) -> None:
        """Remove what this rank wrote, but for files with a name unless all ranks know of it."""
        for pending in self._pending:
            pending.discard()
        if is_known and not self._is_committed():
            for path in self._published:
                with suppress(OSError):
                    path.unlink()

    def remove_new_folder(self) -> None:
        """Remove the folder if this save made it, and nothing is in it."""
        if self._is_new:
            with suppress(OSError):
                self._folder.rmdir()

    def _is_committed(self) -> bool:
        try:
            files = read_index(self._folder / INDEX_NAME, allow_links=True).shards
        except (OSError, CheckpointError):
            return False
        return any(self.token in file for file in files)

    def release(self) -> None:
        """Let others save to the folder."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self._folder}: can't be saved: {error.strerror}; the old checkpoint, if any, "
                "is unchanged"
            ) from error
