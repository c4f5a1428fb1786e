"""Check what an operator is called with, and fill in what its caller does not give."""

import ast
import threading
from collections.abc import Iterable
from functools import cache

from ark_dist.core.graph import Node
from ark_dist.core.layout import P
from ark_dist.core.op import AttrValue, Op
from ark_dist.core.shape import Shape, as_shape
from ark_dist.core.view import Spec, View

_PARSING = threading.Lock()


def check_count(op: Op, count: int) -> None:
    """Raise unless the operator takes so many tensors."""
    if any(argument.is_list for argument in op.arguments):
        if not count:
            raise ValueError(f"{op.name}: the list of tensors is empty; give at least one")
        return
    most = sum(argument.is_tensor for argument in op.arguments)
    least = most - sum(argument.is_optional for argument in op.arguments)
    if not least <= count <= most:
        wanted = str(most) if least == most else f"{least} to {most}"
        raise TypeError(f"{op.name}: found {count} tensors, wanted {wanted}")


def check_result(op_name: str, spec: Spec) -> None:
    """Raise ValueError for a result of too many elements or dimensions."""
    try:
        as_shape(spec.shape)
    except ValueError as error:
        raise ValueError(f"{op_name}: the result's {error}") from None


def check_shard(call: str, shard: object, shape: Shape) -> None:
    """Raise TypeError or ValueError unless `shard` can say how a mesh cuts the shape."""
    if not isinstance(shard, P):
        raise TypeError(
            f"{call}: shard is {shard!r}; it must be a P, which names a mesh axis or None for "
            'each dimension, such as P(None, "tp")'
        )
    if len(shard) != len(shape):
        raise ValueError(
            f"{call}: shard {shard} names {len(shard)} dimensions, the shape {shape} "
            f"has {len(shape)}"
        )
    axes = [axis for axis in shard if axis is not None]
    if len(set(axes)) != len(axes):
        raise ValueError(
            f"{call}: shard {shard} names an axis twice; an axis can cut one dimension"
        )


def check_stage(stage: object) -> None:
    """Raise TypeError or ValueError unless this can be a pipeline stage."""
    if not isinstance(stage, int) or isinstance(stage, bool):
        raise TypeError(f"stage: {stage!r} is no stage; it must be an integer")
    if stage < 0:
        raise ValueError(f"stage: {stage} is no stage; the first one is 0")


@cache
def _literal(text: str) -> AttrValue:
    """The value of a default."""
    # Python 3.11's parser fails now and then if two threads use it at once.
    with _PARSING:
        value: AttrValue = ast.literal_eval(text)
        return value


def default_attributes(op: Op) -> dict[str, AttrValue]:
    """The attributes that need not be given."""
    return {
        argument.name: _literal(argument.default)
        for argument in op.arguments
        if argument.default is not None
        and not argument.is_tensor
        and "Tensor" not in argument.annotation
    }


def attributes_of_send(op: Op, nodes: Iterable[Node], token: View) -> dict[str, AttrValue]:
    """What an operator that completes a send takes from it; ValueError if it can't be completed.

    `nodes` are those before it.
    """
    names = [argument.name for argument in op.arguments if argument.source == "send"]
    waiting: list[Node] = []
    for node in nodes:
        if node.op == "send":
            waiting.append(node)
        elif node.op == op.name:
            waiting.remove(next(n for n in waiting if n.output == node.inputs[0]))
    sent = next((node for node in waiting if node.output == token), None)
    if sent is None:
        raise ValueError(
            f"{op.name}: the tensor is not the token of a send in this method that still has to "
            "be completed; give it what send returned, once"
        )
    found = {name: sent.attributes[name] for name in names}
    earlier = waiting[: waiting.index(sent)]
    for node in earlier:
        if all(node.attributes[name] == value for name, value in found.items()):
            raise ValueError(
                f"{op.name}: {node.name!r} was sent before {sent.name!r} to the same rank with "
                "the same tag; complete it first, or use another tag"
            )
    return found
