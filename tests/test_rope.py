"""Rotary embedding in all its forms agrees with complex numbers in float64."""

import numpy as np
import numpy.typing as npt
import pytest

from ark_dist.core.builder import GraphBuilder
from ark_dist.core.errors import TaskError
from ark_dist.core.target import cpu_target
from ark_dist.launch.cpuinfo import LADDER, best_isa, can_run
from tests.operator_formulas import EPSILON, SMALLEST
from tests.plan_models import eager
from tests.running import launched, strided

Floats = npt.NDArray[np.float64]
DTYPES = ("fp32", "fp16", "bf16")


def rotated(x: Floats, turns: npt.NDArray[np.complex128], interleaved: bool) -> Floats:
    """Multiply pairs by complex numbers `turns`, (..., R / 2) that broadcasts."""
    half = turns.shape[-1]
    pairs = np.stack([x[..., : 2 * half : 2], x[..., 1 : 2 * half : 2]])
    if not interleaved:
        pairs = np.stack([x[..., :half], x[..., half : 2 * half]])
    product = (pairs[0] + 1j * pairs[1]) * turns
    result: Floats = x.copy()
    if interleaved:
        result[..., : 2 * half : 2], result[..., 1 : 2 * half : 2] = product.real, product.imag
    else:
        result[..., :half], result[..., half : 2 * half] = product.real, product.imag
    return result


def check(found: npt.NDArray[np.generic], x: Floats, turns: npt.NDArray[np.complex128],
          interleaved: bool, dtype: str) -> None:  # fmt: skip
    wanted = rotated(x, turns, interleaved)
    # Two products and a sum.
    size = rotated(np.abs(x), np.abs(turns.real) + 1j * np.abs(turns.imag), interleaved)
    bulk = np.abs(x).max(initial=0) * 2 * np.abs(turns).max(initial=0) + np.abs(size)
    allowed = 2 * EPSILON["fp32"] * bulk + EPSILON[dtype] / 2 * np.abs(wanted) + SMALLEST[dtype]
    assert found.shape == wanted.shape
    assert (np.abs(found.astype(np.float64) - wanted) <= allowed).all()


def complex_pairs(table: npt.NDArray[np.generic]) -> npt.NDArray[np.complex128]:
    wide = table.astype(np.float64)
    return wide[..., 0::2] + 1j * wide[..., 1::2]


def run_positions(device: str, isa: str, workers: int, dtype: str, count: int) -> None:
    """Random cases with a table of positions, in one graph."""
    rng = np.random.default_rng([9, *dtype.encode()])
    builder = GraphBuilder("positions")
    cases = []
    for _ in range(count):
        b, t, h = (int(rng.choice([1, 2, 3, 5])) for _ in range(3))
        depth = int(rng.choice([2, 3, 8, 64, 65]))
        turned = 2 * int(rng.integers(0, depth // 2 + 1))
        table_dtype = dtype if rng.random() < 0.3 else "fp32"
        leaf, x = strided(builder, (b, t, h, depth), dtype, rng)
        table_leaf, table = strided(builder, (40, turned), table_dtype, rng)
        position = builder.tensor([(), (1,), (b,)][int(rng.integers(3))], "int32")
        interleaved = bool(rng.random() < 0.5)
        out = str(rng.choice([dtype, *DTYPES]))
        attributes = {"interleaved": interleaved, "dtype": None if out == dtype else out}
        y = builder.apply("rope", [x, table, position], attributes)
        builder.keep(y)
        cases.append((leaf, x, table_leaf, table, position, interleaved, y))
    with launched(builder.freeze(), eager(cpu_target(workers, isa)), device) as session:
        for leaf, _, table_leaf, _, position, _, _ in cases:
            for value in (leaf, table_leaf):
                data = rng.normal(size=value.view.shape).astype(value.view.dtype.numpy)
                session.write(value.view, data)
            session.write(position.view, rng.integers(0, 36, position.view.shape).astype(np.int32))
        session.run(1, "forward", {})
        session.wait()
        for _, x, _, table, position, interleaved, y in cases:
            seen, rows = (session.read(value.view) for value in (x, table))
            first = session.read(position.view).reshape(-1).astype(np.int64)
            starts = np.broadcast_to(first, x.view.shape[:1])
            chosen = rows[starts[:, None] + np.arange(x.view.shape[1])][:, :, None, :]
            check(session.read(y.view), seen.astype(np.float64), complex_pairs(chosen),
                  interleaved, y.view.dtype.name)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_rows_of_a_table_are_chosen_by_position(device: str, workers: int, dtype: str) -> None:
    run_positions(device, best_isa(), workers, dtype, 22)


@pytest.mark.parametrize("isa", [isa for isa in LADDER if can_run(isa)])
def test_every_instruction_set_rotates_alike(isa: str) -> None:
    for dtype in DTYPES:
        run_positions("cpu", isa, 2, dtype, 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_angles_for_each_element_broadcast(device: str, dtype: str) -> None:
    """ARK's form: pairs of neighbours, and angles of the input's own shape."""
    rng = np.random.default_rng(10)
    builder = GraphBuilder("broadcast")
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((1, 32, 32, 256), (1, 32, 32, 256)), ((2, 3, 8), (3, 8)), ((2, 3, 8), (2, 1, 4)),
        ((6,), (6,)), ((5, 7), (2,)), ((2, 0, 4), (1, 4)), ((2, 2, 2, 1, 2, 4), (2, 1, 1, 2, 4)),
    ]  # fmt: skip
    cases = []
    for x_shape, angle_shape in shapes:
        leaf, x = strided(builder, x_shape, dtype, rng)
        table_leaf, table = strided(builder, angle_shape, dtype, rng)
        y = builder.apply("rope", [x, table])
        builder.keep(y)
        cases.append((leaf, x, table_leaf, table, y))
    with launched(builder.freeze(), eager(cpu_target(2, best_isa())), device) as session:
        for leaf, _, table_leaf, _, _ in cases:
            for value in (leaf, table_leaf):
                data = rng.normal(size=value.view.shape).astype(value.view.dtype.numpy)
                session.write(value.view, data)
        session.run(1, "forward", {})
        session.wait()
        for _, x, _, table, y in cases:
            seen, angles = (session.read(value.view) for value in (x, table))
            check(session.read(y.view), seen.astype(np.float64), complex_pairs(angles), True, dtype)


def test_half_split_pairs_are_what_rotate_half_makes() -> None:
    """The sum x * cos + rotate_half(x) * sin, with cos and sin repeated, at a far position."""
    rng = np.random.default_rng(11)
    depth, positions = 64, 100_001
    frequency = 10000.0 ** (-np.arange(0, depth, 2) / depth)
    angles = np.arange(positions)[:, None] * frequency
    table = np.stack([np.cos(angles), np.sin(angles)], axis=-1).reshape(positions, depth)
    builder = GraphBuilder("far")
    x = builder.tensor((1, 1, 3, depth), "fp32")
    rows = builder.constant(table, (positions, depth), "fp32")
    y = builder.apply("rope", [x, rows, builder.constant([100_000], (1,), "int32")],
                      {"interleaved": False})  # fmt: skip
    data = rng.normal(size=(1, 1, 3, depth)).astype(np.float32)
    wide = data.astype(np.float64)
    turned = np.concatenate([-wide[..., depth // 2 :], wide[..., : depth // 2]], axis=-1)
    both = np.concatenate([angles[-1], angles[-1]])
    wanted = wide * np.cos(both) + turned * np.sin(both)
    for device in ("numpy", "cpu"):
        with launched(builder.freeze(), cpu_target(1, best_isa()), device) as session:
            session.write(x.view, data)
            session.run(1, "forward", {})
            session.wait()
            assert np.abs(session.read(y.view) - wanted).max() < 1e-6


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize(("start", "value"), [(-1, -1), (-5, -5), (9, 10), (10, 10), (77, 77)])
def test_a_position_outside_of_the_table_names_itself(device: str, start: int, value: int) -> None:
    builder = GraphBuilder("outside")
    x, table = builder.tensor((2, 2, 1, 4), "fp32"), builder.tensor((10, 4), "fp32")
    position = builder.tensor((2,), "int32")
    builder.apply("rope", [x, table, position], name="turned")
    with launched(builder.freeze(), cpu_target(1, best_isa()), device) as session:
        session.write(position.view, np.array([3, start], np.int32))
        session.run(1, "forward", {})
        text = rf"\(rope 'turned'\).*: position {value} is outside the table of 10 rows"
        with pytest.raises(TaskError, match=text):
            session.wait()


@pytest.mark.parametrize(
    ("x", "table", "position", "text"),
    [
        ((2, 8), (2, 3), None, r"other is \(2, 3\); its last size must be even and at most 8"),
        ((2, 8), (2, 10), None, r"other is \(2, 10\); its last size must be even and at most 8"),
        ((2, 8), (3, 8), None, r"other is \(3, 8\), input is \(2, 8\); up to the last"),
        ((2, 8), (1, 2, 8), None, r"other is \(1, 2, 8\), input is \(2, 8\); up to the last"),
        ((), (2,), None, r"a tensor has no dimensions; reshape it"),
        ((2, 3, 8), (9, 8), (), r"they must be \(B, T, H, D\) and \(positions, R\)"),
        ((2, 3, 1, 8), (1, 9, 8), (), r"they must be \(B, T, H, D\) and \(positions, R\)"),
        ((2, 3, 1, 8), (9, 8), (3,), r"position is \(3,\); it must be \(\), \(1,\) or \(2,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    x: tuple[int, ...], table: tuple[int, ...], position: tuple[int, ...] | None, text: str
) -> None:
    builder = GraphBuilder()
    values = [builder.tensor(x, "fp32"), builder.tensor(table, "fp32")]
    if position is not None:
        values.append(builder.tensor(position, "int32"))
    with pytest.raises(ValueError, match=rf"^rope: .*{text}"):
        builder.apply("rope", values)


def test_dtypes_that_do_not_fit_are_refused() -> None:
    builder = GraphBuilder()
    x, table = builder.tensor((2, 3, 1, 8), "fp16"), builder.tensor((9, 8), "bf16")
    with pytest.raises(TypeError, match=r"^rope: dtypes differ, fp16 and bf16; cast other to fp32"):
        builder.apply("rope", [x, table])
    with pytest.raises(TypeError, match=r"^rope: dtype int32 is not supported; use fp32"):
        builder.apply("rope", [builder.tensor((8,), "int32"), table])
    rows = builder.tensor((9, 8), "fp32")
    with pytest.raises(TypeError, match=r"^rope: position is fp32; it must be int32, cast it"):
        builder.apply("rope", [x, rows, builder.tensor((), "fp32")])
