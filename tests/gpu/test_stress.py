"""Races, lost memory and results that change are looked for on a real GPU."""

import pytest

from tests.cuda_cases import Planner, opened
from tests.cuda_stress import (
    iterations_are_exact,
    programs_after_each_other_leave_no_memory_behind,
    sums_are_the_same_again,
)

ITERATIONS = 2000
# The driver tells of free memory in pieces of 2 MiB; each round allocates 0.8 MB for weights alone.
ROUNDS, SLACK_BYTES = 20, 4 << 20


def test_iterations_with_fresh_inputs_are_exact(planner: Planner) -> None:
    iterations_are_exact(opened, planner, iterations=ITERATIONS, size=264)


@pytest.mark.sanitizer
def test_a_few_iterations_with_fresh_inputs_are_exact(planner: Planner) -> None:
    iterations_are_exact(opened, planner, iterations=8, size=40)


@pytest.mark.parametrize(("rows", "width"), [(20, 192), (200, 1024)])
def test_sums_are_the_same_again(rows: int, width: int, planner: Planner) -> None:
    sums_are_the_same_again(opened, planner, rows=rows, width=width, repeats=10)


@pytest.mark.sanitizer
def test_small_sums_are_the_same_again(planner: Planner) -> None:
    sums_are_the_same_again(opened, planner, rows=20, width=192, repeats=1)


def test_programs_after_each_other_leave_no_memory_behind(planner: Planner) -> None:
    slack = {"rounds": ROUNDS, "slack_bytes": SLACK_BYTES}
    programs_after_each_other_leave_no_memory_behind(opened, planner, **slack)
