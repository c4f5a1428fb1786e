"""Every communicator keeps the contract at 1, 2, 3 and 4 ranks, as it is and in debug mode."""

from functools import cache
from pathlib import Path

import msgpack
import pytest

from ark_dist.comm.communicator import Communicator
from ark_dist.comm.inproc import inproc_world
from tests.comm_contract import CASES, Results, run_cases
from tests.mpi import run_mpi
from tests.threads import on_threads

SIZES = (1, 2, 3, 4)
DEBUG_SIZE = 3
MODES = [(size, "") for size in SIZES] + [(DEBUG_SIZE, ", debug")]
PROGRAM = Path(__file__).with_name("comm_contract.py")
LIMIT_S = 60.0


def inproc_results(size: int, *, debug: bool) -> dict[str, list[str]]:
    """Run all cases on threads."""
    found: dict[str, list[str]] = {}

    def run(world: Communicator) -> None:
        results = run_cases(world)
        if world.rank == 0:
            found.update(results)

    on_threads(inproc_world(size, timeout_s=10, debug=debug), run)
    return found


@cache
def results(kind: str, size: int) -> Results:
    """Run all cases once, in threads or on the ranks of one mpirun."""
    if kind == "inproc":
        modes = [mode for count, mode in MODES if count == size]
        return {kind + mode: inproc_results(size, debug=bool(mode)) for mode in modes}
    debug = ["debug"] if size == DEBUG_SIZE else []
    done = run_mpi(size, PROGRAM, *debug, timeout_s=LIMIT_S)
    lines = [line for line in done.stdout.splitlines() if line.startswith("results ")]
    assert done.returncode == 0 and lines, done
    unpacked: Results = msgpack.unpackb(bytes.fromhex(lines[0].split()[1]))
    return unpacked


@pytest.mark.parametrize(("size", "mode"), MODES)
@pytest.mark.parametrize("backend", ["inproc", "mpi", "shm"])
class TestContract:
    """One class for all communicators."""

    @pytest.mark.parametrize("case", CASES)
    def test_the_contract_holds(self, backend: str, size: int, mode: str, case: str) -> None:
        kind = "inproc" if backend == "inproc" else "mpirun"
        errors = results(kind, size)[backend + mode][case]
        assert len(errors) == size
        assert not any(errors), "\n".join(filter(None, errors))
