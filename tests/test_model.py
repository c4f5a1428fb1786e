"""Building a model: leaves, operators, methods, and the errors on the way."""

import re

import numpy as np
import pytest

import ark_dist as ark
from ark_dist.core.graph import Graph


def ops_of(graph: Graph, method: int = 0) -> list[str]:
    """The operators of a method, in order."""
    return [node.op for node in graph.methods[method].nodes]


def run(model: ark.Model, device: str = "numpy", iterations: int = 1) -> ark.Executor:
    """Run a model to the end and return the executor, stopped."""
    exe = ark.Executor(model=model, device=device)
    exe.compile()
    exe.launch()
    exe.run(iterations)
    exe.stop()
    return exe


def test_the_signature_of_ark_works() -> None:
    model = ark.Model()
    x = model.tensor(ark.Dims(32), ark.TensorType.FP16)
    y = model.tensor(ark.Dims((32,)), ark.TensorType.FP16)
    z = model.add(x, y)
    assert z.model is model
    assert (z.shape, z.dtype, z.name) == ((32,), ark.FP16, "add")


@pytest.mark.parametrize("shape", [(2, 3), [2, 3], ark.Dims(2, 3), tuple(np.array([2, 3]))])
def test_a_shape_may_be_any_sequence_of_integers(shape: list[int]) -> None:
    assert ark.Model().tensor(shape).shape == (2, 3)


def test_a_shape_may_be_one_integer_and_the_dtype_is_fp32_by_default() -> None:
    x = ark.Model().tensor(6)
    assert (x.shape, x.dtype) == ((6,), ark.FP32)


@pytest.mark.parametrize("dtype", ["fp16", np.float16, ark.fp16, np.dtype("float16")])
def test_a_dtype_may_be_named_in_several_ways(dtype: str) -> None:
    assert ark.Model().tensor(2, dtype).dtype is ark.FP16


def test_building_does_no_device_work() -> None:
    model = ark.Model()
    x = model.tensor((2**24, 2**24))
    assert (x + 1).size == 2**48
    assert model.binding is None


def test_names_are_made_unique_and_given_names_are_kept() -> None:
    model = ark.Model("m")
    x, y = model.tensor(1, name="x"), model.tensor(1, name="x")
    assert (x.name, y.name, model.add(x, y, name="sum").name) == ("x", "x_1", "sum")
    assert (model.name, repr(model)) == ("m", "Model('m')")
    assert '"sum": %2 = add(%0, %1)' in str(model)


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        (True, ark.BOOL, ()),
        (3, ark.INT32, ()),
        (0.5, ark.FP32, ()),
        ([1, 2], ark.INT32, (2,)),
        ([[0.5], [1]], ark.FP32, (2, 1)),
        (np.float16(2), ark.FP16, ()),
        (np.zeros((2, 2), np.int8), ark.INT8, (2, 2)),
    ],
)
def test_a_constant_takes_its_dtype_and_shape_from_the_value(
    value: object, dtype: ark.DType, shape: tuple[int, ...]
) -> None:
    tensor = ark.Model().constant(value)
    assert (tensor.dtype, tensor.shape) == (dtype, shape)


def test_a_constant_is_spread_over_its_shape(device: str) -> None:
    model = ark.Model()
    y = model.constant(2, (2, 3), ark.FP32) + model.constant([1, 2, 3], None, ark.FP32)
    run(model, device)
    assert y.to_numpy().tolist() == [[3, 4, 5], [3, 4, 5]]


@pytest.mark.parametrize(("value", "dtype"), [(300, "int8"), (0.5, "int32"), (-1, "uint8")])
def test_a_constant_that_does_not_fit_its_dtype_is_refused(value: float, dtype: str) -> None:
    with pytest.raises(ValueError, match=f"constant: a value does not fit {dtype}"):
        ark.Model().constant(value, 1, dtype)


def test_a_constant_too_large_for_int32_does_not_wrap() -> None:
    with pytest.raises(ValueError, match="does not fit int32"):
        ark.Model().constant(2**40)


def test_a_constant_of_strings_is_refused() -> None:
    with pytest.raises(TypeError, match="constant: found <U1 values; wanted numbers or bool"):
        ark.Model().constant("x")


def test_an_array_constant_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("the array has shape (2,), wanted (3,)")):
        ark.Model().constant([1, 2], 3)


def test_an_array_of_an_unsupported_dtype_is_refused() -> None:
    with pytest.raises(TypeError, match=r"dtype .*float64.* is not supported"):
        ark.Model().constant(np.zeros(2))


def test_state_lives_across_iterations_and_runs(device: str) -> None:
    model = ark.Model()
    count = model.state((2,), ark.INT32, init=5, name="count")
    assert model.assign(count, count + 1) is count
    exe = run(model, device, iterations=3)
    assert count.to_numpy().tolist() == [8, 8]
    exe.launch()
    exe.run(2)
    exe.stop()
    assert count.to_numpy().tolist() == [10, 10]
    exe.reset_state()
    assert count.to_numpy().tolist() == [5, 5]


def test_a_number_is_assigned_to_every_element() -> None:
    model = ark.Model()
    s = model.state((2, 2), ark.FP16)
    model.assign(s, 1.5)
    run(model)
    assert s.to_numpy().tolist() == [[1.5, 1.5], [1.5, 1.5]]


def test_only_tensors_can_be_assigned_to() -> None:
    with pytest.raises(TypeError, match="assign: found a int, wanted a state"):
        ark.Model().assign(3, 4)  # type: ignore[arg-type]  # on purpose


def test_an_assigned_value_must_have_the_state_shape() -> None:
    model = ark.Model()
    with pytest.raises(ValueError, match=r"the result is fp32\[3\], the output 'state' is fp32"):
        model.assign(model.state(2), model.tensor(3))


def test_a_state_with_a_value_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="state: a value does not fit uint8"):
        ark.Model().state(2, ark.UINT8, init=256)


def test_a_run_can_set_scalars(device: str) -> None:
    model = ark.Model()
    position = model.scalar("position", init=1)
    y = position * 10
    model.assign(position, position + 1)
    exe = ark.Executor(model=model, device=device)
    exe.compile()
    exe.launch()
    exe.run(1)
    exe.wait()
    assert y.to_numpy().tolist() == [10]
    exe.run(2, scalars={"position": 7})
    exe.wait()
    assert y.to_numpy().tolist() == [80]
    with pytest.raises(ValueError, match="scalar 'x' is not one of method 'forward'; there are po"):
        exe.run(1, scalars={"x": 1})
    exe.close()


def test_a_scalar_needs_a_name_of_its_own() -> None:
    model = ark.Model()
    model.tensor(1, name="x")
    with pytest.raises(ValueError, match="scalar: the name 'x' is taken"):
        model.scalar("x")


def test_a_model_may_have_several_methods(device: str) -> None:
    model = ark.Model()
    s = model.state(1, ark.FP32)
    with model.method("up"):
        model.assign(s, s + 1)
    with model.method("down"):
        model.assign(s, s - 10)
    exe = ark.Executor(model=model, device=device)
    assert exe.plan.method_names == ("up", "down")
    exe.compile()
    exe.launch()
    exe.run(3, method="up")
    exe.run(1, method="down")
    assert exe.wait() == 4
    assert s.to_numpy().tolist() == [-7]
    with pytest.raises(ValueError, match="method 'forward' is not in the program; there are up, d"):
        exe.run(1)
    exe.close()


def test_a_method_block_ends_with_an_error_too() -> None:
    model = ark.Model()
    with pytest.raises(ZeroDivisionError), model.method("other"):
        raise ZeroDivisionError
    assert model.builder.method == "forward"


def test_a_kept_tensor_can_be_read_though_it_is_used(device: str) -> None:
    model = ark.Model()
    x = model.state(3, ark.FP32, init=2)
    middle = model.keep(x * 3)
    end = middle.relu() + 1
    run(model, device)
    assert middle.to_numpy().tolist() == [6, 6, 6]
    assert end.to_numpy().tolist() == [7, 7, 7]


def test_a_tensor_of_another_method_can_be_kept() -> None:
    model = ark.Model()
    with model.method("other"):
        middle = model.state(1) + 1
        model.relu(middle)
    assert model.keep(middle) is middle


def test_only_tensors_of_the_model_can_be_kept() -> None:
    with pytest.raises(TypeError, match="keep: found a int, wanted a tensor"):
        ark.Model().keep(3)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ValueError, match="keep: tensor 'tensor' belongs to model 'a', not to 'b'"):
        ark.Model("b").keep(ark.Model("a").tensor(1))


def test_tensors_of_two_models_do_not_mix() -> None:
    a, b = ark.Model("a"), ark.Model("b")
    with pytest.raises(ValueError, match="add: tensor 'y' belongs to model 'b', not to 'a'"):
        a.add(a.tensor(1), b.tensor(1, name="y"))
    with pytest.raises(ValueError, match="belongs to model 'b', not to 'a'"):
        ark.add(a.tensor(1), b.tensor(1))


def test_free_functions_work_on_the_tensors_own_model() -> None:
    model = ark.Model()
    y = ark.matmul(model.tensor((2, 3)), model.tensor((3, 4)), is_relu=True)
    assert y.model is model
    assert y.shape == (2, 4)


def test_module_level_leaves_go_to_the_current_model() -> None:
    x = ark.tensor([2], ark.FP16)
    leaves = [ark.parameter(2), ark.constant(1), ark.state(2), ark.scalar("n")]
    assert {leaf.model for leaf in leaves} == {x.model}
    s = ark.state(2, ark.FP16)
    assert ark.assign(s, x) is s
    assert ark.keep(x) is x
    with ark.method("other"):
        y = s + 1
    assert [m.name for m in x.model.freeze().methods] == ["forward", "other"]
    ark.init()
    assert ark.tensor(1).model is x.model
    ark.init(reset=True)
    assert ark.tensor(1).model is not y.model


def test_module_level_calls_check_their_arguments_too() -> None:
    with pytest.raises(TypeError, match="assign: found a int"):
        ark.assign(1, 2)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match="keep: found a int"):
        ark.keep(1)  # type: ignore[arg-type]  # on purpose


def test_an_operator_without_a_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match=re.escape("add: found int and ndarray, wanted a tensor")):
        ark.add(1, np.zeros(2))  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    ("op", "attributes", "text"),
    [
        ("narrow", {"axis": 0, "start": 0.5, "length": 1}, "start is 0.5; it must be an integer"),
        ("narrow", {"axis": True, "start": 0, "length": 1}, "axis is True; it must be an integer"),
        ("layernorm", {"eps": "x"}, "eps is 'x'; it must be a number"),
        ("layernorm", {"eps": True}, "eps is True; it must be a number"),
        ("reduce_sum", {"axis": 0, "keepdims": 1}, "keepdims is 1; it must be True or False"),
        ("reshape", {"shape": "ab"}, "shape is 'ab'; it must be a sequence of integers"),
        ("reshape", {"shape": None}, "shape is None; it must be a sequence of integers"),
        ("broadcast_to", {"shape": [2.5]}, r"shape is \[2.5\]; it must be a sequence"),
        ("cast", {"dtype": "fp8"}, "dtype is 'fp8'; it must be a dtype such as ark.FP16"),
    ],
)
def test_an_attribute_of_the_wrong_type_is_named(
    op: str, attributes: dict[str, object], text: str
) -> None:
    with pytest.raises(TypeError, match=f"{op}: {text}"):
        getattr(ark, op)(ark.Model().tensor((2, 2)), **attributes)


def test_attributes_may_be_numpy_numbers() -> None:
    x = ark.Model().tensor((4, 2))
    assert x.narrow(np.int64(0), np.int32(1), np.uint8(2)).shape == (2, 2)
    assert x.reshape(np.array([2, 4])).shape == (2, 4)  # type: ignore[arg-type]  # works all the same
    assert x.cast(np.float16).dtype is ark.FP16


def test_an_output_must_be_a_tensor() -> None:
    model = ark.Model()
    with pytest.raises(TypeError, match="relu: output is 3; it must be a tensor"):
        model.relu(model.tensor(1), output=3)  # type: ignore[arg-type]  # on purpose


def test_dependencies_must_be_tensors() -> None:
    model = ark.Model()
    with pytest.raises(TypeError, match="identity: found 3 among deps; wanted tensors"):
        model.identity(model.tensor(1), deps=[3])  # type: ignore[list-item]  # on purpose


def test_dependencies_order_operators() -> None:
    model = ark.Model()
    x, y = model.tensor(2), model.tensor(2)
    z = model.relu(model.identity(x, deps=[y + 1]))
    graph = model.freeze("renamed")
    assert graph.name == "renamed"
    assert ops_of(graph) == ["add", "relu"]
    assert graph.methods[0].nodes[1].after
    assert z.shape == (2,)


def test_an_operator_can_write_into_a_given_tensor(device: str) -> None:
    model = ark.Model()
    x, out = model.state(2, init=3), model.tensor(2)
    assert model.add(x, 1, output=out) is out
    run(model, device)
    assert out.to_numpy().tolist() == [4, 4]


def test_a_parameter_is_a_tensor_and_a_weight() -> None:
    model = ark.Model()
    weight = model.parameter((2, 2), ark.BF16)
    assert isinstance(weight, ark.Parameter)
    assert isinstance(ark.Parameter(model.tensor(2)), ark.Tensor)
    assert [b.kind for b in model.freeze().buffers] == ["weight", "weight"]
    assert weight.name == "parameter"


def test_only_a_whole_input_can_become_a_parameter() -> None:
    model = ark.Model()
    with pytest.raises(TypeError, match="Parameter: found a list, wanted a tensor"):
        ark.Parameter([1])  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match="is only a part of its memory"):
        ark.Parameter(model.tensor((2, 2))[0])
    with pytest.raises(TypeError, match="is of kind activation, not an input"):
        ark.Parameter(model.tensor(2) + 1)


def test_a_shard_is_kept_on_the_buffer() -> None:
    model = ark.Model()
    model.parameter((2, 2), shard=ark.P(None, "tp"))
    assert model.freeze().buffers[0].shard == ark.P(None, "tp")
    with pytest.raises(ValueError, match="names 1 dimensions, the shape"):
        model.tensor((2, 2), shard=ark.P("tp"))
