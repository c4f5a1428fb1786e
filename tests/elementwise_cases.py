"""Run elementwise operators on given arrays, and measure errors in units of the last place."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.dtype import DTYPES
from ark_dist.core.op import Array, AttrValue
from ark_dist.core.settings import read_settings
from ark_dist.core.target import cpu_target
from ark_dist.launch.cpuinfo import best_isa
from ark_dist.launch.devices.cpu import CpuDevice
from ark_dist.launch.devices.numpy import NumpyDevice
from ark_dist.launch.session import Session, SessionOptions
from ark_dist.scheduler.plan import make_plan
from tests.plan_models import eager

Floats = npt.NDArray[np.float64]
# An operator, its attributes and inputs: arrays, and the names of their dtypes.
Use = tuple[str, dict[str, AttrValue], Sequence[tuple[Array, str]]]

COUNT = 1 << 18
# Of each dtype: bits of a significand and exponent of the smallest number.
BITS = {"fp32": (24, -149), "fp16": (11, -24), "bf16": (8, -133)}
# Around what functions treat apart: the ends of their ranges, 1, where floats become whole or even.
SPECIAL = (
    *(0.0, 1.0, 0.5, 2.0, 3.0, 2.5, 1e-40, 2.0**-149, 1e-38, 88.7, 103.9, 1e5, 1e30, 3.4e38),
    *(2.0**22 + 0.5, 2.0**23 - 0.5, 2.0**23 + 1, 2.0**24 - 1, 2.0**24, 2.0**25),
    *(1 + 2.0**-23, 1 - 2.0**-24, np.inf),
)


def widened(array: Array) -> Floats:
    """The same floats as float64."""
    with np.errstate(invalid="ignore"):  # NaN of any kind
        return array.astype(np.float64)


def computed(
    uses: Sequence[Use], *, device: str = "cpu", isa: str | None = None, workers: int = 1
) -> list[Array]:
    """The results of several operators, each on arrays of its own, in one graph."""
    builder = GraphBuilder("elementwise")
    leaves: list[tuple[Value, Array]] = []
    results = []
    for name, attrs, inputs in uses:
        values = [builder.tensor(array.shape, dtype) for array, dtype in inputs]
        leaves += zip(values, (array for array, _ in inputs), strict=True)
        results.append(builder.apply(name, values, attrs))
    plan = make_plan(builder.freeze(), eager(cpu_target(workers, isa or best_isa())))
    runner = NumpyDevice(plan) if device == "numpy" else CpuDevice(plan, read_settings())
    session = Session(plan, runner, SessionOptions())
    session.compile(lambda path: None)
    for leaf, array in leaves:
        session.write(leaf.view, array)
    session.launch()
    try:
        session.run(1, "forward", {})
        session.wait()
        return [session.read(result.view) for result in results]
    finally:
        session.close()


def ulps(found: Array, want: Floats, dtype: str) -> Floats:
    """Errors in units of the last place of the exact result; inf for a wrong special value."""
    digits, smallest = BITS[dtype]
    got = widened(found)
    with np.errstate(all="ignore"):
        rounded = want.astype(DTYPES[dtype].numpy).astype(np.float64)
        unit = np.ldexp(1.0, np.maximum(np.frexp(want)[1] - digits, smallest))
        error = np.abs(got - want) / unit
        # Where the result overflows: as if there was a next number.
        top = np.ldexp(1.0, np.frexp(float(np.finfo(np.float32).max))[1])
        limit = 65536.0 if dtype == "fp16" else top
        far = np.isfinite(want) & np.isinf(got)
        error = np.where(far, np.abs(np.copysign(limit, got) - want) / unit, error)
    is_same = (got == rounded) & (np.signbit(got) == np.signbit(rounded))
    is_same |= np.isnan(got) & np.isnan(want)
    special = ~np.isfinite(want) | (want == 0)
    return np.where(is_same & (special | np.isinf(got)), 0.0, np.where(special, np.inf, error))


def any_floats(seed: int, count: int = COUNT) -> Array:
    """Floats of all sizes, with special ones, those around 1, and multiples of pi/2."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 1 << 32, count, np.uint32).view(np.float32)
    near = rng.uniform(-20, 20, count).astype(np.float32)
    turns = (rng.integers(0, 1 << 20, count // 8) * (np.pi / 2)).astype(np.float32)
    special = np.array([*SPECIAL, *(-x for x in SPECIAL), np.nan], np.float32)
    return np.concatenate([bits, near, turns, special])
