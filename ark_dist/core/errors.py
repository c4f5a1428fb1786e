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


class DeviceBusy(LifecycleError):
    """Another resident kernel of this process holds the GPU, or multiprocessors of it."""


class StallError(ArkError):
    """A worker of the kernel waited longer than the limit allows."""


class TaskError(ArkError):
    """A task of the running kernel met data it can't work on, such as a bad index."""


class MemoryLimitError(ArkError):
    """A memory plan does not fit the device."""


class CheckpointError(ArkError):
    """A file of weights is damaged, unsafe, or can't be written."""


class ModelConfigError(CheckpointError):
    """A model's config.json is missing or damaged, or of a model that is not supported."""


class StateDictError(ArkError):
    """A state_dict does not fit the module: every mismatch is listed."""


class ConfigError(ArkError):
    """What was asked for does not fit the machine or the way the ranks were started."""


class PlanWorldSizeError(PlanError):
    """A plan was made for another number of ranks."""


class ShardCorruptError(CheckpointError):
    """A rank's part of a checkpoint is missing or damaged."""


class CommError(ArkError):
    """Ranks could not communicate."""


class CommTimeout(CommError):
    """A call waited longer than its limit for other ranks.

    Attributes:
        rank: the rank that waited.
        op: the call, such as "all_reduce".
        seq: which call of its kind it was on this communicator.
        waited_s: how long it waited.
        missing: the ranks it still waited for, where that is known.
    """

    def __init__(
        self,
        message: str,
        *,
        rank: int = -1,
        op: str = "",
        seq: int = -1,
        waited_s: float = 0.0,
        missing: tuple[int, ...] = (),
    ) -> None:
        super().__init__(message)
        self.rank = rank
        self.op = op
        self.seq = seq
        self.waited_s = waited_s
        self.missing = missing


class PeerLost(CommError):
    """A rank that was waited for ended.

    Attributes:
        rank: the rank that noticed.
        lost: the ranks that ended.
    """

    def __init__(self, message: str, *, rank: int = -1, lost: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.rank = rank
        self.lost = lost


class CommAborted(CommError):
    """The communicator was given up: by `abort`, or because a call on another rank failed."""


class CommMismatch(CommError):
    """Ranks made calls that do not belong together."""


class PlanMismatchError(CommMismatch):
    """Ranks hold plans that do not belong together."""


class NcclError(CommError):
    """A call of NCCL failed."""
