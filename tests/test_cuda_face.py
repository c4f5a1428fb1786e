"""Users' programs on a GPU that is faked."""

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
from tests.fake_cupy import Fake
from tests.test_docs import Block

Capsys = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("name", CASES)
def test_on_a_fake_gpu(name: str, fake: Fake) -> None:
    CASES[name](3)


def test_both_tutorials_print_their_errors(fake: Fake, capsys: Capsys, monkeypatch: Patch) -> None:
    both_tutorials_print_their_errors(capsys, monkeypatch)


@pytest.mark.parametrize(("block", "shown"), SHOWN)
def test_a_shown_program_prints_what_is_shown(
    block: Block, shown: Block, fake: Fake, capsys: Capsys, monkeypatch: Patch, tmp_path: Path
) -> None:
    a_shown_program_prints_what_is_shown(block, shown, tmp_path, capsys, monkeypatch)


def test_examples_of_several_ranks_run_on_one(
    fake: Fake, capsys: Capsys, monkeypatch: Patch
) -> None:
    examples_of_several_ranks_run_on_one(capsys, monkeypatch)


def test_a_plan_is_printed(fake: Fake, capsys: Capsys, monkeypatch: Patch) -> None:
    a_plan_is_printed(capsys, monkeypatch)


def test_a_text_is_written(fake: Fake, capsys: Capsys, monkeypatch: Patch, tmp_path: Path) -> None:
    a_text_is_written(tmp_path, capsys, monkeypatch)
