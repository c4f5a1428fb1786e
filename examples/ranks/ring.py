"""Pass values round a ring inside the kernel: `mpirun -n 3 python examples/ranks/ring.py`."""

import numpy as np

import ark_dist as ark

rank, size = ark.rank(), ark.world_size()

model = ark.Model("ring")
value = model.state(4, name="value", init=rank)
if size > 1:
    token = model.send(value, dst=(rank + 1) % size)
    got = model.recv((4,), ark.FP32, src=(rank - 1) % size)
    model.assign(value, model.identity(got, deps=[model.send_done(token)]))
total = model.all_reduce(value, name="total")

with ark.Executor(model=model) as exe:
    exe.compile()
    exe.launch()
    # After as many iterations as there are ranks, each value is home again.
    exe.run(size)
    assert exe.wait() == size
    assert np.all(value.to_numpy() == rank)
    assert np.all(total.to_numpy() == sum(range(size)))
    print(f"rank {rank} of {size}: {value.to_numpy()[0]:g}, sum {total.to_numpy()[0]:g}")
    exe.stop()
