"""The generated face of the operators is current, complete, and formatted."""

import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import ark_dist as ark
from ark_dist import ops as ops_module
from ark_dist.apply import CONVERTERS
from ark_dist.core.op import OPS, Argument
from ark_dist.kernels.generate import PYTHON_OPERATORS, TARGET, generate, main
from ark_dist.ops import ModelOps, TensorOps

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = sorted(name for name, op in OPS.items() if op.is_public)


def test_the_committed_file_is_current() -> None:
    assert TARGET == ROOT / "ark_dist" / "ops.py"
    assert generate(OPS.values()) == TARGET.read_text(), "run ./dev generate"
    assert main(["--check"]) == 0


def test_a_stale_file_is_reported_and_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "ops.py"
    for _ in range(2):
        assert main(["--check", "--target", str(target)]) == 1
        error = capsys.readouterr().err
        assert f"{target} does not match the operators' records; run ./dev generate" in error
        target.write_text("old")
    assert main(["--target", str(target)]) == 0
    assert main(["--check", "--target", str(target)]) == 0
    assert target.read_text() == TARGET.read_text()


def test_the_order_of_registration_does_not_matter() -> None:
    assert generate(reversed(OPS.values())) == generate(OPS.values())


def test_ruff_finds_nothing_to_repair() -> None:
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is not installed")
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [ruff, *command, TARGET], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", PUBLIC)
def test_an_operator_is_a_function_and_a_method_with_the_arguments_of_its_record(
    name: str,
) -> None:
    arguments = [a.name for a in OPS[name].public_arguments]
    options = [] if OPS[name].parts is not None else ["output", "name"]
    function = getattr(ops_module, name)
    assert list(inspect.signature(function).parameters) == [*arguments, *options]
    assert getattr(ark, name) is function
    method = inspect.signature(getattr(ModelOps, name))
    assert list(method.parameters) == ["self", *arguments, *options]
    if arguments and arguments[0] == "input":
        method = inspect.signature(getattr(TensorOps, name))
        assert list(method.parameters) == ["self", *arguments[1:], *options]
    else:
        assert not hasattr(TensorOps, name)


@pytest.mark.parametrize("name", PUBLIC)
def test_an_operator_documents_every_argument(name: str) -> None:
    doc = inspect.getdoc(getattr(ops_module, name)) or ""
    output = () if OPS[name].parts is not None else (Argument("output", "", "", None),)
    for argument in (*OPS[name].public_arguments, *output):
        assert f"\n    {argument.name}: " in doc
    assert "\nRaises:\n" in doc


def test_operators_that_only_sessions_use_are_left_out() -> None:
    assert ops_module.__all__ == PUBLIC
    assert not hasattr(ops_module, "command_scalar")


def test_what_the_builder_fills_in_is_no_argument_of_the_public_function() -> None:
    assert {a.name for a in OPS["send_done"].arguments} == {"input", "dst", "tag", "rank", "world"}
    assert list(inspect.signature(ark.send_done).parameters) == ["input", "output", "name"]


def test_every_attribute_of_an_operator_can_be_converted() -> None:
    kinds = {
        argument.annotation.removesuffix(" | None")
        for name in PUBLIC
        for argument in OPS[name].public_arguments
        if not argument.is_tensor and argument.annotation != "Sequence[Tensor]"
    }
    assert kinds <= set(CONVERTERS)


def test_no_operator_hides_a_method_of_models_or_tensors() -> None:
    assert set(PUBLIC) & set(vars(ark.Model)) == set()
    # They take their sizes one by one too.
    assert set(PUBLIC) & set(vars(ark.Tensor)) == {"reshape", "view"}


def test_python_operators_are_there_for_the_operators_that_exist() -> None:
    for name, methods in PYTHON_OPERATORS.items():
        for method, _ in methods:
            # object has __gt__ and the like already
            assert (method in vars(TensorOps)) == (name in OPS), method


def test_a_new_operator_needs_no_edit_of_the_generator() -> None:
    new = replace(
        OPS["layernorm"],
        name="scale_by",
        summary="Scale it\n\nA second paragraph.",
        arguments=(
            Argument("input", "Tensor", "the tensor", None),
            Argument("factors", "Sequence[int]", "by how much", "(1, 2)"),
            Argument("mode", "str | None", "how", "None"),
        ),
    )
    text = generate([new])
    assert "factors: Sequence[int] = (1, 2)," in text
    assert '"""Scale it.\n\n    A second paragraph.\n\n    Args:\n' in text
    assert 'apply("scale_by", self, factors=factors, mode=mode, output=output, name=name)' in text
    assert "Operand" not in text
    compile(text, "ops.py", "exec")


def test_unary_and_attributed_python_operators_are_written_too() -> None:
    unary = replace(OPS["relu"], name="neg")
    with_axis = replace(
        OPS["matmul"], arguments=(*OPS["add"].arguments, Argument("mode", "int", "how", "3"))
    )
    text = generate([unary, with_axis])
    assert 'def __neg__(self) -> Tensor:\n        return apply("neg", self)' in text
    assert 'return apply("matmul", self, other, mode=3)' in text


def test_a_summary_that_is_too_long_is_named() -> None:
    op = replace(OPS["add"], summary="x" * 94)
    with pytest.raises(ValueError, match="operator add: the summary's first line has 95 charact"):
        generate([op])
