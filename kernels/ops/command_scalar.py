"""Set a scalar state from the command that started the run."""

from ark_dist.core.dtype import ALL_DTYPES, INT32
from ark_dist.core.view import Spec
from ark_dist.kernels.rules import control_op

SUMMARY = "Store the scalar `name` of the command, in the command's first iteration."

# Its result takes the shape and dtype of the state that it sets.
control_op(
    "command_scalar", SUMMARY, (), ALL_DTYPES, Spec((1,), INT32), "command", "ark_command_scalar"
)
