"""Wait until all ranks have come here."""

from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.op import Attrs, Specs
from ark_dist.core.view import Spec
from ark_dist.kernels.communication import RANKS, check_group, communication
from ark_dist.kernels.rules import INPUT

SUMMARY = """Return `input` as it is once all ranks have computed theirs.

Whatever uses the result, or names it among its `deps`, comes after that."""


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    check_group("barrier", attrs)
    return specs[0]


communication("barrier", SUMMARY, (INPUT, RANKS), ALL_DTYPES, _infer)
