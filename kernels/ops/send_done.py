"""Wait until a tensor that was sent has arrived."""

from ark_dist.core.op import Argument, Attrs, Specs
from ark_dist.core.view import Spec
from ark_dist.kernels.communication import (
    TOKEN,
    check_peer,
    check_tag,
    check_token,
    communication,
)

SUMMARY = """Wait until a tensor that `send` has sent is with its receiver.

Operators that come after, by `identity(x, deps=[...])`, may then write over the tensor's memory."""


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    check_peer("send_done", "dst", attrs)
    check_tag("send_done", attrs)
    return check_token("send_done", specs[0])


communication(
    "send_done",
    SUMMARY,
    (
        Argument("input", "Tensor", "the token that `send` returned", None),
        Argument("dst", "int", "the rank that gets it", None, source="send"),
        Argument("tag", "int", "the message's tag", None, source="send"),
    ),
    (TOKEN.dtype.name,),
    _infer,
)
