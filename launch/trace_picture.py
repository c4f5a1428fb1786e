"""Draw one iteration of a trace as an SVG picture: a lane per worker, and where its time goes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import cast

Event = Mapping[str, object]
Lane = tuple[int, int]  # process and thread

WIDTH, MARGIN, LANE_HEIGHT, LINE_HEIGHT = 960, 110, 44, 18
# About as wide as a character of the labels, in pixels.
CHARACTER = 7
WAIT, WAIT_COLOR = "wait", "#d0d0d0"
# Okabe and Ito's colors, which color-blind people tell apart.
COLORS = ("#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#0072b2", "#d55e00")
GOAL_OF_TICKS = 8


@dataclass(frozen=True, slots=True)
class Span:
    """What one worker did for a while, in microseconds from the iteration's start."""

    lane: Lane
    name: str
    start: float
    length: float


def draw_iteration(document: Mapping[str, object], *, until_us: float = math.inf) -> str:
    """Return an SVG of the last iteration in a trace.

    Args:
        document: a trace as `ark-dist trace` writes it.
        until_us: draw what begins in the iteration's first microseconds, so many.

    Raises:
        ValueError: no task is in the trace.
    """
    events = cast(Sequence[Event], document["traceEvents"])
    spans = [span for span in _last_iteration(events) if span.start <= until_us]
    lanes = {lane: name for lane, name in _lane_names(events).items()}
    used = sorted({span.lane for span in spans})
    end = max(span.start + span.length for span in spans)
    names = sorted({span.name for span in spans} - {WAIT})
    colors = {WAIT: WAIT_COLOR, **{n: COLORS[i % len(COLORS)] for i, n in enumerate(names)}}
    scale = (WIDTH - MARGIN - 10) / end
    body = [line for span in spans for line in _box(span, used.index(span.lane), scale, colors)]
    body += [_text(4, y * LANE_HEIGHT + 26, lanes[lane]) for y, lane in enumerate(used)]
    bottom = len(used) * LANE_HEIGHT
    body += _ticks(end, scale, bottom)
    body += _legend(spans, end * len(used), colors, bottom + 2 * LINE_HEIGHT)
    height = bottom + (len(colors) + 3) * LINE_HEIGHT
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
    style = 'font-family="sans-serif" font-size="12"'
    return "\n".join([f"{head} {style}>", *body, "</svg>", ""])


def _last_iteration(events: Sequence[Event]) -> list[Span]:
    """The spans of the turn that began last."""
    found = [e for e in events if e.get("ph") == "X" and "turn" in _args(e)]
    if not found:
        raise ValueError("the trace has no tasks; was a kernel on a CPU run while it was taken?")
    last = max((e for e in found if e["name"] != WAIT), key=_time)
    own = [e for e in found if _lane(e) == _lane(last)]
    before = max((_time(e) for e in own if not _is_same_turn(e, last)), default=float("-inf"))
    start = min(_time(e) for e in own if _time(e) > before)
    # Other launches in the trace have turns of the same number, at quite another time.
    length = _time(last) + _length(last) - start
    turn = [e for e in found if _is_same_turn(e, last) and abs(_time(e) - start) <= length]
    first = min(map(_time, turn))
    return [Span(_lane(e), str(e["name"]), _time(e) - first, _length(e)) for e in turn]


def _is_same_turn(event: Event, other: Event) -> bool:
    return all(_args(event)[k] == _args(other)[k] for k in ("turn", "method"))


def _args(event: Event) -> Mapping[str, object]:
    return cast(Mapping[str, object], event.get("args", {}))


def _time(event: Event) -> float:
    return cast(float, event["ts"])


def _length(event: Event) -> float:
    return cast(float, event["dur"])


def _lane(event: Event) -> Lane:
    return cast(int, event["pid"]), cast(int, event.get("tid", 0))


def _lane_names(events: Sequence[Event]) -> dict[Lane, str]:
    """The workers' names; with the processes' in front where there are several of these."""
    named = [e for e in events if e.get("ph") == "M"]
    processes = {e["pid"]: str(_args(e)["name"]) for e in named if e["name"] == "process_name"}
    threads = {_lane(e): str(_args(e)["name"]) for e in named if e["name"] == "thread_name"}
    if len(processes) < 2:
        return threads
    ranks = {pid: " ".join(name.split()[:2]) for pid, name in processes.items()}  # "rank 0"
    return {lane: f"{ranks[lane[0]]} {name}" for lane, name in threads.items()}


def _box(span: Span, lane: int, scale: float, colors: Mapping[str, str]) -> Iterator[str]:
    x, y, width = MARGIN + span.start * scale, lane * LANE_HEIGHT + 6, span.length * scale
    label = f"{span.name}, {span.length:.1f} us"
    yield (
        f'<rect x="{x:.2f}" y="{y}" width="{max(width, 0.3):.2f}" height="{LANE_HEIGHT - 12}" '
        f'fill="{colors[span.name]}"><title>{escape(label)}</title></rect>'
    )
    if len(label) * CHARACTER < width:
        yield _text(x + 4, y + 20, label)


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _ticks(end: float, scale: float, y: float) -> Iterator[str]:
    """A line of times below the lanes, at round numbers."""
    step = next(
        step
        for power in range(-3, 12)
        for step in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)
        if end / step <= GOAL_OF_TICKS
    )
    for i in range(int(end / step) + 1):
        x = MARGIN + i * step * scale
        yield f'<line x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{y + 5}" stroke="black"/>'
        yield _text(x, y + LINE_HEIGHT, f"{i * step:g} us")


def _legend(
    spans: Sequence[Span], whole: float, colors: Mapping[str, str], y: float
) -> Iterator[str]:
    """What each kind of task took of all workers' time, and what is left between tasks."""
    totals = {name: sum(s.length for s in spans if s.name == name) for name in colors}
    rows = [(name, totals[name], colors[name]) for name in (*list(colors)[1:], WAIT)]
    rows.append(("between tasks", whole - sum(totals.values()), "none"))
    for i, (name, total, color) in enumerate(rows):
        top = y + i * LINE_HEIGHT
        yield f'<rect x="{MARGIN}" y="{top}" width="12" height="12" fill="{color}"/>'
        share = f"{name}: {total:.1f} us of {whole:.1f} us, {total / whole:.1%}"
        yield _text(MARGIN + 20, top + 11, share)
