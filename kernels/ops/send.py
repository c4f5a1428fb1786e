"""Offer a tensor to another rank."""

from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.op import Argument, Attrs, Specs
from ark_dist.core.view import Spec
from ark_dist.kernels.communication import TAG, TOKEN, check_peer, check_tag, communication
from ark_dist.kernels.rules import INPUT

SUMMARY = """Send a tensor to rank `dst`, which gets it by `recv`; returns a token for `send_done`.

Messages between two ranks with one tag arrive in the order in which they were sent."""


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    check_peer("send", "dst", attrs)
    check_tag("send", attrs)
    return TOKEN


communication(
    "send",
    SUMMARY,
    (INPUT, Argument("dst", "int", "the rank that gets it", None), TAG),
    ALL_DTYPES,
    _infer,
)
