"""Run one model as one resident kernel, step by step: compile, launch, run, wait, stop."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from ark_dist import world as world_module
from ark_dist.arrays import as_ndarray, check_destination, exact_dtype, fit_shape
from ark_dist.binding import Binding
from ark_dist.context import LOGGER, check_ranks, current_model, set_up_logging
from ark_dist.core.builder import DEFAULT_METHOD
from ark_dist.core.graph import Graph
from ark_dist.core.plan import Plan
from ark_dist.core.settings import Settings, read_settings
from ark_dist.core.target import topology_of
from ark_dist.explain import Planned, Request, explain_plan
from ark_dist.launch.agreement import node_topology
from ark_dist.launch.devices.cupy_gpu import GpuPart
from ark_dist.launch.open import open_session
from ark_dist.mesh import Mesh
from ark_dist.model import Model
from ark_dist.report_text import plain_text
from ark_dist.scheduler.plan import PlanOptions
from ark_dist.tensors import Tensor


class Executor:
    """Plans a model when it is made; then compiles, launches and runs it.

    The order of calls is compile, launch, run (any number), stop; any other order raises
    LifecycleError. It is a context manager that closes itself.

    Args:
        gpu_id: which GPU of this machine; without meaning on other devices.
        sms: how many of the GPU's multiprocessors the kernel may take, as the range of them that
            is its own; all if left out. Executors of one process run beside each other on a GPU
            where their ranges share none, and are compiled before one of them is launched. Which
            multiprocessors those are is the hardware's choice.
        rank: this process's rank; the launcher's if left out.
        world_size: how many processes run the model; the launcher's if left out.
        model: what to run; the current model if left out.
        name: the program's name; the model's if left out.
        num_warps_per_sm: warps of a GPU's worker; without meaning on other devices.
        device: "auto", "cpu", "cuda", "emulated", "numpy" or "null".
        workers: threads of the kernel, one per available core if left out; on a GPU
            multiprocessors, all of `sms` if left out.
        timeout_s: limit in seconds for a wait without progress; ARK_DIST_TIMEOUT_S if left out.
        options: choices of the scheduler.
        mesh: how ranks share one model of global shapes; without it each rank runs a model of
            its own, and says itself what it sends and receives.
        check_numerics: let the first operator whose result is NaN or infinite fail with a
            TaskError that names it and its rank; slow.

    Raises:
        TypeError: for an argument of the wrong type.
        ValueError: for a number out of range, or an unknown device.
        DeviceNotFoundError: for a device that this machine does not have.
        DeviceBusy: by compile() and launch(), while another Executor's kernel holds the GPU.
        ArkError: for a device that can't run together with other ranks.
        PlanMismatchError: on every rank, if their models do not fit together.
    """

    def __init__(
        self,
        gpu_id: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        model: Model | None = None,
        name: str | None = None,
        num_warps_per_sm: int = 16,
        *,
        device: str = "auto",
        workers: int | None = None,
        timeout_s: float | None = None,
        options: PlanOptions | None = None,
        mesh: Mesh | None = None,
        check_numerics: bool = False,
        sms: range | None = None,
    ) -> None:
        world = check_ranks("Executor", rank, world_size)
        _check_count("gpu_id", gpu_id, 0)
        _check_count("num_warps_per_sm", num_warps_per_sm, 1)
        if workers is not None:
            _check_count("workers", workers, 1)
        if model is not None and not isinstance(model, Model):
            raise TypeError(f"Executor: model is a {type(model).__name__}, wanted an ark.Model")
        set_up_logging()
        self._model = current_model() if model is None else model
        self._graph = self._model.freeze(name)
        if mesh is not None and not isinstance(mesh, Mesh):
            raise TypeError(f"Executor: mesh is a {type(mesh).__name__}, wanted an ark.Mesh")
        if check_numerics:
            options = replace(options or PlanOptions(), check_numerics=True)
        gpu = GpuPart(gpu_id, _checked_sms(sms))
        self._request = Request(self._graph, device, workers, gpu, options, mesh)
        if world_module.current().is_planned:
            raise Planned(self._request)
        self._communicator = world.communicator
        opened = open_session(
            self._graph,
            device=device,
            settings=_settings(timeout_s),
            worker_count=workers,
            options=options,
            gpu=gpu,
            communicator=world.communicator,
            mesh=None if mesh is None else mesh.sized(world.size),
        )
        self._session = opened.session
        world_module.watch(self._session)
        self._binding = Binding(self._model.builder, self._model.labels, self._graph, opened)
        self._model.bind(self._binding)

    @property
    def model(self) -> Model:
        """The model it runs."""
        return self._model

    @property
    def graph(self) -> Graph:
        """The graph it was planned from."""
        return self._graph

    @property
    def plan(self) -> Plan:
        """What the kernel will do; `print(exe.plan)` shows it."""
        return self._session.plan

    @property
    def state(self) -> str:
        """Where in the lifecycle it is: new, compiled, launched, running, failed or closed."""
        return self._session.state

    def __repr__(self) -> str:
        return f"Executor({self.plan.name!r}, {self.plan.target.kind}, {self.state})"

    def explain(self) -> str:
        """Say what this rank's plan does, in words.

        That is: which part of each tensor is here, what is communicated and why, memory by
        arena, tasks per worker, and the time that the cost model predicts. With several ranks
        all of them call it.
        """
        size, own = self.plan.world_size, self._communicator
        mesh = self._request.mesh
        topology = topology_of((0,)) if own is None or size == 1 else node_topology(own)
        shape = None if mesh is None else mesh.sized(size)
        return plain_text([explain_plan(self.plan, self._request, shape, topology)])

    def compile(self) -> None:
        """Make the kernel and allocate its memory; logs where the source can be read.

        Raises:
            CompileError: where the compiler is missing or fails.
            LifecycleError: after launch().
        """
        self._session.compile(_log_path)

    def tensor_memcpy_host_to_device(self, dst: Tensor, src: npt.NDArray[np.generic]) -> None:
        """Copy an array into a tensor; `Tensor.from_numpy` converts the dtype too.

        Args:
            dst: an input, state or parameter of the model.
            src: an array of its dtype and shape; dimensions of size 1 don't count.

        Raises:
            TypeError: for arguments in the wrong order, or another dtype.
            ValueError: for another shape, another model, or a tensor that can't be written.
            LifecycleError: before compile(), and during a run.
        """
        call = "tensor_memcpy_host_to_device"
        _check_tensor(call, "first", "dst", dst)
        self._binding.require(call, dst)
        array = fit_shape(call, dst.name, as_ndarray(call, src), dst.value.view.shape)
        self._binding.write(call, dst, exact_dtype(call, dst.name, array, dst.dtype))

    def tensor_memcpy_device_to_host(self, dst: npt.NDArray[np.generic], src: Tensor) -> None:
        """Copy a tensor into an array, in place.

        Args:
            dst: a writable C-contiguous array of the tensor's dtype and shape; dimensions of
                size 1 don't count.
            src: an input, output, state, parameter or constant of the model.

        Raises:
            TypeError: for arguments in the wrong order, or another dtype.
            ValueError: for another shape, another model, or a tensor that can't be read.
            LifecycleError: before compile(), and during a run.
        """
        call = "tensor_memcpy_device_to_host"
        _check_tensor(call, "second", "src", src)
        self._binding.require(call, src)
        array = check_destination(
            call, src.name, as_ndarray(call, dst), src.value.view.shape, src.dtype
        )
        array[...] = self._binding.read(call, src)

    def can_peek(self, tensor: Tensor) -> bool:
        """Tell whether `peek` can read a tensor: this rank has all of it, in the CPU's memory."""
        return self._binding.can_peek("can_peek", tensor)

    def peek(self, tensor: Tensor) -> npt.NDArray[np.generic]:
        """Return a copy of a tensor as it is at this moment, during a run as well.

        Elements are those of some moment each: what the kernel writes meanwhile may be there or
        not. For states that grow, such as a table of tokens.

        Raises:
            LifecycleError: before compile().
            ValueError: where `can_peek` is False.
        """
        return self._binding.peek("peek", tensor)

    def launch(self) -> None:
        """Start the resident kernel; it computes nothing until run().

        Raises:
            LifecycleError: before compile(), or if it is launched already.
        """
        self._session.launch()

    def run(
        self,
        iterations: int = 1,
        *,
        method: str = DEFAULT_METHOD,
        scalars: Mapping[str, int | float | bool] | None = None,
    ) -> None:
        """Queue iterations of a method and return at once.

        Args:
            iterations: how many.
            method: which entry point of the model.
            scalars: values for `model.scalar(name)`, set before the first of the iterations.

        Raises:
            TypeError: for iterations or scalars that are no numbers.
            ValueError: for an unknown method or scalar, or a number out of range.
            LifecycleError: before launch(), or while weights are not written yet.
        """
        self._binding.run(iterations, method, scalars or {})

    def wait(self, timeout: float | None = None) -> int:
        """Block until all runs are done and return the iterations they did.

        Args:
            timeout: seconds after which to give up; the runs go on then.

        Raises:
            TimeoutError: when `timeout` ran out.
            StallError: when the kernel makes no progress.
            TaskError: when a task met bad data; the kernel has ended then.
            LifecycleError: before launch().
        """
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"wait: timeout is {timeout!r}; it must be 0 or more seconds")
        return self._session.wait(timeout)

    def stop(self) -> float:
        """Finish all runs, end the kernel, and return the milliseconds since launch().

        Raises:
            LifecycleError: before launch().
        """
        return self._session.stop()

    def reset_state(self) -> None:
        """Set every state back to its first value.

        Raises:
            LifecycleError: before compile(), and during a run.
        """
        self._session.reset_state()

    def close(self) -> None:
        """End the kernel at once, and let go of the memory; safe to call twice.

        Runs under way are dropped; stop() finishes them first.
        """
        self._session.close()

    def __enter__(self) -> Executor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _log_path(path: Path) -> None:
    LOGGER.info("Compiling %s", path)


def _settings(timeout_s: float | None) -> Settings:
    settings = read_settings()
    if timeout_s is None:
        return settings
    if not timeout_s > 0:
        raise ValueError(f"Executor: timeout_s is {timeout_s!r}; it must be above 0")
    return replace(settings, timeout_s=timeout_s)


def _checked_sms(sms: range | None) -> range | None:
    if sms is not None and not isinstance(sms, range):
        raise TypeError(f"sms is {sms!r}; it must be a range, such as range(0, 66)")
    if sms is not None and (sms.step != 1 or sms.start < 0 or not sms):
        raise ValueError(f"sms is {sms!r}; it must be a range from 0 or more on, in steps of 1")
    return sms


def _check_count(name: str, value: int, least: int) -> None:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"Executor: {name} is {value!r}; it must be an integer") from None
    if number < least:
        raise ValueError(f"Executor: {name} is {value!r}; it must be {least} or more")


def _check_tensor(call: str, position: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{call}: the {position} argument, {name}, is a {type(value).__name__}; wanted a "
            "tensor. The destination comes first"
        )
