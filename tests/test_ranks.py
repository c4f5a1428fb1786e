"""Which rank a process is comes from its launcher, and ranks that can't be are named."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ark_dist.core.errors import ConfigError
from ark_dist.core.settings import LAUNCHERS, child_environment
from ark_dist.launch.ranks import Claim, Ranks, check_claims, check_world, find_ranks
from tests.mpi import run_mpi

MPICH = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
OPENMPI = {
    "PMIX_RANK": "1",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
OURS = {
    "ARK_DIST_RANK": "1",
    "ARK_DIST_WORLD_SIZE": "4",
    "ARK_DIST_LOCAL_RANK": "1",
    "ARK_DIST_LOCAL_SIZE": "2",
}
SLURM = {
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def ranks(rank: int, size: int) -> Ranks:
    """Ranks as a launcher would give them."""
    return Ranks(rank, size, rank, size, "mpich", "PMI_RANK")


def test_without_a_launcher_a_process_is_rank_0_of_1() -> None:
    assert find_ranks({}) == Ranks(0, 1, 0, 1, "none", "")


@pytest.mark.parametrize(
    ("environ", "launcher", "source"),
    [
        (MPICH, "mpich", "PMI_RANK"),
        (OPENMPI, "pmix", "PMIX_RANK"),
        ({k: v for k, v in OPENMPI.items() if k != "PMIX_RANK"}, "openmpi", "OMPI_COMM_WORLD_RANK"),
        (OURS, "ark-dist", "ARK_DIST_RANK"),
        (TORCHRUN, "torchrun", "RANK"),
    ],
    ids=["mpich", "pmix", "openmpi", "ark-dist", "torchrun"],
)
def test_every_launchers_variables_are_read(
    environ: dict[str, str], launcher: str, source: str
) -> None:
    assert find_ranks(environ) == Ranks(1, 4, 1, 2, launcher, source)


def test_the_document_lists_every_launchers_variables_in_the_order_they_are_believed() -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "launching.md").read_text("utf-8")
    rows = re.findall(r"^\| [^|]+ \| (`[A-Z].*) \|$", text, re.M)
    named = [re.findall(r"`(\w+)`", row) for row in rows]
    assert named == [[n for group in names for n in group] for names in LAUNCHERS.values()]


def test_slurm_counts_in_a_job_step_only() -> None:
    assert find_ranks(SLURM) == Ranks(1, 4, 1, 4, "slurm", "SLURM_PROCID")
    batch_script = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    assert find_ranks(batch_script).launcher == "none"


def test_slurm_gives_pmix_its_number_of_ranks() -> None:
    environ = {"PMIX_RANK": "2", "SLURM_NTASKS": "3", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "1"}
    assert find_ranks(environ) == Ranks(2, 3, 0, 3, "pmix", "PMIX_RANK")


def test_the_launchers_are_believed_in_the_order_of_the_table() -> None:
    environs = {
        "mpich": MPICH,
        "pmix": OPENMPI,
        "ark-dist": OURS,
        "slurm": SLURM,
        "torchrun": TORCHRUN,
    }
    assert [name for name in LAUNCHERS if name in environs] == list(environs)
    there: dict[str, str] = {}
    for name, environ in reversed(environs.items()):
        there |= environ
        assert find_ranks(there).launcher == name


def test_launchers_that_disagree_give_one_warning_on_rank_0(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mixed = {**MPICH, "PMI_RANK": "0", **SLURM, "RANK": "3", "WORLD_SIZE": "8"}
    with caplog.at_level(logging.WARNING, "ark_dist"):
        assert find_ranks(mixed).source == "PMI_RANK"
    (record,) = caplog.records
    assert record.getMessage().startswith("this process is rank 0 of 4 by PMI_RANK; SLURM_PROCID=1")
    assert "RANK=3 and WORLD_SIZE=8: not used" in record.getMessage()


def test_the_other_ranks_do_not_warn_and_neither_do_launchers_that_agree(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "ark_dist"):
        find_ranks({**MPICH, "RANK": "3", "WORLD_SIZE": "8"})
        find_ranks({**MPICH, **OPENMPI, **OURS, **SLURM, **TORCHRUN})
    assert caplog.records == []


def test_a_batch_script_whose_slurm_numbers_differ_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "ark_dist"):
        find_ranks({**MPICH, "PMI_RANK": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "9"})
    assert "SLURM_PROCID=0 and SLURM_NTASKS=9" in caplog.text


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "^RANK is 4, but WORLD_SIZE is 4: ranks are 0 to 3; st"),
        ({"WORLD_SIZE": "2"}, "^WORLD_SIZE is 2, but RANK is missing, so this process does not kn"),
        ({"PMI_RANK": "0"}, "^PMI_RANK is 0, but PMI_SIZE is missing, so this process does not"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "^RANK is 'x'; it must be a whole number, 0 or more$"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "^WORLD_SIZE is '0'; it must be a whole number, 1 or"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "^RANK is '-1'; it must be"),
        ({**MPICH, "MPI_LOCALRANKID": "?"}, r"^the rank within the host is '\?'; it must be"),
    ],
)
def test_ranks_that_can_not_be_are_named(environ: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        find_ranks(environ)


def test_a_number_of_ranks_alone_is_no_error_if_it_is_1() -> None:
    assert find_ranks({"WORLD_SIZE": "1"}).world_size == 1


def test_a_whole_launcher_comes_before_one_that_says_half() -> None:
    assert find_ranks({"PMI_RANK": "0", **TORCHRUN}).launcher == "torchrun"


def test_mpi_must_confirm_the_numbers() -> None:
    check_world(ranks(1, 2), 1, 2)
    text = "^this process is rank 0 of 2 by PMI_RANK, but MPI started it as rank 0 of 1; start"
    with pytest.raises(ConfigError, match=text):
        check_world(ranks(0, 2), 0, 1)


def test_processes_that_met_must_be_every_rank_once() -> None:
    check_claims([Claim(ranks(0, 2), "a", 1), Claim(ranks(1, 2), "b", 2)])
    text = "^process 1 on a .rank 0. and process 2 on b .rank 0. are both rank 0, by PMI_RANK; each"
    with pytest.raises(ConfigError, match=text):
        check_claims([Claim(ranks(0, 2), "a", 1), Claim(ranks(0, 2), "b", 2)])
    with pytest.raises(ConfigError, match="was told that there are 3 ranks, but 1 met"):
        check_claims([Claim(ranks(0, 3), "a", 1)])


def test_one_process_imports_no_mpi() -> None:
    code = (
        "import sys; from ark_dist.launch.ranks import find_ranks; import ark_dist.launch.hooks; "
        "find_ranks(); sys.exit('mpi4py' in sys.modules)"
    )
    clean = {name: "" for names in LAUNCHERS.values() for group in names for name in group if name}
    done = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(**clean), timeout=60, check=False
    )
    assert done.returncode == 0


@pytest.mark.parametrize("n", [2, 3])
def test_ranks_under_mpirun_are_those_of_mpi(n: int) -> None:
    program = (
        "from mpi4py import MPI\n"
        "from ark_dist.launch.ranks import check_world, find_ranks\n"
        "ranks = find_ranks()\n"
        "check_world(ranks, MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)\n"
        "print(f'{ranks.rank} of {ranks.world_size}, {ranks.local_size} here')\n"
    )
    done = run_mpi(n, program)
    assert done.returncode == 0, done
    assert sorted(re.findall(rf"(\d) of {n}, {n} here", done.stdout)) == [*map(str, range(n))]
