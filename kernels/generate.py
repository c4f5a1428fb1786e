"""Turn the operators' records into `ark_dist/ops.py`: functions and methods with types and docs."""

import argparse
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import ark_dist.kernels.ops  # noqa: F401  registers the operators
from ark_dist.core import op as op_module
from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.op import OPS, Argument, Op

TARGET = Path(op_module.__file__).resolve().parents[1] / "ops.py"
LINE_CHARS = 100

# Operator -> Python's methods for it; True where the operands come swapped.
PYTHON_OPERATORS = {
    "add": (("__add__", False), ("__radd__", True)),
    "sub": (("__sub__", False), ("__rsub__", True)),
    "mul": (("__mul__", False), ("__rmul__", True)),
    "div": (("__truediv__", False), ("__rtruediv__", True)),
    "pow": (("__pow__", False), ("__rpow__", True)),
    "matmul": (("__matmul__", False),),
    "neg": (("__neg__", False),),
    "abs": (("__abs__", False),),
    "greater": (("__gt__", False),),
    "greater_equal": (("__ge__", False),),
    "less": (("__lt__", False),),
    "less_equal": (("__le__", False),),
}
OUTPUT = Argument(
    "output", "Tensor | None", "a state, or a tensor nobody used yet, to write into", "None"
)
NAME = Argument("name", "str | None", "a name for the result", "None")

HEADER = '''\
"""The operators as functions, as methods of tensors, and as methods of models.

Written from the records in `kernels/ops` by `./dev generate`; edit those, not this file.
"""

from __future__ import annotations

{imports}
import ark_dist.kernels.ops  # noqa: F401  registers the operators
from ark_dist.apply import {calls}

if TYPE_CHECKING:
{typing_imports}
'''


def generate(ops: Iterable[Op]) -> str:
    """The text of `ops.py` for these operators."""
    public = sorted((op for op in ops if op.is_public), key=lambda op: op.name)
    blocks = ["\n".join(["__all__ = [", *(f'    "{op.name}",' for op in public), "]"])]
    blocks += [_function(op) for op in public]
    blocks.append(_tensor_class(public))
    blocks.append(_model_class(public))
    body = "\n\n\n".join(blocks)
    return _header(body) + "\n" + body + "\n"


def _header(body: str) -> str:
    imports = ["from collections.abc import Sequence"] if "Sequence[" in body else []
    imports.append("from typing import TYPE_CHECKING\n")
    names = [name for name in ("Operand", "Tensor") if name in body]
    typing_imports = [f"    from ark_dist.tensors import {', '.join(names)}"]
    if "DTypeLike" in body:
        typing_imports.insert(0, "    from ark_dist.core.dtype import DTypeLike")
    calls = "apply, apply_parts" if "apply_parts(" in body else "apply"
    return HEADER.format(
        imports="\n".join(imports), typing_imports="\n".join(typing_imports), calls=calls
    )


def _function(op: Op) -> str:
    arguments = [_parameter(argument) for argument in op.public_arguments]
    lines = _wrapped(f"def {op.name}", [*arguments, *_parameters(op)], _result(op), 0)
    lines += _docstring(op, 4)
    return "\n".join([*lines, _call(op, [a.name for a in op.public_arguments], [], 4)])


def _tensor_class(ops: Sequence[Op]) -> str:
    blocks = ['class TensorOps:\n    """The operators whose first argument is a tensor `input`."""']
    for op in ops:
        if op.public_arguments and op.public_arguments[0].name == "input":
            blocks.append(_method(op, op.public_arguments[1:], ["self"], []))
    for op in ops:
        blocks += [_python_operator(op, *entry) for entry in PYTHON_OPERATORS.get(op.name, ())]
    return "\n\n".join(blocks)


def _model_class(ops: Sequence[Op]) -> str:
    blocks = ['class ModelOps:\n    """The operators as methods of the model they are added to."""']
    blocks += [_method(op, op.public_arguments, [], ["model=self"]) for op in ops]
    return "\n\n".join(blocks)


def _method(
    op: Op, arguments: Sequence[Argument], receiver: Sequence[str], options: Sequence[str]
) -> str:
    parameters = ["self", *(_parameter(a) for a in arguments), *_parameters(op)]
    lines = _wrapped(f"def {op.name}", parameters, _result(op), 4)
    first = _first_line(op)
    if len(first) > LINE_CHARS - 8 - 3:
        first = f"Add the operator `{op.name}`."
    lines += [f'        """{first}', "", f"        Arguments and errors: `ark_dist.{op.name}`."]
    lines += ['        """', _call(op, [*receiver, *(a.name for a in arguments)], options, 8)]
    return "\n".join(lines)


def _python_operator(op: Op, method: str, is_swapped: bool) -> str:
    is_binary = len(op.public_arguments) > 1 and op.public_arguments[1].is_tensor
    other = op.public_arguments[1].annotation if is_binary else ""
    parameters = ["self", f"other: {other}"] if is_binary else ["self"]
    operands = ["other", "self"] if is_swapped else ["self", "other"][: 1 + is_binary]
    items = [f'"{op.name}"', *operands]
    items += [f"{a.name}={a.default}" for a in op.public_arguments if not a.is_tensor]
    lines = _wrapped("return apply", items, "", 8)
    return "\n".join([f"    def {method}({', '.join(parameters)}) -> Tensor:", *lines])


def _parameter(argument: Argument) -> str:
    text = f"{argument.name}: {argument.annotation}"
    return text if argument.default is None else f"{text} = {argument.default}"


def _options(op: Op) -> tuple[Argument, ...]:
    """What every function takes besides its operator's arguments; parts write nothing."""
    return () if op.parts is not None else (OUTPUT, NAME)


def _parameters(op: Op) -> list[str]:
    options = [_parameter(option) for option in _options(op)]
    return ["*", *options] if options else []


def _result(op: Op) -> str:
    return " -> Tensor:" if op.parts is None else " -> list[Tensor]:"


def _call(op: Op, operands: Sequence[str], options: Sequence[str], indent: int) -> str:
    """The line that passes a function's own arguments on to `apply`."""
    keywords = {a.name for a in op.public_arguments if not (a.is_tensor or a.is_list)}
    items = [f'"{op.name}"', *(name for name in operands if name not in keywords)]
    items += [f"{name}={name}" for name in operands if name in keywords]
    items += [*(f"{option.name}={option.name}" for option in _options(op)), *options]
    call = "apply" if op.parts is None else "apply_parts"
    return "\n".join(_wrapped(f"return {call}", items, "", indent))


def _wrapped(head: str, items: Sequence[str], tail: str, indent: int) -> list[str]:
    """`head(items)tail` on one line if it fits, else one item a line, as ruff formats it."""
    pad = " " * indent
    line = f"{pad}{head}({', '.join(items)}){tail}"
    if len(line) <= LINE_CHARS:
        return [line]
    # A bare star takes no comma when it is alone; here keywords always follow.
    return [f"{pad}{head}(", *(f"{pad}    {item}," for item in items), f"{pad}){tail}"]


def _first_line(op: Op) -> str:
    first = op.summary.split("\n", 1)[0].strip()
    return first if first.endswith((".", "?", "!")) else first + "."


def _docstring(op: Op, indent: int) -> list[str]:
    first = _first_line(op)
    if len(first) > LINE_CHARS - indent - 3:
        raise ValueError(
            f"operator {op.name}: the summary's first line has {len(first)} characters; "
            f"{LINE_CHARS - indent - 3} fit, put the rest into a second paragraph"
        )
    lines = [f'"""{first}', ""]
    rest = op.summary.split("\n", 1)[1].strip() if "\n" in op.summary else ""
    for paragraph in rest.split("\n\n") if rest else ():
        lines += [*textwrap.wrap(" ".join(paragraph.split()), LINE_CHARS - indent), ""]
    lines.append("Args:")
    for argument in (*op.public_arguments, *_options(op)):
        lines += _entry(argument.name, argument.doc, indent)
    result = "The result, a tensor" if op.parts is None else "The parts, tensors"
    lines += ["", "Returns:", f"    {result} of the same model.", "", "Raises:"]
    lines += _entry("TypeError", _type_error(op), indent)
    lines += _entry("ValueError", "where shapes or attributes do not fit, or models differ", indent)
    lines.append('"""')
    return [" " * indent + line if line else "" for line in lines]


def _entry(name: str, doc: str, indent: int) -> list[str]:
    return textwrap.wrap(
        f"{name}: {doc}.", LINE_CHARS - indent, initial_indent=" " * 4, subsequent_indent=" " * 8
    )


def _type_error(op: Op) -> str:
    if set(op.dtypes) == set(ALL_DTYPES):
        return "where an argument has the wrong type"
    return f"where an argument has the wrong type, or a dtype is none of {', '.join(op.dtypes)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, or with --check only say whether it is current; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ark_dist.kernels.generate")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    parser.add_argument("--target", type=Path, default=TARGET, help="the file (%(default)s)")
    options = parser.parse_args(arguments)
    text = generate(OPS.values())
    target: Path = options.target
    if not options.check:
        target.write_text(text)
        return 0
    if target.exists() and target.read_text() == text:
        return 0
    print(f"{target} does not match the operators' records; run ./dev generate", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
