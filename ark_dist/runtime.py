"""Run the current model with few words: build, launch, run, read."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from ark_dist.context import LOGGER, check_ranks, drop_model, take_model
from ark_dist.core.builder import DEFAULT_METHOD
from ark_dist.core.errors import LifecycleError
from ark_dist.executor import Executor
from ark_dist.mesh import Mesh
from ark_dist.model import Model


class Runtime:
    """Owns the current model from now on, and the Executor that runs it.

    Tensors made before are part of the model, unless another runtime owns them. The calls are
    launch, run, stop; a call that would do nothing is skipped with a warning. It is a context
    manager that closes itself.

    Args:
        rank: this process's rank; the launcher's if left out.
        world_size: how many processes run the model; the launcher's if left out.
        device: "auto", "cpu", "cuda", "emulated", "numpy" or "null".
        workers: threads of the kernel; this rank's share of the available cores if left out.
        mesh: how ranks share the model; see `Executor`.

    Raises:
        ValueError: for a rank outside the world, or another one than the launcher's.
    """

    def __init__(
        self,
        rank: int | None = None,
        world_size: int | None = None,
        *,
        device: str = "auto",
        workers: int | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        check_ranks("Runtime", rank, world_size)
        self._mesh = mesh
        self._device = device
        self._workers = workers
        self._model = take_model()
        self._executor: Executor | None = None
        self._is_closed = False

    @property
    def model(self) -> Model:
        """The model it runs."""
        return self._model

    @property
    def executor(self) -> Executor:
        """The Executor underneath, for all that this class leaves out; made by launch()."""
        if self._executor is None:
            raise LifecycleError("the runtime has no executor yet; call launch() first")
        return self._executor

    @property
    def state(self) -> str:
        """Where in the lifecycle it is: new, compiled, launched, running, failed or closed."""
        if self._is_closed:
            return "closed"
        return "new" if self._executor is None else self._executor.state

    def __repr__(self) -> str:
        return f"Runtime({self._model.name!r}, {self.state})"

    def launch(self) -> None:
        """Plan, compile and allocate on the first call; then start the resident kernel.

        Weights and inputs are loaded after this call. A second call is skipped with a warning.

        Raises:
            LifecycleError: after close(), or if the model grew since the first launch.
            CompileError: where the compiler is missing or fails.
        """
        if self.state in ("launched", "running"):
            LOGGER.warning("launch: the runtime is launched already; skipped")
            return
        if self.state == "closed":
            raise LifecycleError("launch: the runtime was closed; make a new Runtime")
        if self._executor is None:
            self._executor = Executor(
                model=self._model, device=self._device, workers=self._workers, mesh=self._mesh
            )
        elif self._executor.graph != self._model.freeze():
            raise LifecycleError(
                "launch: the model grew since the first launch; call reset() and build it "
                "anew, or make an Executor for it"
            )
        if self._executor.state == "new":
            self._executor.compile()
        self._executor.launch()

    def run(
        self,
        iter: int = 1,
        non_blocking: bool = False,
        *,
        method: str = DEFAULT_METHOD,
        scalars: Mapping[str, int | float | bool] | None = None,
    ) -> int | None:
        """Run iterations of a method.

        Args:
            iter: how many iterations.
            non_blocking: return at once; wait() blocks later.
            method: which entry point of the model.
            scalars: values for `scalar(name)`, set before the first of the iterations.

        Returns:
            The iterations done, or None if `non_blocking`.

        Raises:
            LifecycleError: before launch(), or while weights are not written yet.
            TypeError: as `Executor.run`.
            ValueError: as `Executor.run`.
            StallError: as `Executor.wait`.
            TaskError: as `Executor.wait`.
        """
        if self.state not in ("launched", "running"):
            raise LifecycleError(
                f"run: the runtime is {self.state}, not launched; "
                f"{'make a new Runtime' if self._is_closed else 'call launch() first'}"
            )
        self.executor.run(iter, method=method, scalars=scalars)
        return None if non_blocking else self.executor.wait()

    def wait(self, timeout: float | None = None) -> int:
        """Block until all runs are done and return the iterations they did.

        Without a run under way it is skipped with a warning. Raises as `Executor.wait`.
        """
        if self.state != "running":
            LOGGER.warning("wait: the runtime is not running; skipped")
            return 0
        return self.executor.wait(timeout)

    def stop(self) -> float:
        """Finish all runs, end the kernel, and return the milliseconds since launch().

        Without a kernel it is skipped with a warning. launch() starts it again with all
        weights and states as they are.
        """
        if self.state not in ("launched", "running", "failed"):
            LOGGER.warning("stop: the runtime is not launched; skipped")
            return 0.0
        return self.executor.stop()

    def reset(self) -> None:
        """Close what there is and begin anew with an empty current model.

        Raises:
            LifecycleError: after close().
        """
        if self.state == "closed":
            raise LifecycleError("reset: the runtime was closed; make a new Runtime")
        self._let_go()
        self._model = take_model()

    def close(self) -> None:
        """End the kernel and let go of model and memory; safe to call twice."""
        self._let_go()
        self._is_closed = True

    def _let_go(self) -> None:
        if self._executor is not None:
            self._executor.close()
            self._executor = None
        drop_model(self._model)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
