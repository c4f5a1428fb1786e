"""Fault rows 29 and 66: windows in a full or small folder, and files that others left."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ark_dist.comm import shm, window
from ark_dist.comm.communicator import Communicator
from ark_dist.comm.inproc import inproc_world
from ark_dist.comm.process import is_alive, namespace, process_id, start_time
from ark_dist.comm.window import share_window, sweep
from ark_dist.core.errors import CommError, ConfigError, MemoryLimitError
from tests.threads import failures, on_threads


def test_a_window_leaves_no_file_behind(tmp_path: Path) -> None:
    def run(world: Communicator) -> None:
        part = share_window(world, 100 + world.rank, (0, 1), folder=tmp_path)
        part.own[7] = 1 + world.rank
        world.barrier()
        assert [int(bytes_[7]) for bytes_ in part.peers.values()] == [1, 2]
        assert [bytes_.nbytes for bytes_ in part.peers.values()] == [100, 101]

    on_threads(inproc_world(2, timeout_s=10), run)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_too_small_is_an_error_before_anything_is_written(
    tmp_path: Path,
) -> None:
    def run(world: Communicator) -> None:
        share_window(world, 1 << 60 if world.rank == 1 else 10, (0, 1, 2), folder=tmp_path)

    for rank, error in enumerate(failures(inproc_world(3, timeout_s=10), run)):
        assert isinstance(error, MemoryLimitError)
        text = str(error)
        assert text.startswith(f"rank {rank}: shared memory: rank 1: {tmp_path} has ")
        assert f"bytes free, {1 << 60} are needed (shm)" in text
        assert "--shm-size" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM, errno.EDQUOT])
def test_a_folder_that_fills_up_meanwhile_is_an_error_and_no_crash(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, offset: int, size: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", full)
    (error,) = failures(
        inproc_world(1), lambda world: share_window(world, 5000, (0,), folder=tmp_path)
    )
    assert isinstance(error, MemoryLimitError)
    assert "5000 are needed (shm)" in str(error)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    def run(world: Communicator) -> None:
        share_window(world, 10, (0, 1), folder=tmp_path / "none")

    for error in failures(inproc_world(2, timeout_s=10), run):
        assert isinstance(error, CommError)
        assert str(tmp_path / "none") in str(error)


def test_a_peer_that_can_not_map_fails_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "_map_peers", lambda answers, parts: b"\2can't map it")

    def run(world: Communicator) -> None:
        share_window(world, 10, (0, 1), folder=tmp_path)

    for error in failures(inproc_world(2, timeout_s=10), run):
        assert isinstance(error, CommError)
        assert "rank 0: can't map it" in str(error)
    assert not list(tmp_path.iterdir())


def test_the_sweep_takes_files_of_dead_owners_and_no_others(tmp_path: Path) -> None:
    pid, start = process_id()
    here = namespace()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    gone = start_time(dead.pid) or 1
    dead.wait(30)
    names = {
        "own": f"ark-dist-{here}-{pid}-{start}-0",
        "child": f"ark-dist-{here}-{child.pid}-{start_time(child.pid)}-0",
        "dead": f"ark-dist-{here}-{dead.pid}-{gone}-0",
        "pid used again": f"ark-dist-{here}-{pid}-{start - 1}-0",
        "another namespace": f"ark-dist-{here + 1}-{dead.pid}-{gone}-0",
        "not ours": "ark-dist-notes",
    }
    for name in names.values():
        (tmp_path / name).touch()
    try:
        assert {path.name for path in sweep(tmp_path)} == {names["dead"], names["pid used again"]}
    finally:
        child.communicate(b"\n", timeout=30)
    assert {path.name for path in sweep(tmp_path)} == {names["child"]}
    assert len(list(tmp_path.iterdir())) == 3


def test_a_process_is_alive_only_with_its_own_start_time() -> None:
    pid, start = process_id()
    assert is_alive(pid, start)
    assert not is_alive(pid, start + 1)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(30)
    assert start_time(child.pid) is None


def test_a_process_that_waits_to_be_reaped_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()  # the end of its output is the end of it
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(child.pid) is None
    child.communicate(timeout=30)


def test_ranks_on_two_nodes_can_not_use_shm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = iter(["one", "two"])
    monkeypatch.setattr(socket, "gethostname", lambda: next(hosts))

    def run(world: Communicator) -> None:
        shm.shm_world(world, folder=tmp_path)

    for error in failures(inproc_world(2, timeout_s=10), run):
        assert isinstance(error, ConfigError)
        assert "rank 0 is on " in str(error)
        assert "use backend mpi" in str(error)


def test_shm_refuses_a_machine_that_orders_stores_in_another_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shm, "platform", SimpleNamespace(machine=lambda: "aarch64"))
    with pytest.raises(ConfigError, match="shm runs on x86_64, this is aarch64; use backend mpi"):
        shm.shm_world(inproc_world(1)[0])
