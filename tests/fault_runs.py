"""Run a program of several ranks in which one of them goes wrong."""

from dataclasses import dataclass, field

from tests.mpi import Finished, run_mpi

TIMEOUT_S = 2.0  # the ranks' own limit
LIMIT_S = 40.0
# A dead rank takes the others along within this; the machine may be busy with other tests.
QUICK_S = 10.0
LAUNCHERS = ("mpirun", "ark-dist")
DEVICES = ("cpu", "numpy")

# Two sums per run, five runs. VICTIM does WRONG at POINT.
PROGRAM = """
import atexit, os, signal, sys, time
if os.environ.get("ARK_DIST_TEST_POINT") == "exit":
    atexit.register(lambda: point("exit"))  # the first one registered is the last one called
VICTIM = int(os.environ.get("ARK_DIST_TEST_VICTIM", "1"))

def point(name):
    if name != os.environ.get("ARK_DIST_TEST_POINT") or me() != VICTIM:
        return
    exec(os.environ.get("ARK_DIST_TEST_WRONG", "os.kill(os.getpid(), signal.SIGKILL)"))

def me():
    return int(os.environ.get("PMI_RANK", "0"))

def say(text):
    os.write(1, (text + "\\n").encode())

say(f"pid {os.getpid()}")
point("import")
import numpy as np
import ark_dist as ark
from ark_dist.scheduler.plan import PlanOptions

point("imported")
rank, size = ark.rank(), ark.world_size()
point("connected")
model = ark.Model()
x = model.tensor((64,), ark.FP32)
half = model.mul(model.all_reduce(x), 0.5)
y = model.all_reduce(half)
options = PlanOptions(transport=os.environ.get("ARK_DIST_TEST_TRANSPORT", "peer"))
device = os.environ.get("ARK_DIST_TEST_DEVICE", "cpu")
exe = ark.Executor(model=model, device=device, workers=1, options=options)
point("planned")
exe.compile()
point("compiled")
exe.launch()
point("launched")
for turn in range(5):
    x.from_numpy(np.full(64, rank + turn, np.float32))
    if turn == 2:
        point("before run")
    exe.run()
    if turn == 2:
        point("running")
    exe.wait()
    want = 0.5 * size * sum(r + turn for r in range(size))
    np.testing.assert_array_equal(y.to_numpy(), want)
point("waited")
exe.stop()
point("stopped")
exe.close()
say(f"proper end of {rank}")
"""


@dataclass(frozen=True, slots=True)
class FaultRun:
    """What goes wrong where.

    Attributes:
        fault: for ARK_DIST_FAULT.
        point: of PROGRAM, where `wrong` is executed, or SIGKILL where it is "".
        wrong: Python code.
        victim: the rank that goes wrong at `point`.
        env: more variables.
    """

    fault: str = ""
    point: str = ""
    wrong: str = ""
    victim: int = 1
    device: str = "cpu"
    transport: str = "peer"
    timeout_s: float = TIMEOUT_S
    env: dict[str, str] = field(default_factory=dict)

    def on(self, n: int, by: str, program: str = PROGRAM) -> Finished:
        """Run on n ranks; all are gone when this returns."""
        env = {
            "ARK_DIST_TIMEOUT_S": str(self.timeout_s),
            "ARK_DIST_LOG": "WARNING",
            "ARK_DIST_FAULT": self.fault,
            "ARK_DIST_TEST_POINT": self.point,
            "ARK_DIST_TEST_VICTIM": str(self.victim),
            "ARK_DIST_TEST_DEVICE": self.device,
            "ARK_DIST_TEST_TRANSPORT": self.transport,
            "ARK_DIST_WORKERS": "1",
            **({"ARK_DIST_TEST_WRONG": self.wrong} if self.wrong else {}),
            **self.env,
        }
        done = run_mpi(n, program, env=env, timeout_s=LIMIT_S, is_guarded=False, by=by)
        assert not done.is_timed_out, done
        return done


def cause(done: Finished) -> str:
    """What `ark-dist run` says at the end about why."""
    text = done.stderr.partition("ark-dist run: exit code")[2]
    assert text, done
    return text


def check_failed(done: Finished, code: int, by: str, within_s: float) -> None:
    """Assert that a run failed, with this code under `ark-dist run`, and in time."""
    assert done.returncode != 0, done
    if by == "ark-dist":
        assert done.returncode == code, done
    assert done.wall_s < within_s, done
