"""A builder with one tensor of each kind, for tests of building."""

import ark_dist.kernels.ops  # noqa: F401  # registers the operators
from ark_dist.core.builder import GraphBuilder, Operand, Value
from ark_dist.core.op import AttrValue


class Small:
    """A builder with a tensor of each kind that the tests use."""

    def __init__(self) -> None:
        self.builder = GraphBuilder("small")
        self.x = self.builder.tensor((2, 3), "fp32", name="x")
        self.half = self.builder.tensor((2, 3), "fp16", name="half")
        self.ints = self.builder.tensor((4,), "int32", name="ints")
        self.empty = self.builder.tensor((2, 0), "fp32", name="empty")
        self.four = self.builder.tensor((4,), "fp32", name="four")
        self.dot = self.builder.tensor((), "fp32", name="dot")
        self.flag = self.builder.tensor((1,), "bool", name="flag")
        self.weight = self.builder.parameter((2, 3), "fp32", name="weight")
        self.state = self.builder.state((2, 3), "fp32", name="state")
        self.ones = self.builder.constant(1.0, (2, 3), "fp32")
        self.wide = self.builder.tensor((2**24, 1), "fp32", name="wide")
        self.tall = self.builder.tensor((2**25,), "fp32", name="tall")
        self.other = GraphBuilder("other").tensor((2, 3), "fp32", name="far")

    def apply(
        self, op: str, inputs: list[Operand], attrs: dict[str, AttrValue] | None = None,
        output: Value | None = None, deps: tuple[Value, ...] = (), name: str | None = None,
    ) -> Value:  # fmt: skip
        return self.builder.apply(op, inputs, attrs, output=output, deps=deps, name=name)
