"""Weights of modules: they load all or nothing, and come back bit for bit."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest

import ark_dist as ark
from tests.module_models import Array, Inner, Outer, launched, weights


def test_a_module_runs_with_the_weights_it_loaded(device: str) -> None:
    module, x, y, runtime = launched(device)
    data = np.arange(8).reshape(4, 2)
    x.from_numpy(data)
    assert module.load_state_dict(weights()) == ([], [])
    runtime.run()
    one, two = (w.astype(np.float64) for w in weights().values())
    np.testing.assert_array_equal(y.to_numpy(), np.maximum(data @ one, 0) @ two * 2)
    found = module.state_dict()
    assert list(found) == ["weight_1", "submodule.weight_2"]
    for name, value in weights().items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)
    runtime.close()


def test_weights_have_memory_only_after_launch() -> None:
    module = Outer()
    for call in (lambda: module.load_state_dict(weights()), module.state_dict):
        with pytest.raises(ark.LifecycleError, match=r"'weight_1' has no memory yet; call launch"):
            call()
    ark.Executor(device="numpy")
    with pytest.raises(ark.LifecycleError, match="'weight_1' has no memory yet"):
        module.load_state_dict(weights())


def test_weights_can_not_be_loaded_during_a_run() -> None:
    module, _, _, runtime = launched()
    module.load_state_dict(weights())
    runtime.run(non_blocking=True)
    with pytest.raises(ark.LifecycleError, match=r"write\(\) is not allowed while running; call w"):
        module.load_state_dict(weights())


def test_a_run_without_weights_names_them_as_the_module_does() -> None:
    _, _, _, runtime = launched()
    with pytest.raises(ark.LifecycleError, match=r"2 weights .*: Outer.weight_1, Inner.weight_2;"):
        runtime.run()


def test_everything_that_does_not_fit_is_listed_and_nothing_is_loaded() -> None:
    class Wide(Outer):
        def __init__(self) -> None:
            super().__init__()
            self.turned = ark.Parameter(ark.tensor([2, 5], ark.FP32))
            self.typed = ark.Parameter(ark.tensor([2], ark.FP32))

    module = Wide()
    ark.Executor(device="numpy").compile()
    given = {
        "weight_1": weights()["weight_1"],
        "turned": np.zeros((5, 2), np.float32),
        "typed": np.zeros(2, np.float64),
        "surplus": np.zeros(1),
    }
    with pytest.raises(ark.StateDictError) as caught:
        module.load_state_dict(given)
    assert str(caught.value).splitlines() == [
        "load_state_dict: nothing was loaded into Wide:",
        "  missing: submodule.weight_2",
        "  unexpected: surplus",
        "  wrong shape: turned is (2, 5), found (5, 2) (transposed?)",
        "  wrong dtype (cast=True converts): typed is fp32, found float64",
    ]
    assert not any(np.any(value) for value in module.state_dict().values())


def test_long_lists_are_cut_after_twenty_names() -> None:
    module, _, _, _ = launched()
    surplus: dict[str, Array] = {f"s{i}": np.zeros(1) for i in range(30)}
    with pytest.raises(ark.StateDictError, match=r"unexpected: s0, .*, s19 and 10 more$"):
        module.load_state_dict(weights() | surplus)


def test_a_load_that_is_not_strict_says_what_it_passed_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    module, _, _, runtime = launched()
    given = {"weight_1": weights()["weight_1"], "a": np.zeros(1), "b": np.zeros(1)}
    with caplog.at_level(logging.WARNING, "ark_dist"):
        result = module.load_state_dict(given, strict=False)
    assert result.missing_keys == ["submodule.weight_2"]
    assert result.unexpected_keys == ["a", "b"]
    assert caplog.messages == ["load_state_dict: Outer has no a, b; skipped"]
    np.testing.assert_array_equal(module.weight_1.to_numpy(), given["weight_1"])
    with pytest.raises(ark.LifecycleError, match=r"1 weights were never written: Inner\.weight_2"):
        runtime.run()
    with pytest.raises(ark.StateDictError, match="wrong shape: weight_1"):
        module.load_state_dict({"weight_1": np.zeros(1, np.float16)}, strict=False)


def test_arrays_of_another_dtype_are_cast_only_when_asked() -> None:
    module, _, _, _ = launched()
    given = {name: value.astype(np.float64) for name, value in weights().items()}
    with pytest.raises(ark.StateDictError, match="wrong dtype"):
        module.load_state_dict(given)
    module.load_state_dict(given, cast=True)
    np.testing.assert_array_equal(module.weight_1.to_numpy(), weights()["weight_1"])


def test_weights_are_kept_bit_for_bit() -> None:
    model = ark.Model()
    module = ark.Module()
    for name, dtype in (("h", "fp16"), ("b", "bf16"), ("f", "fp32"), ("i", "int8")):
        setattr(module, name, model.parameter(64, dtype))
    ark.Executor(model=model, device="numpy").compile()
    rng = np.random.default_rng(1)
    given: dict[str, Array] = {
        name: rng.integers(0, 256, parameter.nbytes, np.uint8).view(parameter.dtype.numpy)
        for name, parameter in module.named_parameters()
    }
    given["f"] = np.array([0x7FC12345, 0xFF800001] * 32, np.uint32).view(np.float32)
    module.load_state_dict(given)
    for name, value in module.state_dict().items():
        assert value.tobytes() == given[name].tobytes()


def test_arrays_may_be_strided_read_only_or_of_the_other_byte_order() -> None:
    module, _, _, _ = launched()
    one = np.asfortranarray(weights()["weight_1"])
    two = weights()["submodule.weight_2"].astype(">f2")
    two.flags.writeable = False
    module.load_state_dict({"weight_1": one, "submodule.weight_2": two})
    for name, value in weights().items():
        np.testing.assert_array_equal(module.state_dict()[name], value)


def test_a_state_dict_is_a_copy() -> None:
    module, _, _, _ = launched()
    module.state_dict()["weight_1"][...] = 9
    assert not np.any(module.state_dict()["weight_1"])


def test_names_may_have_a_prefix() -> None:
    module, _, _, _ = launched()
    given = {f"model.{name}": value for name, value in weights().items()}
    module.load_state_dict(given | {"other.part": np.zeros(1)}, prefix="model.")
    assert list(module.state_dict("model.")) == list(given)
    with pytest.raises(ark.StateDictError, match=r"unexpected: model\.surplus"):
        module.load_state_dict(given | {"model.surplus": np.zeros(1)}, prefix="model.")


class Tied(ark.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = ark.Parameter(ark.tensor([2], ark.FP32))
        self.head = self.embedding
        self.third = ark.Parameter(self.embedding)
        ark.Executor(device="numpy").compile()


def test_a_tied_parameter_has_all_its_names_and_one_array() -> None:
    module = Tied()
    assert [name for name, _ in module.named_parameters()] == ["embedding"]
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    assert names == ["embedding", "head", "third"]
    values = module.state_dict()
    assert list(values) == names
    assert values["embedding"] is values["head"] is values["third"]


def test_a_module_under_two_names_is_loaded_once() -> None:
    module = ark.Module()
    module.one = module.two = Inner()
    ark.Executor(device="numpy").compile()
    assert list(module.params_dict()) == ["one.weight_2", "two.weight_2"]
    assert [name for name, _ in module.named_modules()] == ["", "one"]
    module.load_state_dict({"two.weight_2": np.ones((3, 2), np.float16)})
    assert module.state_dict()["one.weight_2"].tolist() == [[1, 1]] * 3


def test_tied_names_must_agree_if_several_are_given() -> None:
    module = Tied()
    a, b = np.array([1, 2], np.float32), np.array([1, 3], np.float32)
    module.load_state_dict({"head": a})
    assert module.state_dict()["embedding"].tolist() == [1, 2]
    module.load_state_dict({"embedding": b, "head": b.copy()})
    with pytest.raises(
        ark.StateDictError, match="one parameter, but the arrays differ: embedding and head"
    ):
        module.load_state_dict({"embedding": a, "head": b})
    assert module.state_dict()["embedding"].tolist() == [1, 3]
    with pytest.raises(ark.StateDictError, match="missing: embedding, head, third"):
        module.load_state_dict({})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["dir"], "found a list, wanted a dict of name to numpy.ndarray, or the path of a file"),
        ({1: np.zeros(1)}, "found the name 1, wanted a string"),
        (
            {"w": [1.0]},
            "'w' is a list, wanted a numpy.ndarray; ark.convert_state_dict(state_dict, ",
        ),
    ],
)
def test_what_is_no_state_dict_is_refused(given: object, text: str) -> None:
    with pytest.raises(TypeError, match=re.escape(text)):
        ark.Module().load_state_dict(given)  # type: ignore[arg-type]  # on purpose


def test_numbers_are_needed_even_when_casting() -> None:
    module, _, _, _ = launched()
    given = weights() | {"weight_1": np.full((2, 3), "x")}
    with pytest.raises(TypeError, match="only arrays of real numbers or bool convert"):
        module.load_state_dict(given, cast=True)


def test_a_parameter_made_after_launch_is_told_apart() -> None:
    module, _, _, _ = launched()
    module.late = ark.Parameter(ark.tensor(1))
    for call in (lambda: module.load_state_dict(weights()), module.state_dict):
        with pytest.raises(ark.LifecycleError, match="was added to the model after its Executor"):
            call()


def test_saving_and_loading_a_file_gives_the_same_weights(tmp_path: Path) -> None:
    module, _, _, _ = launched()
    module.load_state_dict(weights())
    ark.save(module.state_dict(), tmp_path / "test_model.pt")
    module.load_state_dict({name: np.zeros_like(value) for name, value in weights().items()})
    module.load_state_dict(ark.load(tmp_path / "test_model.pt"))
    for name, value in weights().items():
        np.testing.assert_array_equal(module.state_dict()[name], value)
