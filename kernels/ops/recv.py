"""Take a tensor that another rank sends."""

from ark_dist.core.dtype import ALL_DTYPES, as_dtype
from ark_dist.core.op import Argument, Attrs, Specs
from ark_dist.core.shape import as_shape
from ark_dist.core.view import Spec
from ark_dist.kernels.communication import TAG, check_peer, check_tag, communication

SUMMARY = """Return the tensor that rank `src` sends to this one.

Shape, dtype and tag must be those of the `send`: ranks compare them before they run."""


def _infer(specs: Specs, attrs: Attrs) -> Spec:
    check_peer("recv", "src", attrs)
    check_tag("recv", attrs)
    try:
        shape = as_shape(attrs["shape"])
    except (TypeError, ValueError) as error:
        raise type(error)(f"recv: {error}") from None
    return Spec(shape, as_dtype(str(attrs["dtype"])))


communication(
    "recv",
    SUMMARY,
    (
        Argument("shape", "Sequence[int]", "sizes per dimension", None),
        Argument("dtype", "DTypeLike", "element type, such as ark.FP16", None),
        Argument("src", "int", "the rank that sends it", None),
        TAG,
    ),
    ALL_DTYPES,
    _infer,
)
