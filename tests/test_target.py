"""A target turns bytes and operations into seconds by the roofline rule."""

from dataclasses import replace

import pytest

from ark_dist.core.target import Cost, Target, cpu_target, wide_target


@pytest.mark.parametrize("target", [cpu_target(2), wide_target(132)])
def test_a_task_costs_its_start_and_the_slower_of_memory_and_arithmetic(target: Target) -> None:
    assert target.seconds(Cost(0, 0)) == target.task_s
    moved, computed = target.bytes_per_s, target.ops_per_s
    assert target.seconds(Cost(int(moved), 0)) == pytest.approx(1 + target.task_s)
    assert target.seconds(Cost(0, int(computed))) == pytest.approx(1 + target.task_s)
    both = target.seconds(Cost(int(moved), 2 * int(computed)))
    assert both == pytest.approx(2 + target.task_s)


def test_cpus_count_by_worker_and_wide_targets_by_group() -> None:
    assert cpu_target(3).counters == "clock"
    assert wide_target().counters == "group"
    assert (cpu_target(3).worker_count, wide_target().worker_count) == (3, 132)


def test_targets_compare_by_value() -> None:
    assert cpu_target(2) == cpu_target(2)
    assert cpu_target(2) != replace(cpu_target(2), arch="avx2")
    assert hash(cpu_target(2)) == hash(cpu_target(2))
    assert cpu_target(1, kind="numpy").kind == "numpy"
