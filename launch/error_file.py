"""Keep how a rank ended in files of the log folder, and read them back."""

import json
import os
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

from ark_dist.core.errors import ArkError
from ark_dist.core.settings import read_settings
from ark_dist.launch.exit_codes import CONSEQUENCES, exit_code
from ark_dist.launch.ranks import Ranks

Record = dict[str, object]
PRIVATE = 0o700
# How far a rank with hooks has come.
HOOKED, STARTS_MPI, CONNECTED = STAGES = ("hooked", "starts MPI", "connected")


def log_folder() -> Path:
    """The folder of this process's error file: ARK_DIST_LOG_DIR, else a temporary one of the job.

    Raises:
        OSError: it can't be made, or somebody else could have put it there.
    """
    chosen = read_settings().log_dir
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        return chosen
    base = Path(tempfile.gettempdir(), f"ark_dist-{os.getuid()}")
    base.mkdir(mode=PRIVATE, exist_ok=True)
    if base.is_symlink() or base.stat().st_uid != os.getuid():
        raise PermissionError(f"{base} belongs to somebody else; set ARK_DIST_LOG_DIR")
    folder = base / f"job-{os.getppid()}"  # all ranks of a host have the same parent
    folder.mkdir(mode=PRIVATE, exist_ok=True)
    return folder


def mark_hooked(rank: int, stage: str = HOOKED) -> None:
    """Note in a given log folder that this rank will say when it comes to its proper end."""
    folder = read_settings().log_dir
    if folder is not None:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if stage == HOOKED:
                error_path(folder, rank).unlink(missing_ok=True)  # of a run before
            hooked_path(folder, rank).write_text(f"{stage}\n", "utf-8")


def read_stage(folder: Path, rank: int) -> str:
    """How far a rank with hooks that has not come to its proper end is; "" for others."""
    with suppress(OSError, UnicodeDecodeError):
        stage = hooked_path(folder, rank).read_text("utf-8").strip()
        # It is empty for a moment while it is written.
        return stage if stage in STAGES else HOOKED
    return ""


def mark_finished(rank: int) -> None:
    """Note in a given log folder that this rank came to its proper end."""
    folder = read_settings().log_dir
    if folder is not None:
        with suppress(OSError):
            hooked_path(folder, rank).unlink(missing_ok=True)


def error_path(folder: Path, rank: int) -> Path:
    """The file that says with which error a rank ended."""
    return folder / f"rank-{rank}.error.json"


def status_path(folder: Path, rank: int) -> Path:
    """The file that says how the process of a rank ended, by whoever waited for it."""
    return folder / f"rank-{rank}.status.json"


def hooked_path(folder: Path, rank: int) -> Path:
    """The file that is there while a rank with hooks has not come to its proper end."""
    return folder / f"rank-{rank}.hooked"


def error_record(error: BaseException, ranks: Ranks, thread: str) -> Record:
    """What the error file says."""
    return {
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "thread": thread,
        "time": time.time(),
        "code": exit_code(error),
        "is_consequence": isinstance(error, CONSEQUENCES),
        "is_ours": isinstance(error, ArkError),
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(type(error), error, error.__traceback__)),
    }


def write_record(path: Path, record: Record) -> None:
    """Write a record so that no one ever reads half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    draft.replace(path)


def read_record(path: Path) -> Record | None:
    """Read a record; None if there is none."""
    with suppress(OSError, ValueError):
        record = json.loads(path.read_text("utf-8"))
        if isinstance(record, dict):
            return record
    return None
