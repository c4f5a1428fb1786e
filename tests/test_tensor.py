"""Tensors: Python's operators, indexing, and the way in and out for NumPy arrays."""

import re

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import ark_dist as ark
from ark_dist.core.dtype import DTYPES

Array = npt.NDArray[np.generic]


def start(*tensors: ark.Tensor, device: str = "numpy") -> ark.Executor:
    """Compile the model of the tensors and launch it."""
    exe = ark.Executor(model=tensors[0].model, device=device)
    exe.compile()
    exe.launch()
    return exe


def compute(result: ark.Tensor, device: str = "numpy") -> Array:
    """Run one iteration and read a tensor."""
    with start(result, device=device) as exe:
        exe.run(1)
        exe.wait()
        return result.to_numpy()


def test_a_tensor_knows_what_it_is() -> None:
    x = ark.tensor((2, 3, 4), ark.BF16, name="x")
    assert (x.shape, x.dtype, x.name) == ((2, 3, 4), ark.BF16, "x")
    assert (x.ndim, x.size, x.nbytes, len(x)) == (3, 24, 48, 2)
    assert repr(x) == "Tensor('x', shape=(2, 3, 4), dtype=bf16)"
    assert repr(ark.Parameter(ark.tensor(1))) == "Parameter('tensor', shape=(1,), dtype=fp32)"
    assert x.T.shape == (4, 3, 2)


def test_tensors_are_equal_and_hashed_by_identity() -> None:
    x, y = ark.tensor(2), ark.tensor(2)
    assert len({x: 1, y: 2}) == 2
    assert x != y
    same = x
    assert x == same


def test_python_operators_take_numbers_on_either_side(device: str) -> None:
    x = ark.state((2,), ark.FP32, init=[4, 8])
    y = ark.state((2,), ark.FP32, init=[1, 2])
    values = {
        "x + y": (x + y, [5, 10]),
        "1 + x": (1 + x, [5, 9]),
        "x - 1": (x - 1, [3, 7]),
        "2 - x": (2 - x, [-2, -6]),
        "x * 0.5": (x * 0.5, [2, 4]),
        "np.float32(3) * x": (np.float32(3) * x, [12, 24]),
        "x / y": (x / y, [4, 4]),
        "16 / x": (16 / x, [4, 2]),
        "x @ y": (x.reshape(1, 2) @ y.reshape(2, 1), [[20]]),
        "x >= 8": (x >= 8, [False, True]),
        "x <= y": (x <= y, [False, False]),
        "8 >= x": (8 >= x, [True, True]),  # noqa: SIM300  the reflected operator
    }
    with start(x, device=device) as exe:
        exe.run(1)
        exe.wait()
        for text, (tensor, expected) in values.items():
            assert tensor.to_numpy().tolist() == expected, text


def test_an_array_as_operand_is_refused_and_not_read() -> None:
    x = ark.tensor(2)
    with pytest.raises(TypeError, match="add: input 0 is ndarray; wanted a tensor of this model"):
        _ = np.zeros(2) + x  # type: ignore[operator]  # on purpose
    with pytest.raises(TypeError, match="add: input 1 is ndarray"):
        _ = x + np.zeros(2)  # type: ignore[operator]  # on purpose


def test_a_number_that_does_not_fit_is_refused() -> None:
    with pytest.raises(TypeError, match=re.escape("0.5 does not fit a tensor of int32")):
        _ = ark.tensor(2, ark.INT32) + 0.5
    with pytest.raises(ValueError, match="300 is out of the range of int8"):
        _ = 300 - ark.tensor(2, ark.INT8)


GRID = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "key",
    [
        np.s_[0],
        np.s_[-1, 2],
        np.s_[1, 2, 3],
        np.s_[:, 1],
        np.s_[..., 1:3],
        np.s_[0, ..., 0],
        np.s_[None, :, None, 1],
        np.s_[1:, :-1, -2:],
        np.s_[:, 3:1],
        np.s_[::2, 1::2],
        np.s_[-1, :-1:3],
        np.s_[()],
        np.s_[...],
        np.s_[np.int64(1)],
    ],
    ids=str,
)
def test_indexing_is_that_of_numpy(key: tuple[int, ...]) -> None:
    x = ark.state(GRID.shape, init=GRID)
    part = x[key]
    result = part + 0
    np.testing.assert_array_equal(compute(result), np.asarray(GRID[key]))


def test_a_whole_slice_is_the_tensor_itself() -> None:
    x = ark.tensor((2, 3))
    assert x[:] is x


@pytest.mark.parametrize(
    ("key", "error", "text"),
    [
        (2, IndexError, "index 2 is out of range for a dimension of size 2"),
        ((0, 0, 0), IndexError, "can't be indexed with 3 items"),
        ((..., ...), IndexError, "can't be indexed with 2 items"),
        (slice(0.5), TypeError, r"can't be sliced with slice\(None, 0.5, None\); its ends are int"),
        (slice(None, None, -1), ValueError, "can't be sliced with step -1"),
        ("x", TypeError, "can't be indexed with a str; use integers, slices"),
        (True, TypeError, "can't be indexed with a bool"),
        ([0, 1], TypeError, "can't be indexed with a list"),
    ],
)
def test_an_index_that_does_not_work_is_explained(
    key: object, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        _ = ark.tensor((2, 3))[key]


def test_iteration_gives_the_parts_along_the_first_dimension() -> None:
    a, b = ark.tensor((2, 3))
    assert a.shape == b.shape == (3,)
    with pytest.raises(TypeError, match="has no dimensions, so it has no length"):
        list(ark.constant(1))


def test_a_tensor_has_no_truth_value_and_no_membership() -> None:
    x = ark.tensor(1)
    with pytest.raises(TypeError, match="has no truth value while the graph is built"):
        bool(x)
    with pytest.raises(TypeError, match=r"can't be told while the graph is built; use x\.equal"):
        _ = 1 in x


def test_reshape_takes_sizes_one_by_one_or_together() -> None:
    x = ark.tensor((2, 6))
    assert x.reshape(3, -1).shape == x.reshape((3, 4)).shape == (3, 4)
    assert x.reshape(12).shape == x.reshape(-1).shape == (12,)
    with pytest.raises(ValueError, match="the numbers of elements must be equal"):
        x.reshape(5)


# The way in and out.


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_comes_back_as_it_was_written(dtype: ark.DType) -> None:
    x = ark.tensor((3, 4), dtype)
    bits = np.random.default_rng(0).integers(0, 256, 12 * dtype.itemsize, np.uint8)
    value = (bits & 1 if dtype is ark.BOOL else bits).view(dtype.numpy).reshape(3, 4)
    start(x)
    assert x.from_numpy(value) is x
    assert x.to_numpy().dtype == dtype.numpy
    assert x.to_numpy().tobytes() == value.tobytes()


@pytest.mark.parametrize(
    ("shape", "array_shape"),
    [
        ((32,), (1, 32)),
        ((1, 32), (32,)),
        ((4, 8), (32,)),
        ((32,), (4, 8)),
        ((), (1,)),
        ((2, 1, 3), (2, 3)),
        ((0, 5), (0,)),
    ],
)
def test_dimensions_of_size_one_and_flat_arrays_pass(
    shape: tuple[int, ...], array_shape: tuple[int, ...]
) -> None:
    x = ark.tensor(shape)
    value = np.arange(x.size, dtype=np.float32).reshape(array_shape)
    start(x)
    x.from_numpy(value)
    np.testing.assert_array_equal(x.to_numpy(), value.reshape(shape))


@pytest.mark.parametrize(
    ("array_shape", "text"),
    [
        ((8, 4), "the array has shape (8, 4), tensor 'x' has (4, 8); transpose the array"),
        ((2, 16), "the array has shape (2, 16), tensor 'x' has (4, 8); reshape the array"),
        ((31,), "the array has shape (31,), tensor 'x' has (4, 8)"),
    ],
)
def test_an_array_of_another_shape_is_refused(array_shape: tuple[int, ...], text: str) -> None:
    x = ark.tensor((4, 8), name="x")
    start(x)
    with pytest.raises(ValueError, match=re.escape(text)):
        x.from_numpy(np.zeros(array_shape))


@pytest.mark.parametrize(
    "value",
    [
        np.array([1.5, -2]),
        np.array([1, -2]),
        np.array([True, False]),
        np.array([1e9, 0], np.float32),
    ],
    ids=str,
)
def test_from_numpy_converts_numbers(value: npt.NDArray[np.float64]) -> None:
    x = ark.tensor(2, ark.FP16)
    start(x)
    x.from_numpy(value)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(x.to_numpy(), value.astype(np.float16))


@pytest.mark.parametrize("value", [np.array([1j]), np.array(["a"]), np.array([None])], ids=str)
def test_from_numpy_refuses_what_is_no_number(value: npt.NDArray[np.float64]) -> None:
    x = ark.tensor(1, name="x")
    start(x)
    with pytest.raises(TypeError, match="tensor 'x' is fp32; only arrays of real numbers or bool"):
        x.from_numpy(value)


def test_only_arrays_can_be_written() -> None:
    x = ark.tensor(1)
    start(x)
    with pytest.raises(TypeError, match=r"from_numpy: found a list, wanted a numpy\.ndarray"):
        x.from_numpy([1.0])  # type: ignore[arg-type]  # on purpose


def test_the_source_may_have_any_strides_and_byte_order() -> None:
    x = ark.tensor((3, 2))
    start(x)
    source = np.arange(12, dtype=">f4").reshape(2, 6)[:, ::2].T
    source.flags.writeable = False
    x.from_numpy(source)
    np.testing.assert_array_equal(x.to_numpy(), source)


def test_views_of_inputs_can_be_written_and_read() -> None:
    x = ark.tensor((2, 3))
    row, turned = x[1], x.T
    start(x)
    row.from_numpy(np.array([1, 2, 3]))
    np.testing.assert_array_equal(x.to_numpy(), [[0, 0, 0], [1, 2, 3]])
    np.testing.assert_array_equal(turned.to_numpy(), [[0, 1], [0, 2], [0, 3]])


def test_a_part_of_an_output_can_be_taken_after_the_run() -> None:
    y = ark.state((2, 2), init=[[1, 2], [3, 4]]) * 2
    with start(y) as exe:
        exe.run(1)
        exe.wait()
        np.testing.assert_array_equal(y[1].to_numpy(), [6, 8])


@pytest.mark.parametrize("kind", ["constant", "activation"])
def test_what_the_model_computes_can_not_be_written(kind: str) -> None:
    x = ark.constant([1.0, 2.0]) if kind == "constant" else ark.tensor(2) + 1
    x.relu()
    start(x)
    text = "a constant" if kind == "constant" else "computed by the model"
    with pytest.raises(ValueError, match=f"is {text}; only inputs, states and parameters can"):
        x.from_numpy(np.zeros(2))


def test_a_broadcast_view_can_not_be_written() -> None:
    x = ark.tensor((1, 2)).broadcast_to((3, 2))
    start(x)
    with pytest.raises(ValueError, match="is spread by broadcast_to here; write its source"):
        x.from_numpy(np.zeros((3, 2)))


def test_an_activation_that_is_used_can_not_be_read_and_the_error_names_the_fix() -> None:
    y = ark.tensor(2) + 1
    y.relu()
    start(y)
    with pytest.raises(ValueError, match=r"'add' is used by other .* call model\.keep\(tensor\)"):
        y.to_numpy()


def test_to_numpy_fills_a_destination() -> None:
    x = ark.state((2, 2), ark.BF16, init=1.5)
    start(x)
    out = np.zeros((1, 2, 2), ml_dtypes.bfloat16)
    assert x.to_numpy(out) is out
    assert out.astype(np.float32).tolist() == [[[1.5, 1.5], [1.5, 1.5]]]
    assert x.to_numpy(local=True).shape == (2, 2)


@pytest.mark.parametrize(
    ("out", "error", "text"),
    [
        ([0.0] * 6, TypeError, "found a list, wanted a numpy.ndarray"),
        (np.zeros((2, 3)), TypeError, "the destination is float64, tensor 'x' is fp32"),
        (np.zeros((2, 3), ">f4"), TypeError, "the destination is >f4, tensor 'x' is fp32"),
        (np.zeros((3, 2), np.float32).T, ValueError, "is not C-contiguous"),
        (np.zeros((3, 2), np.float32), ValueError, "the array has shape (3, 2), tensor 'x' has"),
        (np.frombuffer(bytes(24), np.float32).reshape(2, 3), ValueError, "is read-only"),
    ],
)
def test_a_destination_that_does_not_fit_is_refused(
    out: Array, error: type[Exception], text: str
) -> None:
    x = ark.tensor((2, 3), name="x")
    start(x)
    with pytest.raises(error, match=re.escape(text)):
        x.to_numpy(out)


def test_what_is_read_is_a_copy() -> None:
    x = ark.tensor(2)
    start(x)
    x.to_numpy()[:] = 7
    assert x.to_numpy().tolist() == [0, 0]


def test_numpy_reads_a_tensor_by_itself() -> None:
    x = ark.state(2, ark.FP16, init=[1, 2])
    start(x)
    assert np.asarray(x).dtype == np.float16
    assert np.asarray(x, np.float64).tolist() == [1, 2]
    np.testing.assert_array_equal(x, [1, 2])
    with pytest.raises(ValueError, match="only given as a copy"):
        x.__array__(copy=False)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int32", "uint32", "int8", "uint8", "byte"])
def test_dlpack_carries_a_copy(dtype: str) -> None:
    x = ark.state((2, 2), dtype, init=1)
    start(x)
    value = np.from_dlpack(x)
    np.testing.assert_array_equal(value, x.to_numpy())


def test_dlpack_says_what_it_can_not_carry() -> None:
    x = ark.state(2, ark.BF16)
    start(x)
    with pytest.raises(BufferError, match=r"DLPack can't carry bf16: .* use to_numpy\(\)"):
        x.__dlpack__()
    for options in ({"copy": False}, {"dl_device": (2, 0)}, {"stream": 1}):
        with pytest.raises(BufferError, match="only given as a copy on the CPU"):
            x.__dlpack__(**options)


@pytest.mark.parametrize("call", ["from_numpy", "to_numpy", "__array__", "__dlpack__"])
def test_a_tensor_without_memory_says_how_to_get_it(call: str) -> None:
    x = ark.tensor(1)
    arguments = [np.zeros(1)] if call == "from_numpy" else []
    with pytest.raises(ark.LifecycleError, match=f"{call}: model 'model' has no memory yet; call"):
        getattr(x, call)(*arguments)
    ark.Executor(model=x.model, device="numpy")
    with pytest.raises(ark.LifecycleError, match=r"is not allowed while new; call compile\(\) fi"):
        getattr(x, call)(*arguments)


def test_a_tensor_added_later_is_told_from_those_of_the_program() -> None:
    x = ark.tensor(1)
    start(x)
    y = x + 1
    with pytest.raises(ark.LifecycleError, match="'add' was added to the model after its Executor"):
        y.to_numpy()


def test_the_latest_executor_serves_the_tensors() -> None:
    x = ark.tensor(1)
    first = start(x)
    x.from_numpy(np.ones(1))
    second = start(x)
    assert x.to_numpy().tolist() == [0]
    second.close()
    with pytest.raises(ark.LifecycleError, match="the program was closed; make a new one"):
        x.to_numpy()
    out = np.zeros(1, np.float32)
    first.tensor_memcpy_device_to_host(out, x)
    assert out.tolist() == [1]
