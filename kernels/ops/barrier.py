"""Wait until all ranks have come here."""

from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.op import Argument, Attrs, Specs
from ark_dist.core.view import Spec
from ark_dist.kernels.communication import RANKS, TOKEN, check_group, communication

SUMMARY = """Wait until all ranks have computed their `input`; returns a token.

Whatever names the token among its `deps` comes after that: `identity(x, deps=[token])`."""


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    check_group("barrier", attrs)
    return TOKEN


INPUT = Argument("input", "Tensor", "what has to be computed before", None)
communication("barrier", SUMMARY, (INPUT, RANKS), ALL_DTYPES, _infer)
