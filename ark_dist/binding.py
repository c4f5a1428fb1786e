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
# Devices whose memory is this process's.
PEEKABLE = ("cpu", "numpy")


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
        self._methods = {method.name: method.nodes for method in graph.methods}
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
        self.mark_written(tensor)

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

    def can_peek(self, call: str, tensor: Tensor) -> bool:
        """Whether `peek` can read the tensor: all of it lies in this process's memory."""
        self.require(call, tensor)
        view = self.part_view(tensor)
        is_whole = view is not None and view.shape == tensor.value.view.shape
        return is_whole and self.session.plan.target.kind in PEEKABLE

    def peek(self, call: str, tensor: Tensor) -> Array:
        """Return a copy of the tensor as it is now, during a run as well."""
        view = self.part_view(tensor)
        if not self.can_peek(call, tensor) or view is None:
            raise ValueError(
                f"{call}: {tensor.name!r} is not all in this process's memory; read it after wait()"
            )
        return self.session.memory.read(view)

    def part(self, tensor: Tensor) -> Box:
        """The [start, stop) per dimension that this rank wants to read of a tensor.

        The part that it holds, an empty box if it holds nothing, and all of a tensor of which
        only `write` finds the part.
        """
        view = tensor.value.view
        if self.shares is None:
            return full_box(view.shape)
        if self.shares.is_held(view.buffer) and self.shares.local_view(view) is None:
            return full_box(view.shape)
        return self.shares.part(view.buffer)

    def part_view(self, tensor: Tensor) -> View | None:
        """Where `part` lies in this rank's memory; None where only `write` finds it."""
        view = tensor.value.view
        return view if self.shares is None else self.shares.local_view(view)

    def owner(self, tensor: Tensor) -> int:
        """The lowest rank that holds a part of a tensor."""
        return 0 if self.shares is None else self.shares.owner(tensor.value.view.buffer)

    def gather(self, tensor: Tensor, *, timeout_s: float) -> Array | None:
        """The tensor on its owner, a copy only if it must be, and None elsewhere; collective."""
        view = tensor.value.view
        if self.shares is None:
            return self.session.memory.view(view)
        return self.shares.gather(view, self.shares.owner(view.buffer), timeout_s=timeout_s)

    def mark_written(self, tensor: Tensor) -> None:
        """Remember that this rank's part of a weight is set."""
        view = tensor.value.view
        if view.buffer in self._unset:
            self._mark(self._buffers[view.buffer], view)

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
        whole = None if self.shares is None else self._methods.get(method)
        self.session.run(iterations, method, scalars, whole=whole)

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
