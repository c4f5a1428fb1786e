"""Packed weights in memory: what the host reads and writes is what row-major ones would hold."""

import tracemalloc
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import ark_dist as ark
from ark_dist.comm.communicator import Communicator
from ark_dist.core.builder import GraphBuilder, whole_view
from ark_dist.core.op import Array
from ark_dist.core.packing import unpack
from ark_dist.core.plan import Plan
from ark_dist.core.shape import row_major_strides
from ark_dist.core.target import Target, cpu_target
from ark_dist.core.view import Region, View
from ark_dist.launch.memory import Arenas, allocate, row_major
from ark_dist.launch.rank_memory import RankMemory
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.cut_models import MESHES, cut_model, cut_weights, expected, result_of
from tests.plan_models import RandomGraph, block, eager, execute, mlp, two_methods
from tests.rank_threads import on_ranks
from tests.test_packed_plans import PACKED
from tests.test_packing import PLAIN, TURNED, bits, random_bits, random_view

MEGABYTE = 2**20


def allocated_packed(
    plan: Plan, shared: RankMemory | None = None, *, is_packed: bool = True
) -> Arenas:
    """Arenas as a CPU has them, whoever asks."""
    return allocate(plan, shared)


@pytest.fixture(params=["packed", "row-major"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Let the numpy device have plans for a CPU with packed weights, in either kind of memory."""

    def target_for(*_args: object) -> Target:
        return cpu_target(2)

    monkeypatch.setattr("ark_dist.launch.open.target_for", target_for)
    monkeypatch.setattr("ark_dist.launch.open.PlanOptions", partial(PlanOptions, is_packed=True))
    if request.param == "packed":
        monkeypatch.setattr("ark_dist.launch.devices.numpy.allocate", allocated_packed)
        monkeypatch.setattr("ark_dist.launch.rank_link.allocate", allocated_packed)
    yield request.param


def assert_packed(memory: str, plan: Plan, arenas: Arenas) -> None:
    """The plan has packed weights, and the memory is of the kind that the test asked for."""
    assert any(buffer.packing for buffer in plan.buffers)
    assert any(buffer.packing for buffer in arenas.plan.buffers) == (memory == "packed")


def weights_plan(*, is_large: bool = False) -> Plan:
    """Weights that are packed both ways, a batch of them, and one that is not packed."""
    builder = GraphBuilder("weights")
    size = 1024 if is_large else 45
    x = builder.tensor((3, size), "bf16", name="x")
    shapes = {"plain": (size, 50), "turned": (70, size), "batch": (2, 3, size, 33)}
    for name, shape in shapes.items():
        w = builder.parameter(shape, "bf16", name=name)
        builder.apply("matmul", [x, w], TURNED if name == "turned" else PLAIN)
    builder.apply("relu", [builder.parameter((20, 17), "bf16", name="other")])
    if is_large:
        builder.apply("matmul", [x, builder.parameter((size, 4096), "bf16", name="large")], PLAIN)
    return make_plan(builder.freeze(), eager(cpu_target(2)), PACKED)


# --- arenas -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_views_of_packed_weights_hold_what_was_written(seed: int, is_packed: bool) -> None:
    rng = np.random.default_rng(seed)
    plan = weights_plan()
    arenas = allocate(plan, is_packed=is_packed)
    mirror = {b.id: np.zeros(b.shape, b.dtype.numpy) for b in plan.buffers if b.kind == "weight"}
    for _ in range(60):
        buffer = plan.buffers[int(rng.choice([*mirror]))]
        view = random_view(rng, buffer.dtype, buffer.shape)
        view = View(buffer.id, *(getattr(view, n) for n in ("dtype", "offset", "shape", "strides")))
        if rng.random() < 0.2:
            view = whole_view(buffer)
        if rng.random() < 0.1:
            shape = (mirror[buffer.id].size,)
            view = View(buffer.id, buffer.dtype, 0, shape, row_major_strides(shape))
        last = sum((n - 1) * s for n, s in zip(view.shape, view.strides, strict=True))
        if view.offset + last >= mirror[buffer.id].size or len(view.shape) > 8:
            continue
        if all(s > 0 for s in view.strides) and is_distinct(view):
            value = random_bits(rng, view.shape, buffer.dtype)
            arenas.write(view, value)
            seen(mirror[buffer.id], view)[...] = value
        np.testing.assert_array_equal(
            bits(arenas.read(view)), bits(seen(mirror[buffer.id], view)), err_msg=f"{seed=} {view}"
        )
        np.testing.assert_array_equal(bits(arenas.view(view)), bits(arenas.read(view)))
    for number, value in mirror.items():
        np.testing.assert_array_equal(
            bits(arenas.read(whole_view(plan.buffers[number]))), bits(value)
        )
        box = tuple((size // 3, size) for size in value.shape)
        part = value[tuple(slice(a, b) for a, b in box)]
        np.testing.assert_array_equal(bits(arenas.region(Region(number, box))), bits(part))


def seen(array: Array, view: View) -> Array:
    steps = tuple(step * array.itemsize for step in view.strides)
    return np.lib.stride_tricks.as_strided(array.reshape(-1)[view.offset :], view.shape, steps)


def is_distinct(view: View) -> bool:
    """Whether no element is there twice."""
    index = np.indices(view.shape)
    numbers = sum(i * s for i, s in zip(index, view.strides, strict=True))
    return len(np.unique(numbers)) == np.asarray(numbers).size


def test_views_of_packed_weights_are_copies_that_can_not_be_written() -> None:
    plan = weights_plan()
    plain = whole_view(next(b for b in plan.buffers if b.name == "plain"))
    other = whole_view(next(b for b in plan.buffers if b.name == "other"))
    arenas = allocate(plan)
    assert not arenas.view(plain).flags.writeable
    assert arenas.view(other).flags.writeable
    copy = arenas.read(plain)
    copy[...] = 1
    assert not arenas.read(plain).any()
    assert allocate(plan, is_packed=False).view(plain).flags.writeable


def test_an_arena_holds_panels_that_end_in_zeros() -> None:
    plan = weights_plan()
    turned = next(b for b in plan.buffers if b.name == "turned")
    arenas = allocate(plan)
    value = random_bits(np.random.default_rng(0), turned.shape, turned.dtype)
    for data in (arenas.store, lambda number, v: arenas.write(whole_view(turned), v)):
        data(turned.id, value)
        stored = arenas.buffer(turned.id)
        assert stored.shape == (5, 23, 16, 2) == turned.stored_shape
        np.testing.assert_array_equal(bits(unpack("panels_t", stored, turned.shape)), bits(value))
        assert not bits(stored[4, :, 6:]).any() and not bits(stored[:, 22, :, 1]).any()


def test_row_major_plans_have_room_for_all_weights() -> None:
    plan = weights_plan()
    found = row_major(plan)
    assert not any(buffer.packing for buffer in found.buffers)
    assert row_major(found) is found
    ends = [
        (place.offset, place.offset + buffer.size_bytes)
        for buffer, place in zip(found.buffers, found.places, strict=True)
        if place.arena == "weights"
    ]
    starts = [start for start, _ in ends]
    assert starts == sorted(starts)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(ends))
    assert ends[-1][1] <= found.arena_bytes[0]
    assert found.arena_bytes[1:] == plan.arena_bytes[1:]


def test_writing_a_whole_weight_takes_no_second_copy() -> None:
    plan = weights_plan(is_large=True)
    large = next(b for b in plan.buffers if b.name == "large")
    arenas = allocate(plan)
    value = np.ones((1024, 2 * 4096), large.dtype.numpy)[:, ::2]
    tracemalloc.start()
    try:
        arenas.write(whole_view(large), value)
        written = tracemalloc.get_traced_memory()[1]
        arenas.view(whole_view(large))
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written < MEGABYTE
    assert read < large.size_bytes + MEGABYTE


# --- devices and sessions -----------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["packed", "row-major"], indirect=True)
def test_the_numpy_device_runs_packed_plans(memory: str) -> None:
    randoms = (RandomGraph(seed).grow(has_stop=False) for seed in range(8))
    graphs = [mlp(48), two_methods(), block(), *randoms]
    packed = 0
    for graph in graphs:
        target = eager(cpu_target(2))
        plan = make_plan(graph, target, PACKED)
        packed += sum(bool(buffer.packing) for buffer in plan.buffers)
        plain = make_plan(graph, target, PlanOptions(is_packed=False))
        assert execute(plan) == execute(plain), graph.name
    assert packed >= 7


class Tied(ark.Module):
    """A table that is also the head, one projection for three uses, and a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ark.Parameter(ark.tensor([37, 24], ark.BF16))
        self.qkv = ark.Parameter(ark.tensor([24, 96], ark.BF16))
        self.gain = ark.Parameter(ark.tensor([24], ark.BF16))

    def forward(self, index: ark.Tensor) -> ark.Tensor:
        x = ark.rmsnorm(ark.embedding(index, self.table), self.gain)
        q, k, v = (ark.matmul(x, ark.narrow(self.qkv, 1, 32 * i, 32)) for i in range(3))
        mixed = ark.narrow(ark.add(ark.mul(q, k), v), 1, 0, 24)
        return ark.matmul(mixed, self.table, transpose_other=True)


def tied_weights(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {"table": (37, 24), "qkv": (24, 96), "gain": (24,)}
    return {
        name: rng.standard_normal(shape).astype(ark.BF16.numpy) for name, shape in shapes.items()
    }


def same_bits(found: Mapping[str, object], given: Mapping[str, Array]) -> bool:
    return found.keys() == given.keys() and all(
        np.array_equal(bits(np.asarray(found[name])), bits(array)) for name, array in given.items()
    )


def running() -> tuple[Tied, ark.Tensor, ark.Tensor, ark.Runtime]:
    """A Tied with memory, its input, its output and the runtime."""
    runtime = ark.Runtime(device="numpy")
    index = ark.tensor([5], ark.INT32)
    module = Tied()
    result = module(index)
    runtime.launch()
    return module, index, result, runtime


def result_bits(index: ark.Tensor, result: ark.Tensor, runtime: ark.Runtime) -> bytes:
    index.from_numpy(np.array([3, 36, 0, 17, 36], np.int32))
    runtime.run()
    return result.to_numpy().tobytes()


@pytest.mark.parametrize("source", ["dict", "folder", "file"])
def test_a_state_dict_comes_back_and_computes(tmp_path: Path, memory: str, source: str) -> None:
    given = tied_weights(1)
    module, index, result, runtime = running()
    session = runtime.executor._session
    assert_packed(memory, session.plan, session.memory)
    path = f"{tmp_path}/model" + "/" * (source == "folder")
    if source != "dict":
        ark.save(given, path)
    assert module.load_state_dict(given if source == "dict" else path) == ([], [])
    assert same_bits(module.state_dict(), given)
    module.save(f"{tmp_path}/again/")
    assert same_bits(ark.load(f"{tmp_path}/again/"), given)
    found = result_bits(index, result, runtime)
    runtime.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ark_dist.launch.open.PlanOptions", partial(PlanOptions, is_packed=False))
        module, index, result, runtime = running()
        assert not any(buffer.packing for buffer in runtime.executor._session.plan.buffers)
        module.load_state_dict(given)
        assert result_bits(index, result, runtime) == found
        runtime.close()


def test_parts_of_a_weight_are_written_and_read(memory: str) -> None:
    module, _, _, runtime = running()
    given = tied_weights(2)
    module.table.from_numpy(given["table"])
    module.gain.from_numpy(given["gain"])
    for start in (64, 0, 40):
        stop = min(start + 40, 96)
        part = ark.narrow(module.qkv, 1, start, stop - start)
        part.from_numpy(given["qkv"][:, start:stop])
        np.testing.assert_array_equal(bits(part.to_numpy()), bits(given["qkv"][:, start:stop]))
    assert same_bits(module.state_dict(), given)
    turned = ark.transpose(module.qkv, (1, 0))
    np.testing.assert_array_equal(bits(turned.to_numpy()), bits(given["qkv"].T))
    turned.from_numpy(given["qkv"][::-1].T)
    np.testing.assert_array_equal(bits(module.qkv.to_numpy()), bits(given["qkv"][::-1]))
    runtime.close()


@pytest.mark.parametrize("axes", MESHES[1:], ids=str)
def test_ranks_load_their_slices_and_save_together(
    tmp_path: Path, axes: dict[str, int], memory: str
) -> None:
    given = cut_weights()
    ark.save(given, f"{tmp_path}/given/")

    def work(communicator: Communicator) -> tuple[dict[str, Array], Array]:
        with cut_model(communicator, axes) as (module, exe):
            assert_packed(memory, exe._session.plan, exe._session.memory)
            module.load_state_dict(f"{tmp_path}/given/")
            module.save(f"{tmp_path}/saved/")
            once = dict(module.state_dict())
            module.load_state_dict(once)
            for name, part in (("first", module.first), ("second", module.second)):
                np.testing.assert_array_equal(part.to_numpy(), given[name])
            return dict(module.state_dict()), result_of(module, exe)

    results = on_ranks(int(np.prod(list(axes.values()))), work)
    for state, result in results:
        assert same_bits(state, given)
        np.testing.assert_allclose(result.astype(np.float64), expected(given), rtol=1e-4)
    saved = ark.load(f"{tmp_path}/saved/")
    assert same_bits({name: saved[name] for name in given}, given)
