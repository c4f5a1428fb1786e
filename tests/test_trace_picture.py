"""A trace's last iteration as a picture."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from ark_dist.launch.exit_codes import BAD_CONFIG
from ark_dist.launch.trace_picture import draw_iteration
from tests.test_cli import SCRIPT, run

SVG = "{http://www.w3.org/2000/svg}"


def span(name: str, tid: int, ts: float, dur: float, turn: int) -> dict[str, object]:
    args = {"turn": turn, "method": "forward"}
    return {"ph": "X", "name": name, "pid": 1, "tid": tid, "ts": ts, "dur": dur, "args": args}


def document(*spans: dict[str, object]) -> dict[str, object]:
    names = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "rank 0 a<b"}},
        *(
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": w, "args": {"name": f"worker {w}"}}
            for w in range(2)
        ),
    ]
    return {"traceEvents": [*names, *spans]}


def texts(picture: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def test_the_beginning_of_an_iteration_can_be_drawn() -> None:
    made = document(
        span("matmul", 0, 2000.0, 80.0, 1),
        span("add", 1, 2010.0, 90.0, 1),
        span("late", 0, 2080.0, 900.0, 1),
    )
    found = texts(draw_iteration(made, until_us=50.0))
    assert "add: 90.0 us of 200.0 us, 45.0%" in found
    assert not any("late" in text for text in found)


def test_the_last_iteration_is_drawn_with_what_each_kind_took() -> None:
    picture = draw_iteration(
        document(
            span("matmul", 1, 10.0, 9.0, 1),  # of an earlier launch
            span("matmul", 0, 100.0, 999.0, 0),
            span("wait", 0, 2000.0, 10.0, 1),
            span("matmul", 0, 2010.0, 80.0, 1),
            span("a<b+c", 1, 2000.0, 60.0, 1),
        )
    )
    found = texts(picture)
    assert {"worker 0", "worker 1", "0 us", "20 us"} <= set(found)
    assert "matmul: 80.0 us of 180.0 us, 44.4%" in found
    assert "a<b+c: 60.0 us of 180.0 us, 33.3%" in found
    assert "wait: 10.0 us of 180.0 us, 5.6%" in found
    assert "between tasks: 30.0 us of 180.0 us, 16.7%" in found
    boxes = [e for e in ElementTree.fromstring(picture).iter(f"{SVG}rect") if len(e)]
    assert len(boxes) == 3


def test_a_trace_without_tasks_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match=r"^the trace has no tasks"):
        draw_iteration(document())


def test_the_command_writes_the_picture(tmp_path: Path) -> None:
    script, out, picture = (tmp_path / name for name in ("script.py", "t.json", "t.svg"))
    script.write_text(SCRIPT)
    done = run("trace", str(script), "--out", str(out), "--picture", str(picture), "cpu")
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text("utf-8"))["traceEvents"]
    last = [row for row in rows if row["ph"] == "X" and row["args"]["turn"] == 2]
    found = ElementTree.fromstring(picture.read_text("utf-8"))
    assert len([e for e in found.iter(f"{SVG}rect") if len(e)]) == len(last)


def test_a_folder_for_the_picture_that_is_missing_is_named(tmp_path: Path) -> None:
    script, out = tmp_path / "script.py", tmp_path / "t.json"
    script.write_text(SCRIPT)
    done = run("trace", str(script), "--out", str(out), "--picture", "/no/such/t.svg", "cpu")
    assert done.returncode == BAD_CONFIG
    assert "folder /no/such does not exist" in done.stderr
