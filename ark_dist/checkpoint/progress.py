"""Show on stderr how far a long read is: a bar on a terminal, or else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ark_dist.context import LOGGER

# Nobody needs to see what is over sooner.
SILENT_S = 1.0
LINE_EVERY_S = 5.0
_MB = 1e6


@contextmanager
def shown_progress(title: str, total_bytes: int, is_shown: bool) -> Iterator[Callable[[int], None]]:
    """Give a function to call with the bytes that were read since it was called last."""
    if not is_shown:
        yield lambda size_bytes: None
    elif sys.stderr.isatty():
        with _bar(title, total_bytes) as advance:
            yield advance
    else:
        yield _lines(title, total_bytes)


def _lines(title: str, total_bytes: int) -> Callable[[int], None]:
    done, told = 0, time.monotonic()

    def advance(size_bytes: int) -> None:
        nonlocal done, told
        done += size_bytes
        now = time.monotonic()
        if now - told >= LINE_EVERY_S:
            told = now
            LOGGER.info("%s: %.0f of %.0f MB", title, done / _MB, total_bytes / _MB)

    return advance


@contextmanager
def _bar(title: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    bar = Progress(
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(title, total=total_bytes)
    begin = time.monotonic()

    def advance(size_bytes: int) -> None:
        bar.advance(task, size_bytes)
        if not bar.live.is_started and time.monotonic() - begin >= SILENT_S:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()
