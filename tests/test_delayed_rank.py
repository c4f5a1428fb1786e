"""Ranks of different speed compute the same, at every iteration."""

import pytest

from tests.mpi import run_mpi

PROGRAM = """
import sys
import numpy as np
import ark_dist as ark

ark.init()
iterations, is_cut = int(sys.argv[1]), sys.argv[2] == "mesh"
size = ark.world_size()
model = ark.Model()
turn = model.state(1, name="turn")
model.add(turn, 1, output=turn)
if is_cut:
    # Row k of the weight is k: the product of ones with it is the sum of rows, times the turn.
    weight = model.parameter((24, 40), name="weight", shard=ark.P("tp", None))
    x = model.mul(model.ones((8, 24)), turn)
    found = model.matmul(x, weight)
    wanted = model.mul(turn, float(sum(range(24))))
else:
    x = model.mul(model.ones((8, 40)), model.add(turn, float(ark.rank())))
    found = model.all_reduce(x)
    wanted = model.add(model.mul(turn, float(size)), float(sum(range(size))))
off = model.reduce_max(model.abs(model.sub(found, wanted)).reshape(320), axis=0)
worst = model.state(1, name="worst")
model.maximum(worst, off.reshape(1), output=worst)
mesh = ark.Mesh({"tp": size}) if is_cut else None
with ark.Executor(model=model, device="cpu", mesh=mesh, workers=1, timeout_s=30) as exe:
    exe.compile()
    if is_cut:
        weight.from_numpy(np.repeat(np.arange(24, dtype=np.float32)[:, None], 40, axis=1))
    exe.launch()
    exe.run(iterations)
    assert exe.wait() == iterations
    print("worst", float(worst.to_numpy()[0]), "turns", float(turn.to_numpy()[0]), flush=True)
    exe.stop()
"""


@pytest.mark.parametrize("view", ["local", "mesh"])
@pytest.mark.parametrize(
    ("size", "iterations"),
    [
        (2, 60),
        pytest.param(2, 1000, marks=pytest.mark.long),
        pytest.param(4, 1000, marks=pytest.mark.long),
    ],
)
def test_every_iteration_is_right_when_one_rank_is_late(
    view: str, size: int, iterations: int
) -> None:
    fault = "op=all_reduce:1,rank=1,kind=delay=5"
    done = run_mpi(
        size, PROGRAM, str(iterations), view, env={"ARK_DIST_FAULT": fault}, timeout_s=90
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"worst 0.0 turns {float(iterations)}") == size, done.stdout
    # The delay took place: 5 ms an iteration.
    assert done.wall_s > 0.005 * iterations
