"""Each rank reads its slices to where they belong, once all that any rank wants fits."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path

import numpy as np
import pytest

import ark_dist as ark
from ark_dist.checkpoint import progress
from ark_dist.checkpoint.agree import Agree, alone, together
from ark_dist.checkpoint.loader import LoadResult, Wanted, Write, load_slices
from ark_dist.checkpoint.progress import shown_progress
from ark_dist.checkpoint.reader import Checkpoint, open_checkpoint
from ark_dist.core.dtype import FP16, FP32, DType
from ark_dist.core.errors import ShardCorruptError
from ark_dist.core.shape import Box, box_shape, full_box
from ark_dist.launch.memory import Arenas
from ark_dist.safetensors_file import Array
from tests.checkpoint_cases import on_ranks, two_shards, weights, write_folder, write_shard
from tests.module_models import launched
from tests.module_models import weights as module_weights


def want(
    name: str,
    box: Box | None = None,
    *,
    dtype: DType = FP32,
    memory: str = "",
    write: Array | Write | None = None,
) -> Wanted:
    shape = weights()[name].shape
    box = full_box(shape) if box is None else box
    array = np.zeros(box_shape(box), dtype.numpy) if write is None else write
    return Wanted(shape, dtype, box, array, memory or name)


def filled(wanted: Wanted) -> Array:
    assert isinstance(wanted.write, np.ndarray)
    return wanted.write


def test_each_rank_has_its_slices(tmp_path: Path) -> None:
    two_shards(tmp_path)
    columns = [((0, 16), (3 * rank, 3 * rank + 3)) for rank in range(4)]

    def run(rank: int, agree: Agree) -> Array:
        wanted = {"embed": want("embed", columns[rank])}
        if rank == 3:
            wanted["layers.0.w"] = want("layers.0.w", dtype=FP16)
        with open_checkpoint(tmp_path) as checkpoint:
            result = load_slices(checkpoint, wanted, owner="M", is_strict=False, agree=agree)
        # What no rank wants.
        assert set(result.unexpected_keys) == {"flag", "layers.1.w", "none", "norm"}
        return filled(wanted["embed"])

    for rank, array in enumerate(on_ranks(4, run)):
        assert isinstance(array, np.ndarray), array
        np.testing.assert_array_equal(array, weights()["embed"][:, 3 * rank : 3 * rank + 3])


def test_what_does_not_fit_on_any_rank_is_told_by_all_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    two_shards(tmp_path)

    def run(rank: int, agree: Agree) -> None:
        wanted = {"embed": want("embed")}
        if rank == 1:
            wanted["norm"] = want("norm", dtype=FP32)
            wanted["layers.0.w"] = Wanted(
                (40, 12), FP16, ((0, 40), (0, 12)), lambda array: None, "w"
            )
            wanted["lost"] = Wanted((1,), FP16, ((0, 1),), lambda array: None, "lost")
        with open_checkpoint(tmp_path) as checkpoint:
            try:
                load_slices(checkpoint, wanted, owner="M", agree=agree)
            finally:
                assert not filled(wanted["embed"]).any()

    for error in on_ranks(2, run):
        assert isinstance(error, ark.StateDictError)
        assert str(error).splitlines() == [
            "load_state_dict: nothing was loaded into M:",
            "  missing: lost",
            "  unexpected: flag, layers.1.w, none",
            "  wrong shape: layers.0.w is (40, 12), found (12, 40) (transposed?)",
            "  wrong dtype (cast=True converts): norm is fp32, found float64",
            f"  in {tmp_path}",
        ]


def test_damage_that_one_rank_finds_is_raised_by_all(tmp_path: Path) -> None:
    two_shards(tmp_path)

    def run(rank: int, agree: Agree) -> None:
        with open_checkpoint(tmp_path) as checkpoint:
            wanted = {"embed": want("embed")}
            if rank == 1:
                wanted = {"norm": want("norm", dtype=FP32)}
            agree(None)  # both have opened it
            together(agree, lambda: None if rank else os.truncate(tmp_path / "b.safetensors", 400))
            load_slices(checkpoint, wanted, owner="M", is_strict=False, is_cast=True, agree=agree)

    first, second = on_ranks(2, run)
    assert type(first) is type(second) is ShardCorruptError
    assert str(first) == str(second)
    assert "rank 1: " in str(first)
    assert "b.safetensors: the file ends at byte 400" in str(first)
    assert "; 0 of 1 tensors were loaded: load them all again before a run" in str(first)


def test_one_rank_alone_raises_its_own_error() -> None:
    def broken() -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error") as caught:
        together(alone, broken)
    assert caught.value.errno == 5


def test_a_tensor_with_several_places_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_shards(tmp_path)
    reads: list[str] = []
    given: list[Array] = []
    read = Checkpoint.read

    def counted(self: Checkpoint, name: str, box: Box, out: Array, *, is_cast: bool) -> None:
        reads.append(name)
        read(self, name, box, out, is_cast=is_cast)

    monkeypatch.setattr(Checkpoint, "read", counted)
    header_tie = {"embed": want("embed", memory="m"), "head": want("embed", memory="m")}
    with open_checkpoint(tmp_path) as checkpoint:
        load_slices(checkpoint, header_tie, owner="M", is_strict=False)
        assert reads == ["embed"]
        with_alias = Checkpoint("x", checkpoint._shards, {})
        with_alias.tensors = {**checkpoint.tensors, "head": checkpoint.tensors["embed"]}
        wanted = {
            "head": want("embed", memory="head"),
            "embed": want("embed", write=given.append),
            "norm": want("norm"),
        }
        load_slices(with_alias, wanted, owner="M", is_strict=False, is_cast=True)
    assert sorted(reads) == ["embed", "head", "norm"]
    np.testing.assert_array_equal(filled(wanted["head"]), weights()["embed"])
    np.testing.assert_array_equal(given[0], weights()["embed"])
    np.testing.assert_array_equal(filled(wanted["norm"]), weights()["norm"].astype(np.float32))


def load_pair(folder: Path, one: Array, other: Array) -> Array:
    """Load two names of one memory from two tensors."""
    write_folder(folder, {"a.safetensors": {"a": one}, "b.safetensors": {"b": other}})
    out = np.zeros(8, np.float32)
    wanted = {name: Wanted((8,), FP32, ((0, 8),), out, "m") for name in ("a", "b", "c")}
    with open_checkpoint(folder) as checkpoint:
        assert load_slices(checkpoint, wanted, owner="M", is_cast=True) == LoadResult([], [])
    return out


def test_names_of_one_memory_must_hold_the_same_data(tmp_path: Path) -> None:
    one = np.arange(8, dtype=np.float32)
    others: list[Array] = [one.copy(), one.astype(np.float16)]
    for other in others:
        assert load_pair(tmp_path, one, other).tolist() == one.tolist()
        with pytest.raises(ark.StateDictError, match="but the arrays differ: a and b\n"):
            load_pair(tmp_path, one, other[::-1].copy())


# --- modules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "shards", "file", "npz", "checkpoint"])
def test_a_module_loads_from_a_path(tmp_path: Path, device: str, kind: str) -> None:
    module, x, y, runtime = launched(device)
    given = module_weights()
    source: object = f"{tmp_path}/model/"
    if kind == "shards":
        source = write_folder(
            tmp_path, {f"{i}.safetensors": {n: given[n]} for i, n in enumerate(given)}
        )
    elif kind == "npz":
        source = tmp_path / "model.npz"
        np.savez(source, **given)  # type: ignore[arg-type]  # arrays by name
    else:
        source = tmp_path / "model.st" if kind == "file" else source
        ark.save(given, str(source))
    if kind == "checkpoint":
        source = open_checkpoint(str(source))
    assert module.load_state_dict(source) == ([], [])  # type: ignore[arg-type]  # one of many
    data = np.arange(8).reshape(4, 2)
    x.from_numpy(data)
    runtime.run()
    one, two = (w.astype(np.float64) for w in given.values())
    np.testing.assert_array_equal(y.to_numpy(), np.maximum(data @ one, 0) @ two * 2)
    runtime.close()


def test_memory_that_only_copies_reach_is_written_by_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, _, _ = launched()
    write_shard(tmp_path / "x", module_weights())
    view = Arenas.view
    memory = type("Copies", (Arenas,), {"view": lambda self, v: np.array(view(self, v))})
    binding = module.weight_1.model.binding
    assert binding is not None
    session = binding.session
    arenas = session.memory
    monkeypatch.setattr(session, "_arenas", memory(arenas.plan, arenas.memory, arenas.peers))
    monkeypatch.setattr(memory, "write", lambda self, v, a: arenas.write(v, a))
    module.load_state_dict(tmp_path / "x")
    for name, array in module.state_dict().items():
        np.testing.assert_array_equal(array, module_weights()[name])


def test_a_path_that_does_not_fit_names_everything_and_loads_nothing(tmp_path: Path) -> None:
    module, _, _, _ = launched()
    given = module_weights()
    given["weight_1"] = given["weight_1"].T.astype(np.float32).copy()
    ark.save(given | {"more": given["weight_1"]}, f"{tmp_path}/model/")
    with pytest.raises(ark.StateDictError) as caught:
        module.load_state_dict(tmp_path / "model")
    assert str(caught.value).splitlines() == [
        "load_state_dict: nothing was loaded into Outer:",
        "  unexpected: more",
        "  wrong shape: weight_1 is (2, 3), found (3, 2) (transposed?)",
        f"  in {tmp_path / 'model'}",
    ]
    assert not any(array.any() for array in module.state_dict().values())


def test_a_path_may_be_loaded_in_part_and_cast(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, _, _, runtime = launched()
    array = module_weights()["weight_1"].astype(np.float64)
    ark.save({"model.weight_1": array, "model.b": array, "x": array}, tmp_path / "x")
    with caplog.at_level(logging.WARNING, "ark_dist"):
        result = module.load_state_dict(tmp_path / "x", strict=False, prefix="model.", cast=True)
    assert result == (["model.submodule.weight_2"], ["model.b"])
    assert caplog.messages == ["load_state_dict: Outer has no model.b; skipped"]
    np.testing.assert_array_equal(module.weight_1.to_numpy(), array)
    with pytest.raises(ark.LifecycleError, match=r"1 weights were never written: Inner\.weight_2"):
        runtime.run()


def test_a_path_with_nothing_is_plainly_missing(tmp_path: Path) -> None:
    module, _, _, _ = launched()
    with pytest.raises(FileNotFoundError):
        module.load_state_dict(tmp_path / "nothing")


# --- progress ---------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_once_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    for silent_s, is_seen in ((60.0, False), (0.0, True)):
        terminal = Terminal()
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setattr(progress, "SILENT_S", silent_s)
        with shown_progress("loading weights", 10, True) as advance:
            advance(4)
            advance(6)
        assert ("loading weights" in terminal.getvalue()) == is_seen


def test_elsewhere_there_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for every_s, is_shown, lines in (
        (0.0, True, ["loading weights: 4 of 10 MB", "loading weights: 10 of 10 MB"]),
        (60.0, True, []),
        (0.0, False, []),
    ):
        caplog.clear()
        monkeypatch.setattr("sys.stderr", io.StringIO())
        monkeypatch.setattr(progress, "LINE_EVERY_S", every_s)
        with (
            caplog.at_level(logging.INFO, "ark_dist"),
            shown_progress("loading weights", 10_000_000, is_shown) as advance,
        ):
            advance(4_000_000)
            advance(6_000_000)
        assert caplog.messages == lines
