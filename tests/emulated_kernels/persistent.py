"""The host of `persistent.cu`: its tables, its memory, and what it should compute."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ark_dist.core.settings import read_settings
from ark_dist.launch.emulation import Emulation, Program, compile_emulated

FOLDER = Path(__file__).parent
SMEM_BYTES = 32 << 10
K, H, N, Z_ROWS, TILE = 256, 64, 8, 32, 16  # as in the kernel
TASK = np.dtype(
    [
        *(("kind", "u4"), ("first", "u4"), ("counter", "u4"), ("wait_counter", "u4")),
        *(("signals", "i8"), ("need", "i8"), ("id", "u4"), ("unused", "u4")),
    ]
)
# kind, first row, counter, counter waited for, its signals per turn, what is needed of turn 0
ROWS = (
    *((0, first, 0, 2, 2, 0) for first in range(0, H, TILE)),
    *((1, first, 1, 0, 4, 4) for first in range(0, Z_ROWS, TILE)),
    *((2, first, 2, 1, 2, 2) for first in range(0, K, K // 2)),
)
NEVER_FAILS = -1
LIMIT_NS = 10**9

Array = npt.NDArray[np.generic]


@cache
def compiled(name: str, *defines: str, arch: int = 90, race: bool = False) -> Program:
    """Compile one of the kernels' files."""
    text = (FOLDER / name).read_text()
    return compile_emulated(
        text, settings=read_settings(), name=name, arch=arch, race=race, defines=defines
    )


@dataclass(slots=True)
class Run:
    """One life of the kernel.

    Attributes:
        x: what it has computed.
        abort: the abort word when it had left.
        digest: of the schedule.
    """

    x: npt.NDArray[np.float32]
    abort: int
    digest: tuple[int, int]


@dataclass(slots=True)
class _Memory:
    arrays: dict[str, tuple[Array, bool]] = field(default_factory=dict)

    def add(self, name: str, array: Array, *, is_writable: bool = False) -> None:
        self.arrays[name] = (array, is_writable)

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name][0]


def run(
    program: Program,
    seed: int,
    *,
    ctas: int = 3,
    turns: tuple[int, ...] = (3, 2),
    fail_turn: int = NEVER_FAILS,
    watchdog: bool = False,
) -> Run:
    """Run commands of some turns each, then end the kernel."""
    memory = _inputs(seed)
    tasks = [(*row, number, 0) for number, row in enumerate(ROWS)]
    queues = [[task for task in tasks if task[-2] % ctas == cta] for cta in range(ctas)]
    counts = [len(queue) for queue in queues]
    firsts = [sum(counts[:cta]) for cta in range(ctas)]
    memory.add("tasks", np.array([task for queue in queues for task in queue], TASK))
    memory.add("queues", np.array([firsts, counts], np.uint32).T.copy())
    with Emulation(
        program, "persistent", ctas=ctas, smem_bytes=SMEM_BYTES, seed=seed, watchdog=watchdog
    ) as emulation:
        at = {
            name: emulation.buffer(name, array, is_writable=is_writable)
            for name, (array, is_writable) in memory.arrays.items()
        }
        config = [*at.values(), fail_turn % 2**64, LIMIT_NS]
        emulation.constant("config", np.array(config, np.uint64))
        for number, row in enumerate(ROWS):
            _declare(emulation, at, number, row[0], row[1])
        posted, done, abort = memory["posted"], memory["done"], memory["abort"]
        for count in turns:
            posted += count  # type: ignore[misc] # an array of integers
            if emulation.resume():
                return Run(_floats(memory["x"]), int(abort[0]), emulation.digest)
            assert int(done[0]) == ctas * int(posted[0])
        abort[:] = 1
        assert emulation.resume()
        return Run(_floats(memory["x"]), int(abort[0]), emulation.digest)


def expected(seed: int, turns: int) -> npt.NDArray[np.float64]:
    """Return x after some turns, in float64 but for the bf16 matrix that the kernel builds."""
    memory = _inputs(seed)
    w, a, x0, s = (memory[name].astype(np.float64) for name in ("w", "a", "x0", "s"))
    x = x0
    for _ in range(turns):
        h = np.maximum(w @ x, 0)
        b = np.outer(h, s).astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
        x = x0 + (a @ b).T.reshape(-1)
    return np.asarray(x)


def _inputs(seed: int) -> _Memory:
    rng = np.random.default_rng(seed)
    memory = _Memory()
    memory.add("w", (rng.standard_normal((H, K)) / 16).astype(ml_dtypes.bfloat16))
    memory.add("a", (rng.standard_normal((Z_ROWS, H)) / 8).astype(ml_dtypes.bfloat16))
    memory.add("x0", rng.standard_normal(K).astype(np.float32))
    memory.add("s", rng.standard_normal(N).astype(np.float32))
    memory.add("x", memory["x0"].copy(), is_writable=True)
    memory.add("h", np.full(H, np.nan, np.float32), is_writable=True)
    memory.add("z", np.full((Z_ROWS, N), np.nan, np.float32), is_writable=True)
    memory.add("counters", np.zeros(3, np.uint64), is_writable=True)
    memory.add("posted", np.zeros(1, np.uint64))
    memory.add("done", np.zeros(1, np.uint64), is_writable=True)
    memory.add("abort", np.zeros(1, np.uint32), is_writable=True)
    memory.add("never", np.zeros(1, np.uint32))
    return memory


def _declare(emulation: Emulation, at: dict[str, int], task: int, kind: int, first: int) -> None:
    def box(
        name: str, offset: int, extents: tuple[int, ...], strides: tuple[int, ...], size: int = 4
    ) -> None:
        address = at[name.removeprefix("=")] + offset * size
        is_write = name.startswith("=")
        emulation.box(0, task, address, size, extents, strides, is_write=is_write)

    at = at | {f"={name}": address for name, address in at.items()}
    if kind == 0:
        box("w", first * K, (TILE, K), (K, 1), 2)
        box("x", 0, (K,), (1,))
        box("=h", first, (TILE,), (1,))
    elif kind == 1:
        box("a", first * H, (TILE, H), (H, 1), 2)
        box("h", 0, (H,), (1,))
        box("s", 0, (N,), (1,))
        box("=z", first * N, (TILE, N), (N, 1))
    else:
        box("x0", first, (K // 2,), (1,))
        box("z", first // Z_ROWS, (Z_ROWS, N // 2), (N, 1))
        box("=x", first, (K // 2,), (1,))


def _floats(array: Array) -> npt.NDArray[np.float32]:
    return array.astype(np.float32)
