"""Fault rows 31 to 48: a bad checkpoint, a full disk or a killed rank harms no weights silently."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ark_dist as ark
from ark_dist.checkpoint.index import INDEX_NAME
from tests.cut_models import cut_weights
from tests.mpi import Finished, run_mpi

LIMIT_S = 60.0
PHASES = (
    *("claim", "header", "tensor", "finish", "rename", "renamed"),
    *("index", "commit", "sync", "remove"),
)

# sys.argv is what to do, the folder, and the seed of the weights to save.
PROGRAM = """
import os, resource, signal, sys
import ark_dist as ark
from tests.cut_models import cut_model, cut_weights

action, path, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
axes = {"tp": ark.world_size()}
say = lambda text: os.write(1, f"[{ark.rank()}] {text}\\n".encode())
# Files, but not the memory that ranks share, end at 300 bytes on a full disk.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with cut_model(None, axes) as (module, exe):
    if action != "load" and action != "verify":
        module.load_state_dict(cut_weights(seed))
    if action in ("full", "full_1") and (action == "full" or ark.rank() == 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
    try:
        match action:
            case "load" | "verify":
                module.load_state_dict(path, verify=action == "verify")
            case "save_dict":
                ark.save(module.state_dict(), path)
            case _:
                module.save(path)
        state = module.state_dict()
        say(f"fine {all((state[n] == a).all() for n, a in cut_weights(seed).items())}")
    except Exception as error:
        text = str(error).replace("\\n", " ")
        say(f"{type(error).__name__}: {text}")
        exe.launch()
        try:
            exe.run(1)
            say("ran")
        except ark.LifecycleError as unset:
            say(f"no run: {unset}")
"""


def ranks_do(
    action: str, path: Path, *, ranks: int = 2, seed: int = 0, fault: str = ""
) -> Finished:
    """Load or save on real ranks; none is left over, and nobody waits for the limit."""
    done = run_mpi(
        ranks,
        PROGRAM,
        action,
        f"{path}/",
        str(seed),
        env={"ARK_DIST_FAULT": fault, "ARK_DIST_TIMEOUT_S": "20"},
        timeout_s=LIMIT_S,
    )
    assert not done.is_timed_out, done
    return done


def errors_of(done: Finished, ranks: int = 2) -> str:
    """The one error that all ranks raised."""
    found: dict[str, str] = dict(
        re.findall(r"^\[(\d)\] (\w+(?:Error|Lost): .*)$", done.stdout, re.MULTILINE)
    )
    assert len(found) == ranks, done
    assert len(set(found.values())) == 1, done
    return found["0"]


def is_fine(done: Finished, ranks: int = 2) -> bool:
    return all(f"[{rank}] fine True" in done.stdout for rank in range(ranks))


def saved(path: Path, seed: int = 0) -> Path:
    """Save a checkpoint, and return its one file."""
    ark.save(cut_weights(seed), f"{path}/")
    (file,) = path.glob("*.safetensors")
    return file


def holds(path: Path, seed: int) -> bool:
    with ark.open_checkpoint(path, verify=True):
        got = ark.load(path)
    return all(np.array_equal(got[name], array) for name, array in cut_weights(seed).items())


def edited(path: Path, **changes: object) -> None:
    """Change entries of an index."""
    index = json.loads((path / INDEX_NAME).read_text())
    (path / INDEX_NAME).write_text(json.dumps({**index, **changes}))


# --- bad checkpoints --------------------------------------------------------------------------


def test_a_missing_tensor_is_named_by_all_ranks_and_no_run_is_allowed(tmp_path: Path) -> None:
    weights = cut_weights()
    del weights["norm"]
    ark.save(weights, f"{tmp_path}/model/")
    done = ranks_do("load", tmp_path / "model")
    assert errors_of(done).startswith("StateDictError: load_state_dict: nothing was loaded")
    assert "missing: norm" in errors_of(done)
    for rank in range(2):
        assert f"[{rank}] no run: run: 4 weights were never written: Cut." in done.stdout
    assert "ran\n" not in done.stdout


CUTS: dict[str, Callable[[bytes], bytes]] = {
    **{f"{n}/8": lambda data, n=n: data[: len(data) * n // 8] for n in range(8)},  # type: ignore[misc]  # n is bound
    "header": lambda data: data[:40],
    "length": lambda data: data[:5],
    "a byte": lambda data: data[:-1],
    "pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "long header": lambda data: (100_000_001).to_bytes(8, "little") + data[8:],
    "2^63": lambda data: (1 << 63).to_bytes(8, "little") + data[8:],
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_damaged_file_is_named_with_its_sizes(tmp_path: Path, cut: str) -> None:
    file = saved(tmp_path / "model")
    file.write_bytes(CUTS[cut](file.read_bytes()))
    with pytest.raises(ark.ShardCorruptError, match=re.escape(file.name)) as caught:
        ark.open_checkpoint(tmp_path / "model")
    size = file.stat().st_size
    assert re.search(rf"\b{size}\b", str(caught.value)) or "git-lfs" in str(caught.value).lower()


@pytest.mark.long
@pytest.mark.parametrize("cut", ["0/8", "4/8", "pointer"])
def test_a_damaged_file_is_one_error_on_all_ranks(tmp_path: Path, cut: str) -> None:
    file = saved(tmp_path / "model")
    file.write_bytes(CUTS[cut](file.read_bytes()))
    done = ranks_do("load", tmp_path / "model", ranks=3)
    assert errors_of(done, 3).startswith("ShardCorruptError: ranks 0, 1, 2: ")


def test_a_file_that_is_cut_while_it_is_read_is_an_error_on_all_ranks(tmp_path: Path) -> None:
    file = saved(tmp_path / "model")
    done = ranks_do("load", tmp_path / "model", fault="load,rank=1,kind=truncate")
    assert "ShardCorruptError: rank" in errors_of(done)
    assert f"{file.name}: the file ends at byte" in errors_of(done)
    assert "no run: run: " in done.stdout


def double_keys(path: Path) -> None:
    text = (path / INDEX_NAME).read_text()
    (path / INDEX_NAME).write_text(text.replace('"norm":', '"first": "x", "norm":'))


def renamed_in_index(path: Path, name: str) -> None:
    index = json.loads((path / INDEX_NAME).read_text())
    size = {"total_size": index["metadata"]["total_size"]}  # without checksums by file
    edited(path, weight_map=dict.fromkeys(index["weight_map"], name), metadata=size)


def outside(path: Path, link: Callable[[Path, Path], object]) -> None:
    """Move the data out of the folder, and link to it."""
    (file,) = path.glob("*.safetensors")
    away = path.parent / "away.safetensors"
    shutil.move(file, away)
    link(away, file)


BAD_INDEX: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing file": (lambda p: renamed_in_index(p, "gone.safetensors"), "gone.safetensors"),
    "no such tensor": (
        lambda p: edited(p, weight_map={"lost": next(p.glob("*.safetensors")).name, **_map_of(p)}),
        "lost",
    ),
    "wrong size": (lambda p: edited(p, metadata={"total_size": 7}), "total_size"),
    "double key": (double_keys, "first"),
    "path": (lambda p: renamed_in_index(p, "../away.safetensors"), "away.safetensors"),
    "absolute": (lambda p: renamed_in_index(p, "/etc/passwd"), "passwd"),
    "symlink": (lambda p: outside(p, lambda away, file: file.symlink_to(away)), "link"),
    "hard link": (lambda p: outside(p, lambda away, file: os.link(away, file)), "names"),
}


def _map_of(path: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((path / INDEX_NAME).read_text())["weight_map"]
    return found


@pytest.mark.long
@pytest.mark.parametrize("kind", BAD_INDEX)
def test_a_wrong_or_unsafe_index_is_one_error_on_all_ranks(tmp_path: Path, kind: str) -> None:
    saved(tmp_path / "model")
    change, text = BAD_INDEX[kind]
    change(tmp_path / "model")
    error = errors_of(ranks_do("load", tmp_path / "model"))
    assert re.match(r"(Checkpoint|ShardCorrupt)Error: ranks 0, 1: ", error)
    assert text in error


@pytest.mark.long
def test_a_flipped_bit_is_found_when_asked(tmp_path: Path) -> None:
    file = saved(tmp_path / "model")
    assert is_fine(ranks_do("verify", tmp_path / "model"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    error = errors_of(ranks_do("verify", tmp_path / "model"))
    assert error.startswith("ShardCorruptError: rank 0: ")
    assert "with sha256" in error


@pytest.mark.long
def test_a_rank_that_is_killed_while_loading_ends_the_job(tmp_path: Path) -> None:
    saved(tmp_path / "model")
    done = ranks_do("load", tmp_path / "model", fault="load,rank=1,kind=sigkill")
    assert done.returncode != 0
    assert "fine" not in done.stdout


BIG = """
import json, os, sys
import numpy as np
import ark_dist as ark
from pathlib import Path

size, rows, count = ark.world_size(), 2048, 12
model, module = ark.Model(), ark.Module()
x = model.tensor((1, rows))
for i in range(count):
    cut = ark.P(None, "tp") if i % 2 == 0 else ark.P("tp", None)
    setattr(module, f"w{i}", model.parameter((rows, rows), shard=cut))
    x = model.matmul(x, getattr(module, f"w{i}"))
tell = lambda text: os.write(1, f"[{ark.rank()}] {text}\\n".encode())
def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
def read():
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])
with ark.Executor(model=model, device="numpy", mesh=ark.Mesh({"tp": size})) as exe:
    exe.compile()
    began = read()
    module.load_state_dict(sys.argv[1])
    tell(f"load {read() - began} {peak()}")
    module.save(sys.argv[2])
    tell(f"save {peak()}")
"""
BIG_BYTES, BIG_COUNT = 2048 * 2048 * 4, 12
# The interpreter with NumPy and MPI, and what is staged.
REST_BYTES = 150_000_000


@pytest.mark.long
def test_a_rank_needs_room_for_its_part_and_one_tensor(tmp_path: Path) -> None:
    tensor = np.arange(BIG_BYTES // 4, dtype=np.float32).reshape(2048, 2048)
    ark.save({f"w{i}": tensor + i for i in range(BIG_COUNT)}, f"{tmp_path}/model/")
    done = run_mpi(4, BIG, f"{tmp_path}/model/", f"{tmp_path}/copy/", timeout_s=LIMIT_S)
    loads = re.findall(r"load (\d+) (\d+)$", done.stdout, re.MULTILINE)
    saves = re.findall(r"save (\d+)$", done.stdout, re.MULTILINE)
    assert len(loads) == len(saves) == 4, done
    total, part = BIG_BYTES * BIG_COUNT, BIG_BYTES * BIG_COUNT // 4
    assert sum(int(read) for read, _ in loads) <= 1.1 * total
    assert all(int(peak) <= part + BIG_BYTES + REST_BYTES for _, peak in loads)
    assert all(int(peak) <= part + 2 * BIG_BYTES + REST_BYTES for peak in saves)
    with ark.open_checkpoint(tmp_path / "copy", verify=True):
        got = ark.load(tmp_path / "copy")
    assert all(np.array_equal(got[f"w{i}"], tensor + i) for i in range(BIG_COUNT))


# --- saving -----------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["full", pytest.param("full_1", marks=pytest.mark.long)])
def test_a_full_disk_is_one_error_and_leaves_the_old_checkpoint(
    tmp_path: Path, action: str
) -> None:
    # Rank 1 alone owns nothing of this model: then the save is well.
    saved(tmp_path / "model", 0)
    before = sorted((tmp_path / "model").iterdir())
    done = ranks_do(action, tmp_path / "model", seed=1)
    if action == "full_1":
        assert is_fine(done)
        assert holds(tmp_path / "model", 1)
        return
    assert errors_of(done).startswith("CheckpointError: rank 0: ")
    assert "can't be saved: File too large; the old checkpoint" in errors_of(done)
    assert sorted((tmp_path / "model").iterdir()) == before
    assert holds(tmp_path / "model", 0)


@pytest.mark.long
@pytest.mark.parametrize("action", ["save", "save_dict"])
@pytest.mark.parametrize("kind", ["file", "symlink", "no parent"])
def test_what_rank_0_alone_finds_wrong_is_raised_by_all(
    tmp_path: Path, action: str, kind: str
) -> None:
    path = tmp_path / ("gone/model" if kind == "no parent" else "model")
    if kind == "file":
        path.write_text("mine")
    elif kind == "symlink":
        (tmp_path / "there").mkdir()
        path.symlink_to(tmp_path / "there")
    before = sorted(tmp_path.rglob("*"))
    error = errors_of(ranks_do(action, path))
    assert error.startswith("CheckpointError: rank 0: ")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.long
@pytest.mark.parametrize("phase", PHASES)
def test_a_failure_at_any_phase_on_any_rank_is_raised_by_all(tmp_path: Path, phase: str) -> None:
    saved(tmp_path / "model", 0)
    is_new = phase in ("sync", "remove")  # the index is in place
    done = ranks_do("save", tmp_path / "model", seed=1, fault=f"save:{phase},kind=raise,rank=0")
    if phase != "remove":
        assert "InjectedError: rank 0: fault at save:" in errors_of(done)
    assert holds(tmp_path / "model", 1 if is_new else 0)


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("phase", PHASES)
def test_a_rank_killed_at_any_phase_of_a_save_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path, phase: str, victim: int
) -> None:
    saved(tmp_path / "model", 0)
    fault = f"save:{phase},kind=sigkill,rank={victim}"
    done = ranks_do("save", tmp_path / "model", seed=1, fault=fault)
    is_passed = victim == 0 or phase in ("claim", "rename", "index", "sync", "remove")
    assert (done.returncode != 0) == is_passed, done
    if is_passed:
        assert holds(tmp_path / "model", 0) or holds(tmp_path / "model", 1)
        if phase in ("claim", "header", "tensor", "finish", "rename", "commit"):
            assert holds(tmp_path / "model", 0)
    # The next save works, and removes what was left.
    assert is_fine(ranks_do("save", tmp_path / "model", seed=2))
    assert holds(tmp_path / "model", 2)
    assert len([*(tmp_path / "model").iterdir()]) == 2


@pytest.mark.long
def test_a_file_that_is_cut_while_it_is_saved_is_noticed(tmp_path: Path) -> None:
    saved(tmp_path / "model", 0)
    fault = "save:finish,kind=truncate,rank=0"
    error = errors_of(ranks_do("save", tmp_path / "model", seed=1, fault=fault))
    assert re.search(r"rank 0 wrote \d+ bytes, rank 0 finds \d+ bytes", error)
    assert holds(tmp_path / "model", 0)
