"""Describe the records, numbers and versions of nccl.h to ctypes."""

import ctypes
from collections.abc import Mapping

from ark_dist.core.errors import NcclError

UNIQUE_ID_BYTES = 128
CONFIG_MAGIC = 0xCAFEBEEF  # NCCL_API_MAGIC
UNDEFINED_INT = -(1 << 31)  # NCCL_CONFIG_UNDEF_INT: NCCL chooses
NO_COLOR = -1  # NCCL_SPLIT_NOCOLOR
WINDOW_DEFAULT, WINDOW_SYMMETRIC = 0, 1  # NCCL_WIN_DEFAULT, NCCL_WIN_COLL_SYMMETRIC
WINDOW_ALIGNMENT_BYTES = 4096  # NCCL_WIN_REQUIRED_ALIGNMENT
SUCCESS, IN_PROGRESS = 0, 7
RESULT_NAMES = (
    "ncclSuccess",
    "ncclUnhandledCudaError",
    "ncclSystemError",
    "ncclInternalError",
    "ncclInvalidArgument",
    "ncclInvalidUsage",
    "ncclRemoteError",
    "ncclInProgress",
    "ncclTimeout",  # since 2.30
)

ncclComm_t = ctypes.c_void_p
ncclWindow_t = ctypes.c_void_p
cudaStream_t = ctypes.c_void_p
buffer_type = ctypes.c_void_p


class ncclUniqueId(ctypes.Structure):
    """What the ranks of one communicator have in common; passed by value."""

    _fields_ = (("internal", ctypes.c_byte * UNIQUE_ID_BYTES),)


# Fields of ncclConfig_t by the first version that has them, of nccl.h at each release. The struct
# only ever grows at its end; an older library reads the part of it that it knows.
CONFIG_FIELDS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (21400, ("blocking",)),
    (21700, ("cgaClusterSize", "minCTAs", "maxCTAs", "netName")),
    (21801, ("splitShare",)),
    (22602, ("trafficClass",)),
    (22703, ("commName", "collnetEnable", "CTAPolicy", "shrinkShare", "nvlsCTAs")),
    (22803, ("nChannelsPerNetPeer", "nvlinkCentricSched")),
    (22902, ("graphUsageMode", "numRmaCtx")),
    (23003, ("maxP2pPeers",)),
    (23005, ("graphStreamOrdering",)),
    (23102, ("launchOrderImplicit", "numRmaSig", "rmaEagerInit", "hostCftMode")),
    (23203, ("nvlsHostMode",)),
)
NEWEST_CONFIG = CONFIG_FIELDS[-1][0]
STRING_FIELDS = frozenset({"netName", "commName"})
HEAD_FIELDS = ("size", "magic", "version")


def _config_type(name: str) -> type[ctypes.c_int] | type[ctypes.c_char_p]:
    return ctypes.c_char_p if name in STRING_FIELDS else ctypes.c_int


class ncclConfig_t(ctypes.Structure):
    """How a communicator is made; `make_config` fills it for a version of the library."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("magic", ctypes.c_uint),
        ("version", ctypes.c_uint),
        *((name, _config_type(name)) for _, names in CONFIG_FIELDS for name in names),
    )


def config_fields(version: int) -> tuple[str, ...]:
    """Name the settings that a version of NCCL knows."""
    return tuple(name for since, names in CONFIG_FIELDS if since <= version for name in names)


def config_size(version: int) -> int:
    """Return sizeof(ncclConfig_t) of a version of NCCL, in bytes."""
    names = config_fields(version)
    if not names:
        raise NcclError(
            f"NCCL {version_text(version)} has no ncclConfig_t; 2.14 or later is needed"
        )
    last = getattr(ncclConfig_t, names[-1])
    alignment = ctypes.alignment(ncclConfig_t)
    return int(-(-(last.offset + last.size) // alignment) * alignment)


def make_config(version: int, values: Mapping[str, int | str]) -> ncclConfig_t:
    """Fill a config as far as a version of NCCL knows it; what is not given, NCCL chooses.

    Raises:
        ValueError: no version of NCCL has the setting.
        NcclError: this version does not have it.
    """
    known = config_fields(version)
    for name in values:
        if name not in known:
            since = [first for first, names in CONFIG_FIELDS if name in names]
            if not since:
                raise ValueError(f"ncclConfig_t has no field {name!r}; it has {', '.join(known)}")
            raise NcclError(
                f"ncclConfig_t.{name} needs NCCL {version_text(since[0])}, and this is "
                f"{version_text(version)}; leave it out, or install a newer NCCL"
            )
    config = ncclConfig_t()
    config.size = config_size(version)
    config.magic = CONFIG_MAGIC
    config.version = min(version, NEWEST_CONFIG)
    for name in config_fields(NEWEST_CONFIG):
        if name not in STRING_FIELDS:
            setattr(config, name, UNDEFINED_INT)
    for name, value in values.items():
        setattr(config, name, value.encode() if isinstance(value, str) else value)
    return config


class ncclDataTypeEnum:
    """Numbers of ncclDataType_t."""

    ncclInt8 = 0
    ncclChar = 0
    ncclUint8 = 1
    ncclInt32 = 2
    ncclInt = 2
    ncclUint32 = 3
    ncclInt64 = 4
    ncclUint64 = 5
    ncclFloat16 = 6
    ncclHalf = 6
    ncclFloat32 = 7
    ncclFloat = 7
    ncclFloat64 = 8
    ncclDouble = 8
    ncclBfloat16 = 9
    ncclFloat8e4m3 = 10
    ncclFloat8e5m2 = 11
    ncclNumTypes = 12

    @classmethod
    def from_name(cls, name: str) -> int:
        """Return the number of a dtype by its numpy or torch name, such as "bfloat16"."""
        number = DATA_TYPES.get(name.removeprefix("torch."))
        if number is None:
            raise TypeError(f"NCCL has no dtype {name}; it has {', '.join(DATA_TYPES)}")
        return number


DATA_TYPES = {
    "int8": ncclDataTypeEnum.ncclInt8,
    "uint8": ncclDataTypeEnum.ncclUint8,
    "int32": ncclDataTypeEnum.ncclInt32,
    "uint32": ncclDataTypeEnum.ncclUint32,
    "int64": ncclDataTypeEnum.ncclInt64,
    "uint64": ncclDataTypeEnum.ncclUint64,
    "float16": ncclDataTypeEnum.ncclFloat16,
    "float32": ncclDataTypeEnum.ncclFloat32,
    "float64": ncclDataTypeEnum.ncclFloat64,
    "bfloat16": ncclDataTypeEnum.ncclBfloat16,
    "float8_e4m3fn": ncclDataTypeEnum.ncclFloat8e4m3,
    "float8_e5m2": ncclDataTypeEnum.ncclFloat8e5m2,
}


class ncclRedOpTypeEnum:
    """Numbers of ncclRedOp_t."""

    ncclSum = 0
    ncclProd = 1
    ncclMax = 2
    ncclMin = 3
    ncclAvg = 4
    ncclNumOps = 5

    @classmethod
    def from_name(cls, name: str) -> int:
        """Return the number of a reduction: "sum", "prod", "max", "min" or "mean"."""
        number = REDUCTIONS.get(name)
        if number is None:
            raise ValueError(f"op is {name!r}; NCCL reduces by {', '.join(REDUCTIONS)}")
        return number


REDUCTIONS = {
    "sum": ncclRedOpTypeEnum.ncclSum,
    "prod": ncclRedOpTypeEnum.ncclProd,
    "max": ncclRedOpTypeEnum.ncclMax,
    "min": ncclRedOpTypeEnum.ncclMin,
    "mean": ncclRedOpTypeEnum.ncclAvg,
}


def version_text(version: int) -> str:
    """Write NCCL_VERSION_CODE with dots: 23203 is 2.32.3, and 2804 is 2.8.4."""
    major = 1000 if version < 10000 else 10000  # nccl.h: codes up to 2.8 had a digit less
    return f"{version // major}.{version % major // 100}.{version % 100}"
