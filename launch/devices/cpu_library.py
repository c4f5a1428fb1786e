"""Call the functions of a compiled CPU kernel."""

import ctypes
import os
import time

from ark_dist.core.source import Binary
from ark_dist.launch.compile import load_library
from ark_dist.launch.devices.cpu_blocks import Blocks
from ark_dist.launch.memory import Arenas

# How long a stopped kernel may take to leave its loops.
EXIT_S = 10.0
SLICE_S = 0.1

HOOK = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32)
_FUNCTIONS = (
    ("ark_kernel_start", ctypes.c_int, (ctypes.c_void_p,)),
    ("ark_kernel_post", None, (ctypes.c_void_p, ctypes.c_uint64)),
    ("ark_kernel_wait", ctypes.c_int, (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int64)),
    ("ark_kernel_stop", ctypes.c_int, (ctypes.c_void_p, ctypes.c_int64)),
    ("ark_kernel_abort", None, (ctypes.c_void_p,)),
    ("ark_kernel_ticks", ctypes.c_uint64, ()),
)


def end_kernel(pid: int, library: ctypes.CDLL, blocks: Blocks, arenas: Arenas) -> None:
    """End a kernel that nobody stopped."""
    if os.getpid() != pid:
        # In a fork there are no workers to end.
        return
    address = blocks.config.ctypes.data
    library.ark_kernel_abort(address)
    if not leaves(library, address, EXIT_S):
        # A stuck worker still uses the memory: never free it.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object((blocks, arenas)))


def leaves(library: ctypes.CDLL, address: int, limit_s: float) -> bool:
    """Ask the workers to leave; whether all did within a limit."""
    deadline = time.monotonic() + limit_s
    # In slices, so that Ctrl-C works.
    while not library.ark_kernel_stop(address, int(SLICE_S * 1e9)):
        if time.monotonic() > deadline:
            return False
    return True


def load_kernel(binary: Binary) -> ctypes.CDLL:
    """Load a kernel; its functions have their types."""
    library = load_library(binary)
    for name, result, arguments in _FUNCTIONS:
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
