"""A process of its own, or several ranks, that answer one JSON object per line with another."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import TracebackType

from ark_dist.core.settings import child_environment
from ark_dist.launch.mpirun import mpirun_command, mpirun_environment, require_mpirun

ANSWER_LIMIT_S = 300.0
CLOSE_LIMIT_S = 10.0
# glibc gives large blocks back to the system and takes them anew for every call, zeroed page by
# page; a program that runs for long sets this, so peers get it too.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 26),
}

Message = dict[str, object]


def open_answers() -> Callable[[Message], None]:
    """Take stdout for answers alone, for the process itself: what else is printed goes to stderr.

    Returns what sends an answer.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def send(answer: Message) -> None:
        answers.write(json.dumps(answer) + "\n")

    return send


class Child:
    """The process; it begins by telling its `name`, which is None where its library is missing.

    Attributes:
        hello: all that it told.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], threads: int, *, ranks: int = 1
    ) -> None:
        """Start it; several ranks are started by mpirun, and the first one answers."""
        command = [sys.executable, "-m", module, *arguments]
        environment = child_environment(
            OMP_NUM_THREADS=str(threads), OMP_PROC_BIND="true", **ALLOCATOR
        )
        if ranks > 1:
            mpirun = require_mpirun("auto")
            command = mpirun_command(mpirun, ranks, None, command)
            environment = mpirun_environment(mpirun, ranks)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._module = module
        self.hello = self._answer()
        name = self.hello["name"]
        self.name = None if name is None else str(name)

    def ask(self, question: Message) -> Message:
        """Send an object and return the answer.

        Raises:
            TimeoutError: without an answer in five minutes.
            RuntimeError: if the process has ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def seconds(self, question: Message) -> float:
        """The `seconds` of an answer."""
        return float(str(self.ask(question)["seconds"]))

    def close(self) -> None:
        """End the process: it ends by itself where there are no more questions."""
        try:
            self._process.communicate(timeout=CLOSE_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(self) -> Message:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], ANSWER_LIMIT_S)[0]:
            raise TimeoutError(f"{self._module} did not answer in {ANSWER_LIMIT_S:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._module} ended with {self._process.wait()}")
        answer: Message = json.loads(line)
        return answer
