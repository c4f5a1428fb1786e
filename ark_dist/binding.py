"""Tie a model's tensors to the memory of the session that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ark_dist.core.builder import GraphBuilder
from ark_dist.core.errors import LifecycleError
from ark_dist.core.graph import Buffer, Graph
from ark_dist.core.op import Array
from ark_dist.core.shape import Box, full_box
from ark_dist.core.view import View
from ark_dist.launch.open import Opened
from ark_dist.launch.session import Session

if TYPE_CHECKING:
    from ark_dist.tensors import Tensor

READABLE = ("input", "output", "state", "weight", "constant")
WRITABLE = ("input", "state", "weight")
MAX_LISTED = 20


class Binding:
    """A session and the weights written into it so far, by tensors of one model."""

    def __init__(
        self, builder: GraphBuilder, labels: Mapping[int, str], graph: Graph, opened: Opened
    ) -> None:
        """Take what runs `graph`; `labels` names weights by buffer, as their modules call them."""
        self.session: Session = opened.session
        self.shares = opened.shares
        self._builder = builder
        self._labels = labels
        self._buffers = graph.buffers
        held = None if self.shares is None else self.shares.held()
        self._unset = {
            b.id
            for b in graph.buffers
            if b.kind == "weight" and 0 not in b.shape and (held is None or b.id in held)
        }
        # Elements written so far, for weights that are written in parts.
        self._parts: dict[int, npt.NDArray[np.bool_]] = {}

    def require(self, call: str, tensor: Tensor) -> Buffer:
        """Return the planned buffer of a tensor, which must be this program's."""
        value = tensor.value
        if value.builder is not self._builder:
            raise ValueError(
                f"{call}: tensor {tensor.name!r} belongs to model {value.builder.name!r}, the "
                f"program runs {self._builder.name!r}; use the executor of its own model"
            )
        if value.view.buffer >= len(self._buffers):
            raise LifecycleError(
                f"{call}: tensor {tensor.name!r} was added to the model after its Executor was "
                "made; make a new Executor"
            )
        return self._buffers[value.view.buffer]

    def write(self, call: str, tensor: Tensor, array: Array) -> None:
        """Copy an array of the tensor's shape and dtype into its memory."""
        buffer = self.require(call, tensor)
        view = tensor.value.view
        if buffer.kind not in WRITABLE:
            raise ValueError(
                f"{call}: {buffer.name!r} is {_described(buffer)}; only inputs, states and "
                "parameters can be written"
            )
        if any(n > 1 and s == 0 for n, s in zip(view.shape, view.strides, strict=True)):
            raise ValueError(
                f"{call}: {buffer.name!r} is spread by broadcast_to here; write its source"
            )
        if self.shares is None:
            self.session.write(view, array)
        else:
            self.shares.write(view, array)
        if buffer.id in self._unset:
            self._mark(buffer, view)

    def read(self, call: str, tensor: Tensor, *, is_local: bool = False) -> Array:
        """Return a copy of the tensor's memory: the global value, or this rank's part of it."""
        buffer = self.require(call, tensor)
        if buffer.kind not in READABLE:
            raise ValueError(
                f"{call}: {buffer.name!r} is used by other operators, so no memory of its own "
                f"is left after a run; call model.keep(tensor) before the Executor is made"
            )
        if self.shares is None:
            return self.session.read(tensor.value.view)
        if is_local:
            return self.shares.read_local(call, tensor.value.view)
        return self.shares.read(tensor.value.view)

    def part(self, tensor: Tensor) -> Box:
        """The part of a tensor that this rank holds: [start, stop) for each dimension."""
        return full_box(tensor.value.view.shape)

    def run(self, iterations: int, method: str, scalars: Mapping[str, int | float | bool]) -> None:
        """Queue a run, unless the method reads weights that were never written."""
        self.session.require("run")
        if self._unset and self.session.plan.target.kind != "null":
            nodes = self.session.plan.method(method).nodes
            read = {self._global_id(view.buffer) for node in nodes for view in node.inputs}
            missing = [self.label(buffer) for buffer in sorted(self._unset & read)]
            if missing:
                raise LifecycleError(
                    f"run: {len(missing)} weights were never written: {listed(missing)}; "
                    "load them with load_state_dict or from_numpy"
                )
        self.session.run(iterations, method, scalars)

    def _global_id(self, buffer_id: int) -> int | None:
        return buffer_id if self.shares is None else self.shares.global_id(buffer_id)

    def label(self, buffer_id: int) -> str:
        """A buffer's name as its module calls it, or else its own."""
        return self._labels.get(buffer_id, self._buffers[buffer_id].name)

    def _mark(self, buffer: Buffer, view: View) -> None:
        """Remember which elements of a weight are written; all of them make it set."""
        count = prod(buffer.shape)
        if prod(view.shape) < count:
            mask = self._parts.setdefault(buffer.id, np.zeros(count, np.bool_))
            np.lib.stride_tricks.as_strided(mask[view.offset :], view.shape, view.strides)[...] = (
                True
            )
            if not mask.all():
                return
        self._unset.discard(buffer.id)
        self._parts.pop(buffer.id, None)


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def _described(buffer: Buffer) -> str:
    return "a constant" if buffer.kind == "constant" else "computed by the model"
