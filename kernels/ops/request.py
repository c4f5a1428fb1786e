"""Ask the host to move data between ranks: the proxy transport."""

from ark_dist.core.dtype import ALL_DTYPES, UINT8
from ark_dist.core.op import Argument
from ark_dist.core.view import Spec
from ark_dist.kernels.rules import control_op

SUMMARY = """Let the host's thread run the communication operator `op` on `input`.

The kernel raises the flag `<key>.ask`; the host moves the data, into the view that the node takes
over, and raises `<key>.done`, which a handshake waits for."""
ARGUMENTS = (
    Argument("input", "Tensor | None", "what this rank gives", "None"),
    Argument("axis", "int", "of the operator; 0 where it has none", None),
    Argument("cuts", "Sequence[int]", "of the operator", None),
    Argument("key", "str", "the message's name on all ranks", None),
    Argument("op", "str", "the communication operator", None),
    Argument("peer", "int", "the other rank, or the root", None),
    Argument("ranks", "Sequence[int]", "the group", None),
    Argument("reduce", "str", "of the operator", None),
    Argument("source", "Sequence[int]", "of the operator", None),
    Argument("tag", "int", "of a send or recv", None),
    Argument("target", "Sequence[int]", "of the operator", None),
)

control_op(
    "request", SUMMARY, ARGUMENTS, ALL_DTYPES, Spec((1,), UINT8), "handshake", "ark_handshake"
)
