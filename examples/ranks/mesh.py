"""Run one model over all ranks that there are: `mpirun -n 2 python examples/ranks/mesh.py`."""

import numpy as np

import ark_dist as ark

ROWS, WIDTH, INNER = 4, 64, 256

mesh = ark.Mesh({"tp": -1})  # one axis, with all ranks
random = np.random.default_rng(0)
up_np = random.standard_normal((WIDTH, INNER)).astype(np.float32)
down_np = random.standard_normal((INNER, WIDTH)).astype(np.float32)
x_np = random.standard_normal((ROWS, WIDTH)).astype(np.float32)

with ark.Runtime(mesh=mesh) as runtime:
    x = ark.tensor([ROWS, WIDTH], name="x")
    up = ark.parameter([WIDTH, INNER], name="up", shard=ark.P(None, "tp"))
    down = ark.parameter([INNER, WIDTH], name="down", shard=ark.P("tp", None))
    y = ark.relu(x @ up) @ down
    runtime.launch()

    # Every rank has whole arrays and keeps its part; checkpoints are read in parts.
    x.from_numpy(x_np)
    up.from_numpy(up_np)
    down.from_numpy(down_np)
    runtime.run(iter=10)

    value = y.to_numpy()
    expected = np.maximum(x_np @ up_np, 0) @ down_np
    assert np.allclose(value, expected, rtol=1e-4, atol=1e-2)
    print(
        f"rank {ark.rank()} of {ark.world_size()}: has {up.to_numpy(local=True).shape} of "
        f"{tuple(up.shape)}, max error {np.abs(value - expected).max():.1e}"
    )
