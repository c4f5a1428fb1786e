"""Programs whose ranks build things that do not fit each other."""

from tests.fault_runs import LIMIT_S
from tests.mpi import Finished, run_mpi

HEAD = """
import ark_dist as ark
rank, size = ark.rank(), ark.world_size()
model = ark.Model()
def tensor(*shape, dtype=ark.FP32):
    return model.tensor(shape, dtype)
"""
END = """
exe = ark.Executor(model=model, device="numpy")
exe.compile()
exe.launch()
print("launched")
"""
# What the ranks build, and what is said of it.
DIFFERENT = {
    "row 13": (
        "x = model.all_reduce(tensor(8), name='sum')\n"
        "if rank == 1:\n    model.all_reduce(x, name='extra')",
        r"PlanMismatchError: rank 1: all_reduce 'extra' \(fp32\[8\].*; rank 0 has no such all_red",
    ),
    "row 14": (
        "x = tensor(8)\n"
        "first, second = (model.all_reduce, model.all_gather)[:: 1 if rank else -1]\n"
        "first(x, name='a')\nsecond(x, name='b')",
        r"PlanMismatchError: rank 0: all_gather 'a' .*; rank 1: all_reduce 'a' .*: another op",
    ),
    "row 14, messages": (
        "x, y = tensor(8), tensor(4)\n"
        "if rank == 0:\n"
        "    for t in [model.send(x, dst=1), model.send(y, dst=1)]: model.send_done(t)\n"
        "else:\n"
        "    model.recv((4,), ark.FP32, src=0)\n    model.recv((8,), ark.FP32, src=0)",
        r"PlanMismatchError: rank 0: send 'send' \(fp32\[8\].*; rank 1: recv 'recv' \(fp32\[4\]",
    ),
    "row 15": (
        "model.all_reduce(tensor(8, dtype=ark.INT32 if rank else ark.FP32), name='sum')",
        r"PlanMismatchError: rank 0: .*\(fp32\[8\].*; rank 1: .*\(int32\[8\].*must be the same",
    ),
    "row 16": (
        "model.all_reduce(tensor(1000 * (rank + 1)), name='sum')",
        r"PlanMismatchError: rank 0: .*\(fp32\[1000\].*; rank 1: .*\(fp32\[2000\]",
    ),
    "row 17": (
        "model.all_reduce(tensor(8), 'max' if rank else 'sum')",
        r"PlanMismatchError: rank 0: .*reduce='sum'.*; rank 1: .*reduce='max'",
    ),
    "row 18, no receiver": (
        "if rank == 0:\n    model.send_done(model.send(tensor(8), dst=1))",
        r"PlanMismatchError: rank 0: send 'send' .*; rank 1 has no such recv",
    ),
    "row 18, wrong tag": (
        "if rank == 0:\n    model.send_done(model.send(tensor(8), dst=1, tag=1))\n"
        "else:\n    model.recv((8,), ark.FP32, src=0, tag=2)",
        r"PlanMismatchError: rank 0: send 'send' .*tag=1.*; rank 1 has no such recv",
    ),
    "row 19": (
        "x = tensor(8)\n"
        "model.recv((8,), ark.FP32, src=(rank - 1) % size)\n"
        "model.send_done(model.send(x, dst=(rank + 1) % size))",
        r"PlanMismatchError: no rank could go on: rank 0 waits in recv .*; rank 1 waits in recv",
    ),
    "row 20": (
        "import ark_dist.launch.agreement as agreement\n"
        "agreement.VERSION = '9.9' if rank == 1 else agreement.VERSION\n"
        "model.all_reduce(tensor(8))",
        r"PlanMismatchError: rank 1 has version 9\.9, rank 0 has \d",
    ),
}


def run_different(name: str, n: int, by: str) -> Finished:
    """Run such a program; the file that all ranks run is one."""
    program = HEAD + DIFFERENT[name][0] + END
    return run_mpi(n, program, timeout_s=LIMIT_S, is_guarded=False, by=by)
