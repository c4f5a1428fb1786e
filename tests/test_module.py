"""Modules: registration, and walking the tree."""

import pytest

import ark_dist as ark
from tests.module_models import Inner, Outer


def test_calling_a_module_is_calling_forward() -> None:
    module = Outer()
    x = ark.tensor([4, 2], ark.FP16)
    assert module(x).shape == module.forward(x).shape == (4, 2)


def test_a_module_without_forward_or_backward_names_its_class() -> None:
    class Empty(ark.Module):
        pass

    with pytest.raises(NotImplementedError, match=r"Empty has no forward\(\); define it"):
        Empty()(1)
    with pytest.raises(NotImplementedError, match=r"Empty has no backward\(\); define it"):
        Empty().backward(1)


def test_backward_is_whatever_the_user_defines() -> None:
    class Own(ark.Module):
        def backward(self, gradient: int) -> int:
            return gradient + 1

    assert Own().backward(2) == 3


# Registration.


def test_parameters_and_submodules_are_found_by_their_names() -> None:
    module = Outer()
    assert [name for name, _ in module.named_parameters()] == ["weight_1", "submodule.weight_2"]
    assert list(module.parameters()) == [module.weight_1, module.submodule.weight_2]
    assert [n for n, _ in module.named_parameters("a", recurse=False)] == ["a.weight_1"]
    assert list(module.parameters(recurse=False)) == [module.weight_1]
    assert [name for name, _ in module.named_modules()] == ["", "submodule"]
    assert list(module.modules()) == [module, module.submodule]
    assert list(module.named_children()) == [("submodule", module.submodule)]
    assert list(module.children()) == [module.submodule]
    assert list(module.params_dict("p.")) == ["p.weight_1", "p.submodule.weight_2"]
    assert {"weight_1", "submodule", "forward"} <= set(dir(module))


def test_the_text_of_a_module_nests_as_in_torch() -> None:
    class Scaled(Inner):
        def extra_repr(self) -> str:
            return "scale=2"

    module = Outer()
    module.scaled = Scaled()
    module.scaled.inner = Inner()
    assert repr(module) == (
        "Outer(\n  (submodule): Inner()\n  (scaled): Scaled(\n    scale=2\n"
        "    (inner): Inner()\n  )\n)"
    )
    assert repr(Scaled()) == "Scaled(scale=2)"


def test_assigning_a_plain_value_removes_the_registration() -> None:
    module = Outer()
    module.weight_1 = 3  # type: ignore[assignment]  # on purpose
    module.submodule = None  # type: ignore[assignment]  # on purpose
    found: tuple[object, ...] = (module.weight_1, module.submodule, module.params_dict())
    assert found == (3, None, {})
    module.weight_1 = ark.Parameter(ark.tensor(1))
    module.submodule = Inner()
    assert list(module.params_dict()) == ["weight_1", "submodule.weight_2"]


def test_a_name_holds_one_thing_at_a_time() -> None:
    module = Outer()
    module.weight_1 = Inner()  # type: ignore[assignment]  # on purpose
    assert sorted(module.params_dict()) == ["submodule.weight_2", "weight_1.weight_2"]
    module.submodule = ark.Parameter(ark.tensor(1))  # type: ignore[assignment]  # on purpose
    assert sorted(module.params_dict()) == ["submodule", "weight_1.weight_2"]


def test_attributes_can_be_deleted() -> None:
    module = Outer()
    module.plain = 1
    del module.weight_1, module.submodule, module.plain
    assert module.params_dict() == {}
    for name in ("weight_1", "submodule", "plain"):
        with pytest.raises(AttributeError, match=f"'Outer' object has no attribute '{name}'"):
            getattr(module, name)
    with pytest.raises(AttributeError, match="plain"):
        del module.plain


def test_a_tensor_that_is_no_parameter_is_a_plain_attribute() -> None:
    module = Outer()
    module.cache = ark.tensor(1)
    assert "cache" not in module.params_dict()


def test_registering_by_call_is_the_same_as_assigning() -> None:
    module, inner, weight = Outer(), Inner(), ark.Parameter(ark.tensor(1))
    module.register_parameter("extra", weight)
    module.register_module("one", inner)
    module.add_module("two", Inner())
    assert module.extra is weight
    assert module.one is inner
    assert list(module.params_dict())[-2:] == ["one.weight_2", "two.weight_2"]


@pytest.mark.parametrize(
    ("call", "name", "value", "error", "text"),
    [
        ("register_parameter", "w", 3, TypeError, "'w' is a int, wanted an ark.Parameter"),
        ("register_parameter", "w", "tensor", TypeError, "'w' is a Tensor, wanted an ark.Parame"),
        ("register_module", "m", 3, TypeError, "'m' is a int, wanted an ark.Module"),
        ("add_module", "m", None, TypeError, "'m' is a NoneType, wanted an ark.Module"),
        ("register_parameter", "a.b", "parameter", ValueError, "name 'a.b' must be a non-empty st"),
        ("register_parameter", "", "parameter", ValueError, "name '' must be a non-empty string"),
        ("register_parameter", 3, "parameter", ValueError, "name 3 must be a non-empty string"),
        ("register_module", "a.b", "module", ValueError, "name 'a.b' must be a non-empty string"),
        (
            "register_parameter",
            "forward",
            "parameter",
            ValueError,
            "has an attribute 'forward' alr",
        ),
        (
            "register_module",
            "weight_1",
            "module",
            ValueError,
            "has an attribute 'weight_1' already",
        ),
    ],
)
def test_a_registration_that_does_not_work_is_refused(
    call: str, name: object, value: object, error: type[Exception], text: str
) -> None:
    made = {
        "tensor": lambda: ark.tensor(1),
        "parameter": lambda: ark.Parameter(ark.tensor(1)),
        "module": Inner,
    }
    item = made[value]() if isinstance(value, str) else value
    with pytest.raises(error, match=text):
        getattr(Outer(), call)(name, item)


def test_a_module_can_not_hold_itself() -> None:
    module = Outer()
    with pytest.raises(ValueError, match="'loop' holds this module itself; no cycles work"):
        module.submodule.loop = module


def test_forgetting_to_call_the_base_class_is_explained() -> None:
    class Forgot(ark.Module):
        def __init__(self) -> None:
            self.plain = 1
            self.weight = ark.Parameter(ark.tensor(1))

    text = r"Forgot.weight is used before Module.__init__\(\); call super\(\).__init__\(\) first"
    with pytest.raises(AttributeError, match=text):
        Forgot()
    with pytest.raises(AttributeError, match=r"Forgot._parameters is used before Module.__init__"):
        Forgot.__new__(Forgot).params_dict()
    with pytest.raises(AttributeError, match="'Forgot' object has no attribute 'other'"):
        _ = Forgot.__new__(Forgot).other
