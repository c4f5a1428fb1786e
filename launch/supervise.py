"""Start one rank's program with its output in the log folder, and note how its process ended."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from ark_dist.core.errors import ConfigError
from ark_dist.core.settings import child_environment
from ark_dist.launch.error_file import (
    Record,
    error_path,
    error_record,
    status_path,
    write_record,
)
from ark_dist.launch.exit_codes import BAD_CONFIG
from ark_dist.launch.parent import die_with_parent
from ark_dist.launch.ranks import ALONE, LASTING_PARENTS, WAY_OUT, Ranks, find_ranks

# After a rank has failed the launcher ends the others at once; before, they may say what they saw.
LINGER_S, LINGER_STEP_S = 1.0, 0.02
PASSED_ON = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    *(signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2),
)


def python_command(module: str, function: str, *arguments: str) -> list[str]:
    """The command that calls a function of this package, wherever the process starts."""
    home = Path(__file__).absolute().parent.parent
    root = home.parent if home.name == "ark_dist" else home
    code = (
        f"import sys; sys.path.insert(0, sys.argv.pop(1)); from {module} import {function}; "
        f"{function}(sys.argv[1:])"
    )
    return [sys.executable, "-c", code, str(root), *arguments]


def start_command(log_dir: Path, world_size: int, program: Sequence[str]) -> list[str]:
    """The command that a launcher starts on every rank."""
    arguments = (str(log_dir), str(world_size), *program)
    return python_command("ark_dist.launch.supervise", "supervise", *arguments)


def output_paths(log_dir: Path, rank: int) -> tuple[Path, Path]:
    """Where a rank's stdout and stderr go."""
    return log_dir / f"rank-{rank}.out", log_dir / f"rank-{rank}.err"


def supervise(arguments: Sequence[str]) -> None:
    """Run a program as this rank; end as it ends.

    Args:
        arguments: log folder, number of ranks that there should be, the program's command.
    """
    log_dir, world_size, *program = Path(arguments[0]), int(arguments[1]), *arguments[2:]
    try:
        ranks = find_ranks()
        if ranks.world_size != world_size:
            raise ConfigError(
                f"the launcher made this process rank {ranks.rank} of {ranks.world_size}, by "
                f"{ranks.source or 'default'}, but there should be {world_size} ranks; {WAY_OUT}"
            )
    except ConfigError as error:
        print(f"ark-dist run: {error}", file=sys.stderr)
        write_record(error_path(log_dir, 0), error_record(error, ALONE, "MainThread"))
        sys.exit(BAD_CONFIG)
    if ranks.launcher in LASTING_PARENTS:
        die_with_parent()
    _end_as(_run(ranks, log_dir, program))


def _run(ranks: Ranks, log_dir: Path, program: Sequence[str]) -> int:
    """Run the program and return its exit code, negative for a signal."""
    out_path, err_path = output_paths(log_dir, ranks.rank)
    status: Record = {"rank": ranks.rank, "host": os.uname().nodename}
    signals: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        signals.append(signum)

    for signum in PASSED_ON:
        signal.signal(signum, note)
    with out_path.open("ab") as out, err_path.open("ab") as err:
        process = subprocess.Popen(
            program,
            stdout=out,
            stderr=err,
            close_fds=False,  # MPI speaks to the launcher through inherited pipes
            preexec_fn=die_with_parent,
            env=child_environment(
                ARK_DIST_RANK=str(ranks.rank),
                ARK_DIST_WORLD_SIZE=str(ranks.world_size),
                ARK_DIST_LOCAL_RANK=str(ranks.local_rank),
                ARK_DIST_LOCAL_SIZE=str(ranks.local_size),
                ARK_DIST_LOG_DIR=str(log_dir),
            ),
        )

    def pass_on(signum: int, frame: FrameType | None) -> None:
        signals.append(signum)
        process.send_signal(signum)

    for signum in PASSED_ON:
        signal.signal(signum, pass_on)
    for number in tuple(signals):  # those that came before there was a process
        process.send_signal(number)
    status["pid"] = process.pid
    write_record(status_path(log_dir, ranks.rank), status)
    code = process.wait()
    write_record(status_path(log_dir, ranks.rank), {**status, "code": code, "time": time.time()})
    if code and ranks.world_size > 1:
        _linger(signals)
    return code


def _linger(signals: Sequence[int]) -> None:
    """Stay for a while, unless a signal comes or came: it is the launcher that ends ranks then."""
    end = time.monotonic() + LINGER_S
    while not signals and time.monotonic() < end:
        time.sleep(LINGER_STEP_S)


def _end_as(code: int) -> None:
    """End with the code, or by the same signal, so that the launcher sees what happened."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program left a core, if wanted
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
