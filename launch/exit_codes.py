"""Say which exit code an error ends a process with."""

from signal import SIGINT

from ark_dist.core.errors import (
    CheckpointError,
    CommAborted,
    CommMismatch,
    CommTimeout,
    CompilerNotFoundError,
    ConfigError,
    DeviceNotFoundError,
    PeerLost,
    PlanFormatError,
    PlanWorldSizeError,
    StallError,
)

USER_ERROR = 70
WATCHDOG = 75
MISMATCH = 76
BAD_FILE = 77
BAD_CONFIG = 78
BY_SIGNAL = 128  # and the signal's number

# Of an error's classes the first that is here counts; anything else is the user's: USER_ERROR.
EXIT_CODES: dict[type[BaseException], int] = {
    StallError: WATCHDOG,
    CommTimeout: WATCHDOG,
    PeerLost: WATCHDOG,
    CommAborted: WATCHDOG,
    CommMismatch: MISMATCH,  # PlanMismatchError is one
    PlanWorldSizeError: MISMATCH,
    CheckpointError: BAD_FILE,
    PlanFormatError: BAD_FILE,
    ConfigError: BAD_CONFIG,
    DeviceNotFoundError: BAD_CONFIG,
    CompilerNotFoundError: BAD_CONFIG,
    KeyboardInterrupt: BY_SIGNAL + SIGINT,
}
# What happens to a rank because another one failed: never the cause if there is another error.
CONSEQUENCES = (PeerLost, CommAborted)


def exit_code(error: BaseException) -> int:
    """The exit code of a process that ends with `error`."""
    if isinstance(error, SystemExit):
        return system_exit_code(error)
    return next((EXIT_CODES[c] for c in type(error).__mro__ if c in EXIT_CODES), USER_ERROR)


def system_exit_code(error: SystemExit) -> int:
    """The exit code that Python ends with after SystemExit: a text is a failure."""
    if error.code is None:
        return 0
    return error.code & 0xFF if isinstance(error.code, int) else 1
