"""Random models give the float64 result on every executor, with any number of workers."""

import os
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from ark_dist.core.op import OPS
from ark_dist.core.settings import read_settings
from ark_dist.core.target import cpu_target
from ark_dist.launch.devices.emulated import EmulatedDevice
from ark_dist.launch.devices.numpy import NumpyDevice
from ark_dist.launch.open import open_session
from ark_dist.launch.session import Session, SessionOptions
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.emulated import gpu_plan
from tests.random_graphs import fill, random_model
from tests.random_oracle import Oracle, tolerance
from tests.random_pool import RandomModel

SEEDS = range(
    int(os.environ.get("ARK_TEST_FIRST", "0")), int(os.environ.get("ARK_TEST_SEEDS", "200"))
)
# Each takes about a second to compile: the others are for --all.
FIRST_SEEDS = 40
SEED_PARAMS = [
    pytest.param(seed, marks=[pytest.mark.long] if seed >= FIRST_SEEDS else []) for seed in SEEDS
]
EMULATED = [(seed, False) for seed in range(8)] + [(seed, True) for seed in range(8, 12)]
WORKERS = (1, 2, 3)
SEVERAL = 3
# Operators with random programs of their own, in test_rope.py, test_sampling.py and so on.
NOT_USED = ("rope", "sample", "stop_when", "identity", "sharding")


class _RandomChooser:
    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def __call__(self, ready: Sequence[tuple[int, int]]) -> int:
        return self._rng.choice(ready)[0]


def check_model(session: Session, model: RandomModel, seed: int, label: str) -> dict[str, bytes]:
    """Run all methods once, then 7 times; compare with the oracle; return the bits."""
    graph = model.graph
    data = fill(model, seed)
    oracle = Oracle(graph, data)
    session.compile(lambda path: None)
    for value in model.inputs:
        session.write(value.view, data[value.view.buffer])
    session.launch()
    bits = {}
    try:
        for iterations in (1, 7):
            for method in graph.methods:
                session.run(iterations, method.name, {})
                assert session.wait() == iterations
                oracle.run(method.name, iterations)
                for value in (*model.outputs[method.name], *model.states):
                    found = session.read(value.view)
                    wanted = oracle.view(value.view)
                    largest = float(np.abs(wanted).max(initial=0))
                    limit = tolerance(value.view.dtype.name, largest)
                    error = float(
                        np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max(initial=0)
                    )
                    name = graph.buffers[value.view.buffer].name
                    assert error <= limit, (
                        f"seed {seed}, {label}, {method.name} x {iterations}, {name}: "
                        f"error {error:.3g}, allowed {limit:.3g}"
                    )
                    bits[f"{iterations}/{method.name}/{name}"] = found.tobytes()
    finally:
        session.close()
    return bits


def test_the_models_use_every_operator_several_times() -> None:
    uses = sum((random_model(seed).uses for seed in range(FIRST_SEEDS)), Counter[str]())
    public = {
        name
        for name, op in OPS.items()
        if op.is_public and op.effect != "communication" and name not in NOT_USED
    }
    assert {name: uses[name] for name in public if uses[name] < SEVERAL} == {}


@pytest.mark.parametrize("seed", SEED_PARAMS)
def test_a_random_model_is_right_on_cpu_and_numpy(seed: int) -> None:
    model = random_model(seed)
    graph = model.graph
    settings = read_settings()
    for workers in WORKERS:
        options = PlanOptions(depth=1 + seed % 3)
        sessions = [
            open_session(
                graph, device="cpu", settings=settings, worker_count=workers, options=options
            ).session
            for _ in range(2)
        ]
        first, again = (check_model(s, model, seed, f"cpu, {workers} workers") for s in sessions)
        assert first == again, f"seed {seed}, {workers} workers: a rerun gave other bits"
        if workers == 1 + seed % 3:
            choose = _RandomChooser(seed)
            plan = make_plan(graph, cpu_target(workers), options)
            device = NumpyDevice(plan, choose=choose)
            check_model(Session(plan, device, SessionOptions()), model, seed, "numpy")


@pytest.mark.parametrize(("seed", "race"), EMULATED)
def test_a_random_model_is_right_on_the_emulated_gpu(seed: int, race: bool) -> None:
    model = random_model(seed)
    plan = gpu_plan(model.graph, workers=2)
    device = EmulatedDevice(plan, read_settings(), seed=seed, is_race_checked=race)
    check_model(Session(plan, device, SessionOptions()), model, seed, "emulated")
