"""A peer in a process of its own, which answers one JSON object per line with another."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType

from ark_dist.core.settings import child_environment

ANSWER_LIMIT_S = 300.0
# glibc gives large blocks back to the system and takes them anew for every call, zeroed page by
# page; a program that runs for long sets this, so peers get it too.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 26),
}


class Child:
    """The process; it begins by telling its `name`, which is None where its library is missing."""

    def __init__(self, module: str, arguments: Sequence[str], threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(OMP_NUM_THREADS=str(threads), OMP_PROC_BIND="true", **ALLOCATOR),
        )
        self._module = module
        name = self._answer()["name"]
        self.name = None if name is None else str(name)

    def ask(self, question: dict[str, object]) -> dict[str, object]:
        """Send an object and return the answer.

        Raises:
            TimeoutError: without an answer in five minutes.
            RuntimeError: if the process has ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def seconds(self, question: dict[str, object]) -> float:
        """The `seconds` of an answer."""
        return float(str(self.ask(question)["seconds"]))

    def close(self) -> None:
        """End the process."""
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

    def _answer(self) -> dict[str, object]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], ANSWER_LIMIT_S)[0]:
            raise TimeoutError(f"{self._module} did not answer in {ANSWER_LIMIT_S:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._module} ended with {self._process.wait()}")
        answer: dict[str, object] = json.loads(line)
        return answer
