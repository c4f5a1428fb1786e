"""Give one rank's tensor to all."""

from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.groups import members
from ark_dist.core.op import Argument, Attrs, Specs
from ark_dist.core.view import Spec
from ark_dist.kernels.communication import RANKS, check_group, communication, ranks_text
from ark_dist.kernels.rules import INPUT, int_attr

SUMMARY = """Return rank `root`'s tensor on all ranks.

The others give a tensor of the same shape and dtype; what is in it does not matter."""


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    check_group("broadcast", attrs)
    root, ranks = int_attr(attrs, "root"), members(attrs)
    if root not in ranks:
        raise ValueError(
            f"broadcast: root is {root}; it must be one of the ranks, {ranks_text(ranks)}"
        )
    return specs[0]


communication(
    "broadcast",
    SUMMARY,
    (INPUT, Argument("root", "int", "the rank whose tensor all get", "0"), RANKS),
    ALL_DTYPES,
    _infer,
)
