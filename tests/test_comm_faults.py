"""Fault rows 1, 2, 4, 7, 8, 9: a rank that ends or stops takes the others along, by name."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ark_dist.comm.window import sweep
from tests.mpi import ROOT, Finished, is_running, run_mpi

LIMIT_S = 10.0

# Ranks started by mpirun: sys.argv is backend, fault, victim.
PROGRAM = """
import os, signal, sys
import numpy as np
from ark_dist.comm.mpi import mpi_world
from ark_dist.comm.shm import shm_world

backend, fault, victim = sys.argv[1], sys.argv[2], int(sys.argv[3])
world = mpi_world(timeout_s=1.5)
if backend == "shm":
    world = shm_world(world, timeout_s=1.5)
say = lambda text: os.write(1, (text + "\\n").encode())
say(f"pid {os.getpid()}")

def fail():
    match fault:
        case "kill": os.kill(os.getpid(), signal.SIGKILL)
        case "stop": os.kill(os.getpid(), signal.SIGSTOP)
        case "raise": raise ValueError("of my own")
        case "exit": sys.exit(0)
        case "leave": os._exit(0)
        case "abort": world.abort(7, "no more of this")

try:
    for step in range(6):
        if step == 3 and world.rank == victim:
            fail()
        world.all_reduce(np.ones(40_000, np.float32))
except Exception as error:
    say(f"{type(error).__name__}: {error}")
    raise
say("all is well")
"""


def fault(backend: str, kind: str, victim: int, *, is_guarded: bool = False) -> Finished:
    """Let a rank fail in the fourth call; all processes end in time, none well."""
    done = run_mpi(3, PROGRAM, backend, kind, str(victim), timeout_s=LIMIT_S, is_guarded=is_guarded)
    assert not done.is_timed_out, done
    assert "all is well" not in done.stdout, done
    assert not any(is_running(pid) for pid in done.pids)
    return done


@pytest.mark.parametrize(("backend", "victim"), [("mpi", 1), ("shm", 0)])
def test_a_killed_rank_ends_the_job(backend: str, victim: int) -> None:
    assert fault(backend, "kill", victim).returncode != 0


def test_an_exception_in_a_rank_ends_the_others_with_its_name() -> None:
    done = fault("mpi", "raise", 1)
    assert done.returncode != 0
    assert "ValueError: of my own" in done.stderr
    assert "PeerLost: rank" in done.stdout
    assert "rank 1 closed its communicator after" in done.stdout


def test_a_rank_that_returns_early_is_named_with_its_last_call() -> None:
    done = fault("shm", "exit", 0)
    assert done.returncode != 0
    assert "rank 0 closed its communicator after 3 calls" in done.stdout
    assert "rank 0: closed its communicator after 3 calls; last call all_reduce #3" in done.stdout


def test_abort_ends_all_ranks_with_its_code() -> None:
    for backend in ("mpi", "shm"):
        done = fault(backend, "abort", 2)
        assert done.returncode == 7
        assert "rank 2 gave up with code 7: no more of this" in done.stderr


def test_a_stopped_rank_is_named_by_a_time_out() -> None:
    done = fault("mpi", "stop", 1, is_guarded=True)
    assert done.returncode != 0
    assert "nothing from rank 1 in 1.5" in done.stdout, done


# --- ranks of shm without a launcher that ends them -----------------------------------------------

WITHOUT_MPI = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from ark_dist.comm.shm import shm_world

class Files:
    \"\"\"As much of a communicator as shm needs to begin with, by files of a folder.\"\"\"
    backend = "files"
    def __init__(self, folder, rank, size):
        self.folder, self.rank, self.size, self.count = Path(folder), rank, size, 0
    def all_gather_bytes(self, data, *, timeout_s=None):
        self.count += 1
        names = [self.folder / f"{self.count}-{rank}" for rank in range(self.size)]
        draft = names[self.rank].with_suffix(".new")
        draft.write_bytes(data)
        draft.rename(names[self.rank])
        end = time.monotonic() + 10
        while not all(name.exists() for name in names):
            assert time.monotonic() < end
            time.sleep(0.002)
        return [name.read_bytes() for name in names]
    def barrier(self, *, timeout_s=None):
        self.all_gather_bytes(b"")

folder, fault, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
memory = Path(folder, "shm")
world = shm_world(Files(folder, rank, 3), timeout_s=1.0, folder=memory)
assert "mpi4py" not in sys.modules
assert not list(memory.iterdir())
try:
    for step in range(4):
        if step == 2 and rank == 1:
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[fault])
        world.all_reduce(np.ones(1000, np.float32))
except Exception as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    sys.exit(3)
"""


@pytest.mark.parametrize("kind", ["kill", "stop"])
def test_ranks_of_shm_notice_by_themselves_who_ended_or_stopped(kind: str, tmp_path: Path) -> None:
    (tmp_path / "shm").mkdir()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WITHOUT_MPI, str(tmp_path), kind, str(rank)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for rank in range(3)
    ]
    try:
        texts = {rank: ranks[rank].communicate(timeout=LIMIT_S)[0] for rank in (0, 2)}
        codes = [ranks[rank].returncode for rank in (0, 2)]
    finally:
        for process in ranks:
            process.kill()
            process.communicate(timeout=LIMIT_S)
    assert codes == [3, 3], texts
    both = "".join(texts.values())
    if kind == "kill":
        assert ranks[1].returncode == -signal.SIGKILL
        assert "PeerLost: rank" in both
        assert f"rank 1 process {ranks[1].pid} is gone after 2 calls" in both
    else:
        assert "CommTimeout: rank" in both
        assert "all_reduce #3 fp32 x 1000 sum: nothing from rank 1 in 1" in both
        assert "\n  rank 1: all_reduce #2 fp32 x 1000 sum, ended " in both


NO_SHARED_MEMORY = """
import os
from pathlib import Path
import numpy as np
from ark_dist.comm.mpi import mpi_world
from ark_dist.core.errors import CommError, CommTimeout

world = mpi_world(timeout_s=10, folder=Path("/none/at/all"))
assert world.all_reduce(np.ones(3))[0] == world.size
try:
    world.allocate_window(10)
except CommError as error:
    os.write(1, f"window: {error}\\n".encode())
if world.rank == 0:
    try:
        world.recv(np.ones(1), 1, timeout_s=0.1)
    except CommTimeout as error:
        os.write(1, f"{error}\\n".encode())
world.barrier()
"""


def test_mpi_works_without_shared_memory() -> None:
    done = run_mpi(2, NO_SHARED_MEMORY, timeout_s=LIMIT_S)
    assert done.returncode == 0, done
    assert done.stdout.count("/none/at/all") >= 2
    assert "rank 1: not seen from here (another node, or no shared memory)" in done.stdout


def test_a_rank_that_never_joins_is_a_time_out() -> None:
    source = (
        "import time\nfrom mpi4py import MPI\nfrom ark_dist.comm.mpi import mpi_world\n"
        "mpi_world(timeout_s=0.3) if MPI.COMM_WORLD.rank == 0 else time.sleep(5)"
    )
    done = run_mpi(2, source, timeout_s=LIMIT_S)
    assert done.returncode != 0
    assert "CommTimeout: rank 0: mpi_world: not all of 2 ranks came in 0.3" in done.stderr, done


def test_importing_the_backends_does_not_import_mpi4py() -> None:
    text = (
        "import sys, ark_dist, ark_dist.comm.mpi, ark_dist.comm.shm, ark_dist.comm.inproc, "
        "ark_dist.comm.names\nassert 'mpi4py' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", text], cwd=ROOT, check=True, timeout=30)


def test_a_missing_mpi_is_named_with_the_way_out(tmp_path: Path) -> None:
    text = (
        "import sys\nsys.modules['mpi4py'] = None\nfrom ark_dist.comm.mpi import mpi_world\n"
        "try:\n    mpi_world()\nexcept Exception as error:\n"
        "    print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, check=True, timeout=30, capture_output=True
    )
    assert done.stdout.startswith(b"ConfigError mpi4py can't be imported: ")
    assert b"pip install 'ark_dist[mpich]'" in done.stdout


# --- row 66: files of crashed ranks ---------------------------------------------------------------

CRASH = """
import os, sys
from pathlib import Path
from ark_dist.comm import window
from ark_dist.comm.inproc import inproc_world

world = inproc_world(1)[0]
world.all_gather_bytes = lambda data, timeout_s=None: os.kill(os.getpid(), 9)
window.share_window(world, 10_000, (0,), folder=Path(sys.argv[1]))
"""


def test_files_of_killed_ranks_are_swept_by_the_next(tmp_path: Path) -> None:
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path)], cwd=ROOT, timeout=30)
        assert done.returncode == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 1
    assert len(sweep(tmp_path)) == 1
    assert not list(tmp_path.iterdir())
