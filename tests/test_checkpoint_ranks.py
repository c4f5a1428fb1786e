"""Ranks load their parts of one checkpoint, and save one together; all raise the same error."""

import copy
import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import ark_dist as ark
from ark_dist.checkpoint import progress
from ark_dist.checkpoint.agree import ALONE, ranks_of
from ark_dist.checkpoint.reader import Checkpoint
from ark_dist.comm.communicator import Communicator
from ark_dist.core.shape import Box
from ark_dist.serialize import RankedStateDict
from tests.cut_models import MESHES, Cut, cut_model, cut_weights, expected, result_of
from tests.rank_threads import on_ranks

Work = Callable[[Cut, ark.Executor], object]
TWO = {"tp": 2}


def size_of(axes: Mapping[str, int]) -> int:
    return int(np.prod(list(axes.values())))


def on_cut(axes: Mapping[str, int], work: Work) -> list[object]:
    """Do something with a Cut on each of its ranks; return what each returned or raised."""

    def run(communicator: Communicator) -> object:
        with cut_model(communicator, axes) as (module, exe):
            try:
                return work(module, exe)
            except Exception as error:
                return error

    return on_ranks(size_of(axes), run)


def only_error(results: list[object]) -> Exception:
    """The error that all ranks raised."""
    first = results[0]
    assert isinstance(first, Exception), results
    assert {(type(r), str(r)) for r in results} == {(type(first), str(first))}
    return first


def is_right(state: Mapping[str, object], seed: int = 0) -> bool:
    return state.keys() == cut_weights().keys() and all(
        np.array_equal(np.asarray(state[name]), array) for name, array in cut_weights(seed).items()
    )


@pytest.mark.parametrize("kind", ["folder", "file", "npz", "dict", "checkpoint"])
@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_a_cut_module_loads_and_runs(tmp_path: Path, axes: dict[str, int], kind: str) -> None:
    if kind == "npz":
        np.savez(tmp_path / "model", **cut_weights())  # type: ignore[arg-type]  # arrays by name
    elif kind != "dict":
        ark.save(cut_weights(), f"{tmp_path}/model{'' if kind == 'file' else '/'}")
    path = tmp_path / ("model.npz" if kind == "npz" else "model")
    source: dict[str, Callable[[], object]] = {
        "dict": cut_weights,
        "checkpoint": lambda: ark.open_checkpoint(path),
    }

    def work(module: Cut, exe: ark.Executor) -> object:
        given = source.get(kind, lambda: path)()
        assert module.load_state_dict(given) == ([], [])  # type: ignore[arg-type]  # one of many
        return result_of(module, exe)

    for y in on_cut(axes, work):
        assert isinstance(y, np.ndarray), y
        # 14 fp32 products after 10, each within an ulp of values below 100.
        np.testing.assert_allclose(y, expected(cut_weights()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loaders", MESHES, ids=str)
@pytest.mark.parametrize("savers", MESHES, ids=str)
def test_what_any_number_of_ranks_saved_any_number_loads(
    tmp_path: Path, savers: dict[str, int], loaders: dict[str, int]
) -> None:
    def save(module: Cut, exe: ark.Executor) -> object:
        module.load_state_dict(cut_weights())
        module.save(tmp_path / "model")
        return None

    def load(module: Cut, exe: ark.Executor) -> object:
        module.load_state_dict(tmp_path / "model")
        return module.state_dict()

    assert on_cut(savers, save) == [None] * size_of(savers)
    for state in on_cut(loaders, load):
        assert isinstance(state, dict), state
        assert is_right(state)
        assert state["head"] is state["second"]
    with ark.open_checkpoint(tmp_path / "model", verify=True) as checkpoint:
        assert len(checkpoint.tied) == 1


@pytest.mark.parametrize("path", ["model/", "model.st"])
def test_all_ranks_save_what_state_dict_gave_them(tmp_path: Path, path: str) -> None:
    def work(module: Cut, exe: ark.Executor) -> object:
        module.load_state_dict(cut_weights())
        ark.save(module.state_dict(), f"{tmp_path}/{path}")
        return ark.load(f"{tmp_path}/{path}")  # it is there on every rank

    for state in on_cut({"dp": 2, "tp": 2}, work):
        assert isinstance(state, dict), state
        assert is_right(state)
        assert state["head"] is state["second"]
    assert len([*tmp_path.iterdir()]) == 1


def test_a_copy_of_a_state_dict_is_this_ranks_own(tmp_path: Path) -> None:
    def work(module: Cut, exe: ark.Executor) -> object:
        module.load_state_dict(cut_weights())
        state = module.state_dict()
        assert isinstance(state, RankedStateDict)
        copies = [dict(state), state.copy(), copy.deepcopy(state)]
        copies.append(pickle.loads(pickle.dumps(state)))
        for plain in copies:
            assert type(plain) is dict
            assert is_right(plain)
        number = state.ranks.rank
        if number:
            ark.save(copies[-1], tmp_path / f"{number}.st")
        return None

    assert on_cut(TWO, work) == [None, None]
    assert is_right(ark.load(tmp_path / "1.st"))


def test_each_rank_reads_its_own_part_and_tied_names_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ark.save(cut_weights(), f"{tmp_path}/model/")
    reads: dict[str, list[Box]] = {}
    read = Checkpoint.read

    def noted(self: Checkpoint, name: str, box: Box, *rest: object, **options: object) -> None:
        reads.setdefault(self.tied.get(name, name), []).append(box)
        read(self, name, box, *rest, **options)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(Checkpoint, "read", noted)
    on_cut({"pp": 2, "tp": 2}, lambda module, exe: module.load_state_dict(tmp_path / "model"))
    assert sorted(reads["first"]) == [((0, 10), (0, 7)), ((0, 10), (7, 14))]
    assert sorted(reads["second"]) == [((0, 7), (0, 10)), ((7, 14), (0, 10))]
    assert reads["norm"] == [((0, 10),)] * 2
    assert reads["scale"] == [()] * 2


def test_a_run_needs_the_weights_that_the_rank_holds() -> None:
    def work(module: Cut, exe: ark.Executor) -> object:
        given = cut_weights()
        del given["scale"]
        result = module.load_state_dict(given, strict=False)
        assert result.missing_keys == ["scale"]
        exe.launch()
        exe.run(1)
        return "runs"

    first, _, third, _ = on_cut({"pp": 2, "tp": 2}, work)
    assert first == "runs"  # the other stage has it
    assert isinstance(third, ark.LifecycleError)
    assert "1 weights were never written: Cut.scale" in str(third)


@pytest.mark.parametrize("is_path", [True, False])
def test_what_does_not_fit_is_told_by_all_ranks(tmp_path: Path, is_path: bool) -> None:
    given = {name: array for name, array in cut_weights().items() if name != "norm"}
    given["first"] = given["first"].T.copy()
    given["more"] = np.zeros(3, np.float32)
    if is_path:
        ark.save(given, f"{tmp_path}/model/")

    def work(module: Cut, exe: ark.Executor) -> object:
        try:
            module.load_state_dict(tmp_path / "model" if is_path else given)
        finally:
            assert not any(array.any() for array in module.state_dict().values())
        return None

    error = only_error(on_cut({"pp": 2, "tp": 2}, work))
    assert isinstance(error, ark.StateDictError)
    for line in (
        "missing: norm",
        "unexpected: more",
        "wrong shape: first is (10, 14), found (14, 10) (transposed?)",
    ):
        assert f"\n  {line}" in str(error)


def test_a_file_that_one_rank_alone_does_not_find_is_missed_by_all(tmp_path: Path) -> None:
    ark.save(cut_weights(), f"{tmp_path}/0/")

    def work(module: Cut, exe: ark.Executor) -> object:
        return module.load_state_dict(tmp_path / str(ark.rank()))

    error = only_error(on_cut(TWO, work))
    assert isinstance(error, FileNotFoundError)
    assert str(error).startswith("rank 1: ")


def test_arrays_that_do_not_fit_on_one_rank_are_loaded_on_none() -> None:
    def work(module: Cut, exe: ark.Executor) -> object:
        given = cut_weights()
        if ark.rank():
            given["norm"] = given["norm"][:3]
        try:
            module.load_state_dict(given)
        finally:
            assert not any(array.any() for array in module.state_dict().values())
        return None

    error = only_error(on_cut(TWO, work))
    assert isinstance(error, ark.StateDictError)
    assert "rank 1: load_state_dict: nothing was loaded into Cut:" in str(error)
    assert "wrong shape: norm is (10,), found (3,)" in str(error)


def test_checksums_are_compared_when_asked(tmp_path: Path) -> None:
    ark.save(cut_weights(), f"{tmp_path}/model/")
    (path,) = (tmp_path / "model").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    def load(is_verified: bool) -> list[object]:
        return on_cut(
            TWO, lambda module, exe: module.load_state_dict(tmp_path / "model", verify=is_verified)
        )

    assert load(False) == [([], [])] * 2
    error = only_error(load(True))
    assert isinstance(error, ark.ShardCorruptError)
    assert "with sha256" in str(error)
    results = on_cut(TWO, lambda module, exe: module.load_state_dict(cut_weights(), verify=True))
    assert "verify=True wants a folder that ark_dist saved" in str(only_error(results))


def test_paths_that_differ_between_ranks_are_refused(tmp_path: Path) -> None:
    def work(module: Cut, exe: ark.Executor) -> object:
        state = module.state_dict()
        with pytest.raises(ValueError, match=r"rank 0 was given the path .*, rank 1 "):
            module.save(f"{tmp_path}/{ark.rank()}/")
        ark.save(state, f"{tmp_path}/{ark.rank()}.st")
        return None

    error = only_error(on_cut(TWO, work))
    assert isinstance(error, ValueError)
    assert "save dict(state_dict) on each rank alone" in str(error)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("path", ["gone/model/", "gone/model.st"])
def test_a_failure_of_rank_0_in_save_is_raised_by_all(tmp_path: Path, path: str) -> None:
    def work(module: Cut, exe: ark.Executor) -> object:
        ark.save(module.state_dict(), f"{tmp_path}/{path}")
        return None

    error = only_error(on_cut(TWO, work))
    assert isinstance(error, ark.CheckpointError)
    assert "rank 0: " in str(error)
    assert "can't be saved" in str(error)


def test_calls_at_the_wrong_time_are_refused_on_all_ranks(tmp_path: Path) -> None:
    def work(module: Cut, exe: ark.Executor) -> object:
        exe.close()
        with pytest.raises(ark.LifecycleError):
            module.state_dict()
        with pytest.raises(ark.LifecycleError):
            module.load_state_dict(cut_weights())
        module.save(tmp_path / "model")
        return None

    assert isinstance(only_error(on_cut(TWO, work)), ark.LifecycleError)


def test_progress_is_shown_by_rank_0_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ark.save(cut_weights(), f"{tmp_path}/model/")
    shown: list[bool] = []
    first = progress.shown_progress

    def noted(title: str, total_bytes: int, is_shown: bool) -> object:
        shown.append(is_shown)
        return first(title, total_bytes, is_shown)

    monkeypatch.setattr("ark_dist.checkpoint.loader.shown_progress", noted)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    on_cut({"tp": 3}, lambda module, exe: module.load_state_dict(tmp_path / "model"))
    assert sorted(shown) == [False, False, True]


def test_waiting_for_ranks_takes_as_long_as_their_bytes() -> None:
    def work(communicator: Communicator) -> list[str | None]:
        ranks = ranks_of(communicator, 40_000_000, 60.0)
        assert ranks.timeout_s == 62.0
        assert (ranks.rank, ranks.world_size) == (communicator.rank, 2)
        assert ranks.agree(None) == [None, None]
        return ranks.agree("" if ranks.is_first else "\udc80é")

    assert on_ranks(2, work) == [["", "\udc80é"]] * 2
    assert ranks_of(None, 1, 1.0) is ALONE
