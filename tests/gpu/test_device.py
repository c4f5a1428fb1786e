"""The CUDA device on a real GPU: lifecycle, failures, operators, the transformer, traces."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from ark_dist.core.settings import read_settings
from ark_dist.launch.devices.cupy_gpu import Gpu
from tests import test_int8
from tests.cuda_cases import CASES, Planner, opened
from tests.cuda_programs import (
    check_copies,
    early_end_of_generation,
    greedy_tokens,
    sampled_tokens,
)
from tests.lifecycle_models import NEVER, looping, set_stop
from tests.patience import marked
from tests.test_emulated_transformer import CONFIGS
from tests.test_gpu_trace import check_trace

# Of the cases: launch and exit, host commands, early end, failure, abort.
SANITIZED = (
    "a program is launched run stopped and launched again",
    "early ends close the queue and wait opens it again",
    "workers that run ahead stop where they should",
    "a bad index is a task error and the program can be launched again",
    "another thread can close a program that is waited for",
)


@pytest.mark.sanitizer
def test_copies_of_all_sizes_arrive() -> None:
    check_copies(Gpu(0))


@pytest.mark.parametrize("name", marked(CASES, SANITIZED))
def test_on_a_gpu(name: str, planner: Planner) -> None:
    CASES[name](opened, planner)


@pytest.mark.parametrize("case", test_int8.CASES, ids=str)
def test_int8_matrices_on_a_gpu(case: test_int8.Case) -> None:
    test_int8.check(case, "cuda")


@pytest.mark.parametrize("name", marked(CONFIGS, ("streamed bf16", "long prompt")))
def test_greedy_tokens_are_those_of_numpy(name: str, planner: Planner) -> None:
    greedy_tokens(opened, planner, CONFIGS[name])


def test_sampled_tokens_are_the_same_again(planner: Planner) -> None:
    sampled_tokens(opened, planner)


@pytest.mark.sanitizer
def test_an_early_end_leaves_the_weight_stream_in_step(planner: Planner) -> None:
    early_end_of_generation(opened, planner)


def test_a_trace_has_every_task_at_its_time(planner: Planner, tmp_path: Path) -> None:
    path, loop = tmp_path / "trace.json", looping()
    with opened(planner(loop.graph), settings=replace(read_settings(), trace_path=path)) as session:
        began_ns = time.monotonic_ns()
        session.launch()
        set_stop(session, loop, NEVER)
        session.run(9, "forward", {})
        session.wait()
        session.stop()
        check_trace(path, session.plan, 9, began_ns)
