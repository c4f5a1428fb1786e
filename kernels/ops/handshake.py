"""Wait for other ranks' flags, take memory over, and raise flags of other ranks."""

from ark_dist.core.dtype import UINT8
from ark_dist.core.view import Spec
from ark_dist.kernels.rules import control_op

SUMMARY = """Wait for `Node.waits`, then take `Node.takes` over, then raise `Node.raises`.

It moves no data: all that ranks tell each other is when memory may be read or written."""

control_op("handshake", SUMMARY, (), ("uint8",), Spec((1,), UINT8), "handshake", "ark_handshake")
