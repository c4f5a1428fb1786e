"""Users' programs on a real GPU."""

from pathlib import Path

import pytest

from tests.cuda_face import (
    CASES,
    SHOWN,
    a_plan_is_printed,
    a_shown_program_prints_what_is_shown,
    a_text_is_written,
    both_tutorials_print_their_errors,
    examples_of_several_ranks_run_on_one,
)
from tests.test_docs import Block

Capsys = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu(name: str, workers: int) -> None:
    CASES[name](None)


def test_both_tutorials_print_their_errors(
    workers: int, capsys: Capsys, monkeypatch: Patch
) -> None:
    both_tutorials_print_their_errors(capsys, monkeypatch)


@pytest.mark.parametrize(("block", "shown"), SHOWN)
def test_a_shown_program_prints_what_is_shown(
    block: Block, shown: Block, capsys: Capsys, monkeypatch: Patch, tmp_path: Path
) -> None:
    a_shown_program_prints_what_is_shown(block, shown, tmp_path, capsys, monkeypatch)


def test_examples_of_several_ranks_run_on_one(capsys: Capsys, monkeypatch: Patch) -> None:
    examples_of_several_ranks_run_on_one(capsys, monkeypatch)


def test_a_plan_is_printed(capsys: Capsys, monkeypatch: Patch) -> None:
    a_plan_is_printed(capsys, monkeypatch)


def test_a_text_is_written(
    workers: int, capsys: Capsys, monkeypatch: Patch, tmp_path: Path
) -> None:
    a_text_is_written(tmp_path, capsys, monkeypatch)
