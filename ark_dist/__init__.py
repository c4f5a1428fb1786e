"""Write a model once; run it as one persistent kernel per rank: `import ark_dist as ark`."""

from importlib import import_module
from typing import TYPE_CHECKING

# Nothing is imported until it is used: importing ark_dist.core runs this file first.
_HOMES = {
    "checkpoint.reader": ("open_checkpoint",),
    "context": (
        "assign",
        "constant",
        "full",
        "init",
        "keep",
        "method",
        "ones",
        "parameter",
        "rank",
        "scalar",
        "shard",
        "stage",
        "state",
        "tensor",
        "world_size",
        "zeros",
    ),
    "core.dtype": (
        "BF16",
        "BOOL",
        "BYTE",
        "DType",
        "FP16",
        "FP32",
        "INT8",
        "INT32",
        "TensorType",
        "UINT8",
        "UINT32",
    ),
    "core.errors": (
        "ArkError",
        "CacheError",
        "CheckpointError",
        "CommAborted",
        "CommError",
        "CommMismatch",
        "CommTimeout",
        "CompileError",
        "CompilerNotFoundError",
        "ConfigError",
        "DeviceBusy",
        "DeviceNotFoundError",
        "LifecycleError",
        "MemoryLimitError",
        "ModelConfigError",
        "NcclError",
        "PeerLost",
        "PlanError",
        "PlanFormatError",
        "PlanMismatchError",
        "PlanWorldSizeError",
        "ShardCorruptError",
        "StallError",
        "StateDictError",
        "TaskError",
    ),
    "core.layout": ("P",),
    "core.shape": ("Dims",),
    "executor": ("Executor",),
    "generation": ("Generation", "LanguageModel", "generate"),
    "mesh": ("Mesh",),
    "model": ("Model",),
    "module": ("Module",),
    "runtime": ("Runtime",),
    "sentence_encoder": ("SentenceEncoder",),
    "serialize": ("convert_state_dict", "load", "save"),
    "tensors": ("Parameter", "Tensor"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
# ARK's later names for the element types; "bool" stays Python's.
_ALIASES = {
    name.lower(): name
    for name in ("FP32", "FP16", "BF16", "INT32", "UINT32", "INT8", "UINT8", "BYTE")
}


def _find(name: str) -> object:
    """Import what `name` needs, on first use."""
    if name == "__all__":
        ops = import_module("ark_dist.ops").__all__
        value: object = sorted({*_HOME_OF, *_ALIASES, *ops, "__version__"})
    elif name in _HOME_OF:
        value = getattr(import_module(f"ark_dist.{_HOME_OF[name]}"), name)
    elif name in _ALIASES:
        value = _find(_ALIASES[name])
    elif name == "__version__":
        value = import_module("ark_dist.core.version").VERSION
    elif not name.startswith("_") and name in (ops := import_module("ark_dist.ops")).__all__:
        value = getattr(ops, name)
    else:
        raise AttributeError(f"module 'ark_dist' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All public names, and what was imported so far."""
    names = _find("__all__")
    assert isinstance(names, list)
    return sorted({*names, *globals()})


if TYPE_CHECKING:
    __version__: str

    from ark_dist.checkpoint.reader import open_checkpoint as open_checkpoint
    from ark_dist.context import assign as assign
    from ark_dist.context import constant as constant
    from ark_dist.context import full as full
    from ark_dist.context import init as init
    from ark_dist.context import keep as keep
    from ark_dist.context import method as method
    from ark_dist.context import ones as ones
    from ark_dist.context import parameter as parameter
    from ark_dist.context import rank as rank
    from ark_dist.context import scalar as scalar
    from ark_dist.context import shard as shard
    from ark_dist.context import stage as stage
    from ark_dist.context import state as state
    from ark_dist.context import tensor as tensor
    from ark_dist.context import world_size as world_size
    from ark_dist.context import zeros as zeros
    from ark_dist.core.dtype import BF16 as BF16
    from ark_dist.core.dtype import BOOL as BOOL
    from ark_dist.core.dtype import BYTE as BYTE
    from ark_dist.core.dtype import FP16 as FP16
    from ark_dist.core.dtype import FP32 as FP32
    from ark_dist.core.dtype import INT8 as INT8
    from ark_dist.core.dtype import INT32 as INT32
    from ark_dist.core.dtype import UINT8 as UINT8
    from ark_dist.core.dtype import UINT32 as UINT32
    from ark_dist.core.dtype import DType as DType
    from ark_dist.core.dtype import TensorType as TensorType
    from ark_dist.core.errors import ArkError as ArkError
    from ark_dist.core.errors import CacheError as CacheError
    from ark_dist.core.errors import CheckpointError as CheckpointError
    from ark_dist.core.errors import CommAborted as CommAborted
    from ark_dist.core.errors import CommError as CommError
    from ark_dist.core.errors import CommMismatch as CommMismatch
    from ark_dist.core.errors import CommTimeout as CommTimeout
    from ark_dist.core.errors import CompileError as CompileError
    from ark_dist.core.errors import CompilerNotFoundError as CompilerNotFoundError
    from ark_dist.core.errors import ConfigError as ConfigError
    from ark_dist.core.errors import DeviceBusy as DeviceBusy
    from ark_dist.core.errors import DeviceNotFoundError as DeviceNotFoundError
    from ark_dist.core.errors import LifecycleError as LifecycleError
    from ark_dist.core.errors import MemoryLimitError as MemoryLimitError
    from ark_dist.core.errors import ModelConfigError as ModelConfigError
    from ark_dist.core.errors import NcclError as NcclError
    from ark_dist.core.errors import PeerLost as PeerLost
    from ark_dist.core.errors import PlanError as PlanError
    from ark_dist.core.errors import PlanFormatError as PlanFormatError
    from ark_dist.core.errors import PlanMismatchError as PlanMismatchError
    from ark_dist.core.errors import PlanWorldSizeError as PlanWorldSizeError
    from ark_dist.core.errors import ShardCorruptError as ShardCorruptError
    from ark_dist.core.errors import StallError as StallError
    from ark_dist.core.errors import StateDictError as StateDictError
    from ark_dist.core.errors import TaskError as TaskError
    from ark_dist.core.layout import P as P
    from ark_dist.core.shape import Dims as Dims
    from ark_dist.executor import Executor as Executor
    from ark_dist.generation import Generation as Generation
    from ark_dist.generation import LanguageModel as LanguageModel
    from ark_dist.generation import generate as generate
    from ark_dist.mesh import Mesh as Mesh
    from ark_dist.model import Model as Model
    from ark_dist.module import Module as Module
    from ark_dist.ops import *  # noqa: F403  all operators; the list is generated
    from ark_dist.runtime import Runtime as Runtime
    from ark_dist.sentence_encoder import SentenceEncoder as SentenceEncoder
    from ark_dist.serialize import convert_state_dict as convert_state_dict
    from ark_dist.serialize import load as load
    from ark_dist.serialize import save as save
    from ark_dist.tensors import Parameter as Parameter
    from ark_dist.tensors import Tensor as Tensor

    fp32 = FP32
    fp16 = FP16
    bf16 = BF16
    int32 = INT32
    uint32 = UINT32
    int8 = INT8
    uint8 = UINT8
    byte = BYTE
else:
    # Type checkers must not see it: every misspelt name would pass.
    __getattr__ = _find
