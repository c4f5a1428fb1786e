"""Rules that the records of communication operators share."""

from collections.abc import Callable, Sequence

from ark_dist.core.dtype import FLOATS, NUMBERS, UINT8
from ark_dist.core.groups import MAX_TAG, check_world, cuts_problem, members
from ark_dist.core.op import Argument, Array, Attrs, Op, Specs, register
from ark_dist.core.shape import Box, Shape
from ark_dist.core.target import Cost, Target
from ark_dist.core.view import Spec
from ark_dist.kernels.rules import int_attr

TOKEN = Spec((1,), UINT8)
# Reduction -> the dtypes that it makes sense for.
REDUCTIONS = {
    "sum": NUMBERS,
    "max": (*NUMBERS, "bool"),
    "min": (*NUMBERS, "bool"),
    "mean": FLOATS,
}
REDUCED_DTYPES = (*NUMBERS, "bool")

RANK = Argument("rank", "int", "the rank whose graph this is", None, source="builder")
WORLD = Argument("world", "int", "how many ranks there are", None, source="builder")
REDUCE = Argument("reduce", "str", '"sum", "max", "min" or "mean"', '"sum"')
RANKS = Argument("ranks", "Sequence[int]", "who takes part, increasing; () is all ranks", "()")
TAG = Argument("tag", "int", f"tells messages between two ranks apart, 0 to {MAX_TAG}", "0")


def communication(
    name: str,
    summary: str,
    arguments: tuple[Argument, ...],
    dtypes: tuple[str, ...],
    infer: Callable[[Specs, Attrs], Spec],
    *,
    is_public: bool = True,
) -> Op:
    """Register an operator that moves data between ranks; every node knows its rank and world."""

    def checked(specs: Specs, attrs: Attrs) -> Spec:
        check_world(name, attrs["rank"], attrs["world"])
        for spec in specs:
            if spec.dtype.name not in dtypes:
                raise TypeError(
                    f"{name}: dtype {spec.dtype} is not supported; use {', '.join(dtypes)}, "
                    "or cast the tensor"
                )
        return infer(specs, attrs)

    return register(
        Op(
            name=name,
            summary=summary,
            arguments=(*arguments, RANK, WORLD),
            dtypes=dtypes,
            infer=checked,
            view=None,
            in_boxes=_no_boxes,
            reference=_no_reference,
            tiles=_no_tiles,
            cost=_no_cost,
            sharding=None,
            localize=None,
            gradient=None,
            effect="communication",
            kernel=None,
            expand=None,
            parts=None,
            pieces=None,
            is_public=is_public,
        )
    )


def check_group(name: str, attrs: Attrs) -> int:
    """Return how many ranks take part; ValueError for a list that can't be."""
    ranks, rank, world = attrs["ranks"], int_attr(attrs, "rank"), int_attr(attrs, "world")
    if not isinstance(ranks, tuple) or any(type(r) is not int for r in ranks):
        raise TypeError(f"{name}: ranks is {ranks!r}; it must be a sequence of integers")
    if any(not 0 <= r < world for r in ranks):
        raise ValueError(f"{name}: ranks is {ranks}; {_existing(world)}")
    if len(set(ranks)) != len(ranks):
        raise ValueError(f"{name}: ranks is {ranks}; name each rank once")
    if list(ranks) != sorted(ranks):
        raise ValueError(
            f"{name}: ranks is {ranks}; sort them, pieces are in the order of the ranks"
        )
    if ranks and rank not in ranks:
        raise ValueError(
            f"{name}: ranks is {ranks}, and this is rank {rank}; "
            "only ranks that take part build the operator"
        )
    return len(members(attrs))


def check_reduction(name: str, attrs: Attrs, spec: Spec) -> None:
    """Raise unless the reduction exists and makes sense for the dtype."""
    reduce = attrs["reduce"]
    allowed = REDUCTIONS.get(reduce) if isinstance(reduce, str) else None
    if allowed is None:
        raise ValueError(f"{name}: reduce is {reduce!r}; it must be {', '.join(REDUCTIONS)}")
    if spec.dtype.name not in allowed:
        way_out = '; "max" is any, "min" is all' if spec.dtype.kind == "bool" else ""
        raise TypeError(
            f'{name}: there is no "{reduce}" of {spec.dtype}; use {", ".join(allowed)}, '
            f"or cast the tensor{way_out}"
        )


def cuts_attr(name: str, attrs: Attrs) -> tuple[int, ...]:
    """The attribute `cuts`; TypeError unless it is a list of integers."""
    cuts = attrs["cuts"]
    if not isinstance(cuts, tuple) or any(type(cut) is not int for cut in cuts):
        raise TypeError(f"{name}: cuts is {cuts!r}; it must be a sequence of integers")
    return cuts


def check_cuts(name: str, attrs: Attrs, count: int, axis: int, shape: Shape) -> None:
    """Raise ValueError unless dimension `axis` can be cut among `count` ranks."""
    cuts, total = cuts_attr(name, attrs), shape[axis]
    problem = cuts_problem(cuts, count, total) if cuts else None
    if problem is not None:
        raise ValueError(f"{name}: cuts is {cuts}; it {problem}")
    if not cuts and total % count:
        raise ValueError(
            f"{name}: dimension {axis} of {shape} does not divide among {count} ranks; "
            "say where to cut it by cuts"
        )


def ranks_text(ranks: Sequence[int]) -> str:
    """A group of ranks in few words."""
    return f"{ranks[0]} to {ranks[-1]}" if isinstance(ranks, range) else str(tuple(ranks))


def check_peer(name: str, argument: str, attrs: Attrs) -> None:
    """Raise ValueError unless the attribute is another rank of this world."""
    peer, rank, world = (int_attr(attrs, a) for a in (argument, "rank", "world"))
    if not 0 <= peer < world:
        raise ValueError(f"{name}: {argument} is {peer}; {_existing(world)}")
    if peer == rank:
        raise ValueError(
            f"{name}: {argument} is {peer}, which is this rank; use the tensor itself, or copy it"
        )


def check_tag(name: str, attrs: Attrs) -> None:
    """Raise ValueError for a tag that a transport may not carry."""
    tag = int_attr(attrs, "tag")
    if not 0 <= tag <= MAX_TAG:
        raise ValueError(f"{name}: tag is {tag}; it must be 0 to {MAX_TAG}")


def check_token(name: str, spec: Spec) -> Spec:
    """Return the spec of a token; ValueError for a tensor that can't be one."""
    if spec != TOKEN:
        raise ValueError(
            f"{name}: the tensor is {spec.dtype}{list(spec.shape)}; "
            "it must be the token that send returned"
        )
    return spec


def _existing(world: int) -> str:
    if world == 1:
        return "there is one rank, 0; start several, or leave it out"
    return f"there are {world} ranks, 0 to {world - 1}"


def _no_boxes(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> tuple[Box, ...]:
    raise AssertionError("communication has no tasks")


def _no_reference(tiles: tuple[Array, ...], attrs: Attrs, box: Box) -> Array:
    raise AssertionError("communication has no tasks")


def _no_tiles(specs: Specs, out: Spec, attrs: Attrs, target: Target) -> tuple[Box, ...]:
    raise AssertionError("communication has no tasks")


def _no_cost(specs: Specs, out: Spec, attrs: Attrs, box: Box) -> Cost:
    raise AssertionError("communication has no tasks")
