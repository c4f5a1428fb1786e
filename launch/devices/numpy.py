"""Run a plan with the operators' references: the definition of correct."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ark_dist.comm.communicator import Communicator
from ark_dist.core.data import rounded
from ark_dist.core.dtype import DType
from ark_dist.core.errors import TaskError
from ark_dist.core.op import OPS, Array
from ark_dist.core.plan import Method, Plan
from ark_dist.core.shape import Box
from ark_dist.core.view import View
from ark_dist.launch.devices.commands import command_text
from ark_dist.launch.machine import Chooser, Command, Machine, NoFlags, in_task_order
from ark_dist.launch.memory import Arenas, allocate
from ark_dist.launch.op_faults import OpFaults
from ark_dist.launch.rank_flags import SharedFlags, flag_rows
from ark_dist.launch.rank_link import RankLink, check_world_size
from ark_dist.scheduler.tile import node_boxes


class NumpyDevice:
    """Computes tile by tile in float64, in one thread, in the order `choose` likes."""

    def __init__(
        self,
        plan: Plan,
        *,
        choose: Chooser = in_task_order,
        communicator: Communicator | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        """Take any plan, whatever target it was made for."""
        self.plan = plan
        self._choose = choose
        self._communicator = communicator
        self._timeout_s = timeout_s
        self._link: RankLink | None = None
        self._faults = OpFaults(plan, _raise)
        self._pending: list[Command] = []
        self._arenas: Arenas | None = None
        self._machine = self._new_machine()

    def _new_machine(self) -> Machine:
        link = self._link
        flags = NoFlags() if link is None else SharedFlags(link.memory, link.vigil, self._timeout_s)
        return Machine(self.plan, self._body, self._choose, flags)

    def compile(self, on_compile: Callable[[Path], None]) -> None:
        """There is nothing to compile."""

    def allocate(self) -> Arenas:
        """Make the program's memory in that of this process, and what its node shares."""
        check_world_size(self.plan, self._communicator)
        if self._communicator is not None and self.plan.world_size > 1:
            rows = flag_rows(self.plan)
            self._link = RankLink(
                self.plan, self._communicator, rows, len(rows), self._timeout_s, is_packed=False
            )
            return self._link.arenas
        return allocate(self.plan, is_packed=False)

    def start(self, arenas: Arenas) -> None:
        """Take the memory to work on."""
        self._arenas = arenas
        self._sequence = 0
        if self._link is not None:
            self._link.start()
        self._machine = self._new_machine()

    def post(self, command: Command) -> None:
        """Remember the command; the work is done by `wait`."""
        self._sequence += 1
        if self._link is not None:
            self._link.post(self._sequence, command_text(command))
        self._pending.append(command)

    def wait(self, timeout_s: float) -> list[int]:
        """Do all that was posted."""
        pending, self._pending = self._pending, []
        if self._link is None:
            return [self._machine.run(command) for command in pending]
        return self._wait_with_others(self._link, pending)

    def _wait_with_others(self, link: RankLink, pending: Sequence[Command]) -> list[int]:
        done = []
        link.vigil.begin()
        try:
            for command in pending:
                done.append(self._machine.run(command))
                link.memory.complete_one()
            link.rest()
        except Exception as error:
            link.memory.fail(str(error))
            raise
        finally:
            link.vigil.end()
        return done

    def abort(self) -> None:
        """There is no kernel that runs by itself."""

    def leave(self) -> None:
        """Tell the other ranks that this one computes no more."""
        if self._link is not None:
            self._link.memory.leave()

    def stop(self) -> None:
        """Let go of the memory."""
        self._arenas = None
        self._pending = []
        if self._link is not None:
            self._link.stop()

    def _body(self, method: Method, task_id: int, iteration: int, command: Command) -> bool:
        assert self._arenas is not None
        task = method.tasks[task_id]
        group = method.groups[task.group]
        made: dict[View, Array] = {}
        for node, out_box, in_boxes in node_boxes(group, method.nodes, task.box):
            op = OPS[node.op]
            if op.effect == "handshake":
                self._faults.pass_task(self.plan.methods.index(method), task_id)
                return False
            if op.effect == "command":
                self._set_scalar(node.output, str(node.attributes["name"]), iteration, command)
                return False
            tiles = tuple(
                made[view] if view in made else _widened(self._tile(view, box), view.dtype)
                for view, box in zip(node.inputs, in_boxes, strict=True)
            )
            try:
                value = op.reference(tiles, node.attributes, out_box)
            except IndexError as error:
                raise TaskError(
                    f"rank {self.plan.rank}: task {task_id} ({node.op} {node.name!r}) of method "
                    f"{method.name!r}, iteration {iteration}: {error}"
                ) from None
            made[node.output] = _widened(_rounded(value, node.output.dtype), node.output.dtype)
        output = method.nodes[group.nodes[-1]].output
        result = made[output]
        self._tile(output, task.box)[...] = result.astype(output.dtype.numpy)
        return task.effect == "stop" and bool(np.any(result != 0))

    def _tile(self, view: View, box: Box) -> Array:
        assert self._arenas is not None
        array = self._arenas.view(view)
        # An empty index would make a number of a tensor without dimensions.
        return array[tuple(slice(a, b) for a, b in box)] if box else array

    def _set_scalar(self, target: View, name: str, iteration: int, command: Command) -> None:
        assert self._arenas is not None
        value = dict(command.scalars).get(name)
        if iteration == 0 and value is not None:
            self._arenas.view(target)[...] = value


def _widened(array: Array, dtype: DType) -> Array:
    return array.astype(np.float64) if dtype.is_float else array


def _rounded(array: Array, dtype: DType) -> Array:
    if dtype.is_float:
        return rounded(array.astype(np.float64), dtype)
    with np.errstate(all="ignore"):
        return array.astype(dtype.numpy)


def _raise(error: BaseException) -> None:
    raise error
