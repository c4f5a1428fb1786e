"""Every error that ark_dist raises for the world's faults, as one small tree."""


class ArkError(RuntimeError):
    """Base of all errors that are not a mistake in the caller's arguments."""


class LifecycleError(ArkError):
    """A call came in an order that the lifecycle table does not allow."""


class PlanError(ArkError):
    """A graph or a plan breaks a rule of `verify`."""


class PlanFormatError(ArkError):
    """Bytes that should hold a plan do not."""


class CompileError(ArkError):
    """The compiler refused, crashed, or ran out of time."""


class CompilerNotFoundError(CompileError):
    """No C++ compiler could be found."""


class CacheError(ArkError):
    """A compile cache entry or folder can't be trusted or written."""


class DeviceNotFoundError(ArkError):
    """The device that was asked for is not on this machine."""


class StallError(ArkError):
    """A worker of the kernel waited longer than the limit allows."""


class TaskError(ArkError):
    """A task of the running kernel met data it can't work on, such as a bad index."""


class MemoryLimitError(ArkError):
    """A memory plan does not fit the device."""


class CheckpointError(ArkError):
    """A file of weights is damaged, unsafe, or can't be written."""


class StateDictError(ArkError):
    """A state_dict does not fit the module: every mismatch is listed."""
