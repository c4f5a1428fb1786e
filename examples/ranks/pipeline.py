"""Two stages work on different inputs at once: `mpirun -n 2 python examples/ranks/pipeline.py`.

Iteration i takes row i of all inputs. While the second rank computes the end of iteration i, the
first one is at iteration i + 1.
"""

import numpy as np

import ark_dist as ark

COUNT, WIDTH, INNER = 32, 64, 128

mesh = ark.Mesh({"pp": -1})
random = np.random.default_rng(0)
inputs = random.standard_normal((COUNT, WIDTH)).astype(np.float32)
first_np = random.standard_normal((WIDTH, INNER)).astype(np.float32)
second_np = random.standard_normal((INNER, WIDTH)).astype(np.float32)
last = 1 if ark.world_size() > 1 else 0

model = ark.Model("pipeline")
x = model.tensor([COUNT, WIDTH], name="inputs")
first = model.parameter([WIDTH, INNER], name="first")
second = model.parameter([INNER, WIDTH], name="second")
results = model.state([1, COUNT, WIDTH], name="results")
# Each stage counts for itself: one counter would make the stages wait for each other.
taken = model.state(1, ark.INT32, name="taken")
written = model.state(1, ark.INT32, name="written")
with model.stage(0):
    inner = model.relu(model.embedding(taken, x) @ first)
    model.assign(taken, taken + 1)
with model.stage(last):
    model.scatter(results, (inner @ second).reshape(1, 1, WIDTH), written, axis=1)
    model.assign(written, written + 1)

with ark.Executor(model=model, mesh=mesh) as exe:
    exe.compile()
    for tensor, array in ((x, inputs), (first, first_np), (second, second_np)):
        tensor.from_numpy(array)
    exe.launch()
    exe.run(COUNT)
    assert exe.wait() == COUNT
    found = results.to_numpy()[0]
    expected = np.maximum(inputs @ first_np, 0) @ second_np
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-3)
    error = np.abs(found - expected).max()
    print(f"rank {ark.rank()} of {ark.world_size()}: max error {error:.1e}")
    exe.stop()
