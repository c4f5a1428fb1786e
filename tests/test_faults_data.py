"""Fault rows 61 and 62: plans that lie about other ranks, and bytes from them that are no use."""

import ast
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist import world
from ark_dist.comm.communicator import Communicator
from ark_dist.core.builder import GraphBuilder
from ark_dist.core.errors import ArkError, CommError, PlanError
from ark_dist.core.graph import Graph, Node, Raise
from ark_dist.core.plan import Plan
from ark_dist.core.verify_plan import verify_plan
from ark_dist.launch.devices.numpy import NumpyDevice
from ark_dist.launch.peer_data import read_exports, read_names, read_rank, read_said
from ark_dist.launch.proxy import Proxy
from tests.mpi import ROOT
from tests.rank_cases import plans_of
from tests.rank_threads import on_ranks

WINDOW_BYTES = 4096
SEEDS = 400


def summing(rank: int) -> Graph:
    builder = GraphBuilder("sum", rank=rank, world_size=2)
    builder.apply("all_reduce", [builder.tensor((8,), "fp32", name="x")])
    return builder.freeze()


def with_peer(plan: Plan, **changes: object) -> Plan:
    """The plan with its first buffer on another rank changed."""
    index = next(b.id for b in plan.buffers if b.kind == "peer")
    buffers = list(plan.buffers)
    buffers[index] = replace(buffers[index], **changes)  # type: ignore[arg-type]  # any field
    return replace(plan, buffers=tuple(buffers))


def with_raises(plan: Plan, change: Callable[[Raise], Raise]) -> Plan:
    """The plan with all that it raises changed."""

    def changed(node: Node) -> Node:
        return replace(node, raises=tuple(change(item) for item in node.raises))

    methods = (
        replace(method, nodes=tuple(changed(node) for node in method.nodes))
        for method in plan.methods
    )
    return replace(plan, methods=tuple(methods))


def twice(plan: Plan) -> Plan:
    """The plan with one more buffer of a name that others know."""
    exported = next(b for b in plan.buffers if b.export and b.kind != "peer")
    index = next(b.id for b in plan.buffers if not b.export)
    buffers = list(plan.buffers)
    buffers[index] = replace(buffers[index], export=exported.export)
    return replace(plan, buffers=tuple(buffers))


EVIL: dict[str, tuple[Callable[[Plan], Plan], str]] = {
    "peer that is not there": (lambda p: with_peer(p, peer=7), "rank 7, which shares no memory"),
    "unknown name": (lambda p: with_peer(p, export="nothing"), "nothing of that name"),
    "flag of a rank that is not there": (
        lambda p: with_raises(p, lambda r: replace(r, rank=9)),
        "rank 9, which shares no memory",
    ),
    "unknown flag": (
        lambda p: with_raises(p, lambda r: replace(r, flag="no:sum.ready.0")),
        "which waits for no such flag",
    ),
    "name used twice": (twice, "two buffers that others know as"),
}


@pytest.mark.parametrize("name", EVIL)
def test_row_61_a_plan_that_lies_about_other_ranks_is_refused(name: str) -> None:
    change, text = EVIL[name]
    plans = plans_of(summing, 2)

    def work(communicator: Communicator) -> None:
        plan = change(plans[communicator.rank])
        with pytest.raises((PlanError, CommError), match=text):
            NumpyDevice(plan, communicator=communicator).allocate()

    on_ranks(2, work)


def test_row_61_verify_refuses_a_peer_outside_of_the_world() -> None:
    with pytest.raises(PlanError, match="lies on rank 7 of 2"):
        verify_plan(with_peer(plans_of(summing, 2)[0], peer=7))


# Row 62.


def test_row_62_no_message_is_pickled() -> None:
    objects = {"send", "recv", "bcast", "isend", "irecv", "gather", "allgather", "alltoall"}
    objects |= {"scatter", "reduce", "allreduce", "sendrecv", "exscan", "scan"}
    for folder in ("comm", "launch"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                assert not {"pickle", "marshal", "shelve", "dill"} & {*names}, path
                if isinstance(node, ast.Attribute) and node.attr in objects:
                    # mpi4py's methods with small letters are those that pickle.
                    assert "MPI" not in ast.unparse(node.value), (path, node.lineno)
                    if path == Path(ROOT, "comm", "mpi.py"):
                        assert not ast.unparse(node.value).endswith("comm"), node.lineno


EXPORTS = {"flags": {"a:sum.ready.1": [64, 64]}, "exports": {"x": [128, 32]}}
SAID = {
    "version": "1",
    "methods": ["forward"],
    "calls": [["forward/0-1#0", [0, 1], "all_reduce", "fp32[8]", "sum"]],
}
READERS: dict[str, tuple[Callable[[bytes], object], object]] = {
    "exports": (lambda data: read_exports(data, 1, WINDOW_BYTES), EXPORTS),
    "said": (lambda data: read_said(data, 1, 2), SAID),
    "names": (lambda data: read_names(data, 1), ["a:sum", "b:sum"]),
}


@pytest.mark.parametrize("name", READERS)
def test_row_62_changed_bytes_are_read_or_refused(name: str) -> None:
    read, value = READERS[name]
    good = msgpack.packb(value)
    read(good)
    for seed in range(SEEDS):
        rng = random.Random(seed)
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            match rng.randrange(3):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.randint(1, 9)]
                case _:
                    data[at:at] = rng.randbytes(rng.randint(1, 9))
            data = data or bytearray(b"\0")
        try:
            read(bytes(data))
        except CommError as error:
            assert str(error).startswith("rank 1 sent what can't be read"), f"seed {seed}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("exports", {"flags": {}}),
        ("exports", {"flags": {}, "exports": {"x": [0, WINDOW_BYTES + 1]}}),
        ("exports", {"flags": {}, "exports": {"x": [-8, 8]}}),
        ("exports", {"flags": {}, "exports": {"x": [3, 8]}}),
        ("exports", {"flags": {"f": [0]}, "exports": {}}),
        ("exports", {"flags": {"f": [True, 8]}, "exports": {}}),
        ("exports", {"flags": [], "exports": {}}),
        ("said", {**SAID, "calls": [["k", [0, 9], "all_reduce", "x", "y"]]}),
        ("said", {**SAID, "calls": [["k", [1, 0], "all_reduce", "x", "y"]]}),
        ("said", {**SAID, "calls": [["k", [0], "all_reduce", "x", "y"]]}),
        ("said", {**SAID, "calls": [["k"]]}),
        ("said", {**SAID, "version": 3}),
        ("names", {"a": 1}),
        ("names", [1]),
    ],
)
def test_row_62_what_can_not_be_is_refused(name: str, value: object) -> None:
    with pytest.raises(CommError, match=r"rank 1 sent what can't be read: .*same ark_dist"):
        READERS[name][0](msgpack.packb(value))


@pytest.mark.parametrize("data", [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"", b"\xc1"])
def test_row_62_bombs_are_refused(data: bytes) -> None:
    for read, _ in READERS.values():
        with pytest.raises(CommError, match="sent what can't be read"):
            read(data)


@pytest.mark.parametrize("data", [b"", b"-1", b"2", b"x", b"\xb2", b"0" * 99])
def test_row_62_the_number_of_a_rank_is_a_number(data: bytes) -> None:
    with pytest.raises(CommError, match="is none of 2 ranks"):
        read_rank(data, 1, 2)


# The proxy.


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_an_error_of_a_proxy_is_raised_everywhere_and_a_new_launch_works(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ark_dist as ark
    from ark_dist.scheduler.plan import PlanOptions

    steps = Proxy.all_reduce
    failing = {1}

    def broken(self: Proxy, order: object) -> object:
        if self._rank in failing:
            failing.clear()
            raise ValueError("of the proxy")
        return steps(self, order)  # type: ignore[arg-type]  # as it came

    monkeypatch.setitem(
        __import__("ark_dist.launch.proxy", fromlist=["_STEPS"])._STEPS, "all_reduce", broken
    )

    def work(communicator: Communicator) -> str:
        with world.use(communicator):
            model = ark.Model()
            x = model.tensor((5,), ark.FP32)
            total = model.all_reduce(x)
            options = PlanOptions(transport="proxy")
            with ark.Executor(
                model=model, device=device, workers=1, timeout_s=20.0, options=options
            ) as exe:
                exe.compile()
                exe.launch()
                x.from_numpy(np.ones(5, np.float32))
                exe.run()
                with pytest.raises(ArkError) as error:
                    exe.wait()
                exe.launch()
                x.from_numpy(np.full(5, 2, np.float32))
                exe.run(3)
                assert exe.wait() == 3
                np.testing.assert_array_equal(total.to_numpy(), 4)
            return str(error.value)

    first, second = on_ranks(2, work)
    assert "rank 1 failed: rank 1: the proxy failed: ValueError: of the proxy" in first
    assert second.startswith("rank 1: the proxy failed: ValueError: of the proxy")
