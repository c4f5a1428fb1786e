"""Communication operators refuse what can't be, and say what would work."""

import re
from collections.abc import Callable

import pytest

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.groups import flat_parts
from tests.test_communication_ops import ROWS, builder

Build = Callable[[GraphBuilder, Value], object]
REFUSALS: dict[str, tuple[Build, type[Exception], str]] = {
    "reduction": (
        lambda b, x: b.apply("all_reduce", [x], {"reduce": "prod"}),
        ValueError,
        "all_reduce: reduce is 'prod'; it must be sum, max, min, mean",
    ),
    "bool sum": (
        lambda b, x: b.apply("all_reduce", [b.tensor(2, "bool")]),
        TypeError,
        'all_reduce: there is no "sum" of bool; use fp32, fp16, bf16, int32, uint32, int8, uint8, '
        'or cast the tensor; "max" is any, "min" is all',
    ),
    "unknown rank": (
        lambda b, x: b.apply("all_reduce", [x], {"ranks": (1, 4)}),
        ValueError,
        "all_reduce: ranks is (1, 4); there are 4 ranks, 0 to 3",
    ),
    "negative rank": (
        lambda b, x: b.apply("barrier", [x], {"ranks": (-1, 1)}),
        ValueError,
        "barrier: ranks is (-1, 1); there are 4 ranks, 0 to 3",
    ),
    "duplicate rank": (
        lambda b, x: b.apply("all_gather", [x], {"ranks": (1, 1)}),
        ValueError,
        "all_gather: ranks is (1, 1); name each rank once",
    ),
    "unsorted ranks": (
        lambda b, x: b.apply("all_gather", [x], {"ranks": (2, 1)}),
        ValueError,
        "all_gather: ranks is (2, 1); sort them, pieces are in the order of the ranks",
    ),
    "without this rank": (
        lambda b, x: b.apply("all_to_all", [x], {"ranks": (0, 2)}),
        ValueError,
        "all_to_all: ranks is (0, 2), and this is rank 1; only ranks that take part build",
    ),
    "ranks": (
        lambda b, x: b.apply("barrier", [x], {"ranks": 1}),
        TypeError,
        "barrier: ranks is 1; it must be a sequence of integers",
    ),
    "root": (
        lambda b, x: b.apply("broadcast", [x], {"root": 4}),
        ValueError,
        "broadcast: root is 4; it must be one of the ranks, 0 to 3",
    ),
    "root outside": (
        lambda b, x: b.apply("broadcast", [x], {"root": 0, "ranks": (1, 2)}),
        ValueError,
        "broadcast: root is 0; it must be one of the ranks, (1, 2)",
    ),
    "axis": (
        lambda b, x: b.apply("all_gather", [x], {"axis": 2}),
        ValueError,
        "all_gather: axis 2 is out of range for 2 dimensions; use -2 to 1",
    ),
    "uneven pieces": (
        lambda b, x: b.apply("all_to_all", [x], {"axis": 1}),
        ValueError,
        "all_to_all: dimension 1 of (8, 6) does not divide among 4 ranks; cut another dimension",
    ),
    "uneven parts": (
        lambda b, x: b.apply("reduce_scatter", [x], {"axis": 1}),
        ValueError,
        "reduce_scatter: dimension 1 of (8, 6) does not divide among 4 ranks; say where to cut",
    ),
    "few cuts": (
        lambda b, x: b.apply("reduce_scatter", [x], {"cuts": (0, 4, 8)}),
        ValueError,
        "reduce_scatter: cuts is (0, 4, 8); it has 3 positions; 4 ranks need 5",
    ),
    "falling cuts": (
        lambda b, x: b.apply("reduce_scatter", [x], {"cuts": (0, 4, 3, 5, 8)}),
        ValueError,
        "reduce_scatter: cuts is (0, 4, 3, 5, 8); it must begin with 0 and never decrease",
    ),
    "late cuts": (
        lambda b, x: b.apply("all_gather", [x], {"cuts": (1, 4, 12, 13, 14)}),
        ValueError,
        "all_gather: cuts is (1, 4, 12, 13, 14); it must begin with 0 and never decrease",
    ),
    "short cuts": (
        lambda b, x: b.apply("reduce_scatter", [x], {"cuts": (0, 1, 2, 3, 4)}),
        ValueError,
        "reduce_scatter: cuts is (0, 1, 2, 3, 4); it ends at 4; the dimension has 8 positions",
    ),
    "no cuts": (
        lambda b, x: b.apply("all_gather", [x], {"cuts": 3}),
        TypeError,
        "all_gather: cuts is 3; it must be a sequence of integers",
    ),
    "another piece": (
        lambda b, x: b.apply("all_gather", [x], {"cuts": (0, 1, 3, 4, 5)}),
        ValueError,
        "all_gather: cuts is (0, 1, 3, 4, 5), so this rank has 2 positions; dimension 0 of its "
        "tensor (8, 6) has 8",
    ),
    "self-send": (
        lambda b, x: b.apply("send", [x], {"dst": 1}),
        ValueError,
        "send: dst is 1, which is this rank; use the tensor itself, or copy it",
    ),
    "dst": (
        lambda b, x: b.apply("send", [x], {"dst": 4}),
        ValueError,
        "send: dst is 4; there are 4 ranks, 0 to 3",
    ),
    "src": (
        lambda b, x: b.apply("recv", [], {"src": -1, "shape": (1,), "dtype": "fp32"}),
        ValueError,
        "recv: src is -1; there are 4 ranks, 0 to 3",
    ),
    "shape": (
        lambda b, x: b.apply("recv", [], {"src": 0, "shape": (-1,), "dtype": "fp32"}),
        ValueError,
        "recv: shape is (-1,); sizes must be 0 or more",
    ),
    "tag": (
        lambda b, x: b.apply("send", [x], {"dst": 0, "tag": 32768}),
        ValueError,
        "send: tag is 32768; it must be 0 to 32767",
    ),
    "no token": (
        lambda b, x: b.apply("send_done", [x]),
        ValueError,
        "send_done: the tensor is not the token of a send in this method that still has to be",
    ),
    "source": (
        lambda b, x: b.apply("redistribute", [x], {"source": (0, 8), "target": ()}),
        ValueError,
        "redistribute: source is (0, 8); 4 ranks' parts of 2 dimensions are 16 numbers",
    ),
    "part": (
        lambda b, x: b.apply(
            "redistribute", [x], {"source": flat_parts(ROWS), "target": flat_parts(ROWS)}
        ),
        ValueError,
        "redistribute: the tensor is (8, 6); this rank's part of source is ((2, 4), (0, 6))",
    ),
    "backwards": (
        lambda b, x: b.apply("redistribute", [x], {"source": (4, 2) * 8, "target": ()}),
        ValueError,
        "redistribute: source has",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_can_not_be_is_refused(name: str) -> None:
    build, error, text = REFUSALS[name]
    made = builder()
    x = made.tensor((8, 6), "fp32")
    with pytest.raises(error, match="^" + re.escape(text)):
        build(made, x)
    assert made.freeze().methods[0].nodes == ()


def test_alone_there_is_nobody_to_send_to() -> None:
    made = builder(0, 1)
    with pytest.raises(ValueError, match="send: dst is 1; there is one rank, 0; start several"):
        made.apply("send", [made.tensor(2, "fp32")], {"dst": 1})


@pytest.mark.parametrize(
    ("rank", "world_size", "error", "text"),
    [
        (2, 2, ValueError, "model 'm': rank is 2 and world_size is 2; rank must be 0 to world_s"),
        (0, 0, ValueError, "model 'm': rank is 0 and world_size is 0"),
        (0, 2**25, ValueError, "model 'm': world_size is 33554432; at most 16777216 ranks work"),
        ("0", 1, TypeError, "model 'm': rank is '0'; it must be an integer"),
        (0, True, TypeError, "model 'm': world_size is True; it must be an integer"),
    ],
)
def test_a_builder_is_one_of_its_ranks(
    rank: int, world_size: int, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=re.escape(text)):
        GraphBuilder("m", rank=rank, world_size=world_size)
