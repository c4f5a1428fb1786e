"""Measure what is not a model's own work: dispatch, hops between workers, start-up, planning."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from ark_dist.bench import compute
from ark_dist.bench.decode import decode
from ark_dist.bench.policies import alternating
from ark_dist.bench.rows import Row, Wanted
from ark_dist.core.graph import Graph
from ark_dist.core.layout import MeshShape, P
from ark_dist.core.plan import Plan
from ark_dist.core.settings import child_environment
from ark_dist.core.target import topology_of, wide_target
from ark_dist.executor import Executor
from ark_dist.launch.mpirun import mpirun_command, mpirun_environment, require_mpirun
from ark_dist.model import Model
from ark_dist.scheduler.order import Queues, earliest_finish
from ark_dist.scheduler.partition import partition
from ark_dist.scheduler.plan import PlanOptions, make_plan
from ark_dist.tensors import Tensor

ELEMENTS = 32
CHAIN = 10
ITERATIONS = 20_000
ROUNDS = 30
CALLS = 3_000
LAYERS = 30
# The streaming multiprocessors of an H200.
GPU_WORKERS = 132


def dispatch() -> list[Row]:
    """Cost of a task, of a dependency that changes workers, and of one call from Python."""
    return [
        Row("dispatch", "10 adds", "fp32", 1, 1, "us/task", _task_us(1, earliest_finish)),
        Row("dispatch", "hop", "fp32", 1, 2, "us/task", _task_us(2, alternating)),
        Row("dispatch", "run(1)+wait", "fp32", 1, 2, "us/call", _call_us(2)),
    ]


def startup() -> list[Row]:
    """A new process with a warm cache: import, plan, launch and first run of 30 layers."""
    code = (
        "import time; t = time.perf_counter()\n"
        "from ark_dist.benchmarks import startup_seconds\n"
        "print(f'import={time.perf_counter() - t}'); startup_seconds()\n"
        "print(f'import to first run={time.perf_counter() - t}')"
    )
    rows = []
    for _ in range(2):  # the first process fills the cache
        rows = _printed(code)
    return [
        Row("startup", f"{LAYERS} layers: {case}", "fp32", 1, 2, "s", float(value))
        for case, value in rows
    ]


def planning() -> list[Row]:
    """Seconds and memory, each in a new process, to cut and plan a large model for one GPU of 8."""
    rows = []
    for kind in ("cuda", "null"):
        code = f"from ark_dist.benchmarks import planning_cost; planning_cost({kind!r})"
        for unit, value in _printed(code):
            case = f"llama-3-70b tp=8, {kind}"
            rows.append(Row("planning", case, "bf16", 1, GPU_WORKERS, unit, float(value)))
    return rows


def all_reduce() -> list[Row]:
    """Reduce fresh buffers of all ranks inside the kernel, against MPI and gloo."""
    return [*_ranked("all_reduce", 2), *_ranked("all_reduce", 4)]


def mlp(wanted: Wanted) -> list[Row]:
    """The tutorial's model on one rank, and cut over two."""
    cut = (row for row in _ranked("mlp", 2) if wanted.takes(row.case, row.dtype))
    return [*compute.mlp(wanted), *cut]


def gpu(wanted: Wanted) -> list[Row]:
    """What a GPU's kernels are made of, on GPU 0, each figure beside its floor."""
    from ark_dist.bench.gpu import gpu as measured  # here: `startup` measures this file's imports

    return measured(wanted)


def load() -> list[Row]:
    """Four ranks load their parts of a checkpoint of 2 GB, against the safetensors library."""
    return _ranked("load", 4)


def _ranked(bench: str, ranks: int) -> list[Row]:
    """Run a benchmark of several ranks under mpirun."""
    mpirun = require_mpirun("auto")
    command = [sys.executable, "-m", "ark_dist.rank_benchmarks", bench]
    done = subprocess.run(
        mpirun_command(mpirun, ranks, None, command),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
        env=mpirun_environment(mpirun, ranks, ARK_DIST_LOG="WARNING"),
    )
    return [Row(bench, **row) for row in json.loads(done.stdout)]


def _printed(code: str) -> list[list[str]]:
    """Run Python in a new process; return the lines `name=value` that it prints, cut in two."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env=child_environment(ARK_DIST_LOG="WARNING"),
    )
    return [line.split("=") for line in done.stdout.splitlines()]


def _whole(bench: Callable[[], list[Row]]) -> Callable[[Wanted], list[Row]]:
    """A benchmark that measures all of its cases, and shows those that are wanted."""
    return lambda wanted: [row for row in bench() if wanted.takes(row.case, row.dtype)]


BENCHES: dict[str, Callable[[Wanted], list[Row]]] = {
    "all_reduce": _whole(all_reduce),
    "decode": decode,
    "dispatch": _whole(dispatch),
    "gpu": gpu,
    "load": _whole(load),
    "matmul": compute.matmul,
    "mlp": mlp,
    "ops": compute.ops,
    "planning": _whole(planning),
    "startup": _whole(startup),
}


def transformer(
    layers: int, *, rows: int = 16, width: int = 256, hidden: int = 512, heads: int = 4
) -> tuple[Model, list[Tensor]]:
    """A transformer of the library's operators; returns the model and what has to be written."""
    model = Model("transformer")
    leaves = [model.tensor((rows, width), "fp32")]

    def weight(*shape: int) -> Tensor:
        leaves.append(model.parameter(shape, "fp32"))
        return leaves[-1]

    def split(tensor: Tensor) -> Tensor:
        return tensor.reshape((rows, heads, width // heads)).transpose((1, 0, 2))

    x = leaves[0]
    for _ in range(layers):
        normed = model.layernorm(x)
        q, k, v = (split(model.matmul(normed, weight(width, width))) for _ in range(3))
        scores = model.mul(model.matmul(q, k, transpose_other=True), (width // heads) ** -0.5)
        mixed = model.matmul(model.softmax(scores), v).transpose((1, 0, 2))
        x = model.add(x, model.matmul(mixed.reshape((rows, width)), weight(width, width)))
        inner = model.matmul(model.layernorm(x), weight(width, hidden), is_relu=True)
        x = model.add(x, model.matmul(inner, weight(hidden, width)))
    return model, leaves


def startup_seconds() -> None:
    """Print `case=seconds` for the parts of a first run, in this process."""
    began = time.perf_counter()
    model, leaves = transformer(LAYERS)
    built = time.perf_counter()
    exe = Executor(model=model, device="cpu", workers=2)
    planned = time.perf_counter()
    exe.compile()
    compiled = time.perf_counter()
    for tensor in leaves:
        exe.tensor_memcpy_host_to_device(tensor, np.zeros(tensor.shape, np.float32))
    exe.launch()
    exe.run(1)
    exe.wait()
    done = time.perf_counter()
    exe.stop()
    print(f"build={built - began}")
    print(f"plan={planned - built}")
    print(f"compile={compiled - planned}")
    print(f"load and first run={done - compiled}")


def llama_70b(layers: int = 80, *, positions: int = 4096) -> Model:
    """A decode step of Llama 3 70B, its weights cut over the axis "tp"; batch 1, KV cache.

    Sizes: Grattafiori et al. 2024.
    """
    width, depth, rows = 8192, 128, 128256
    heads, groups, inner = 64, 8, 28672
    by_rows, by_columns = P("tp", None), P(None, "tp")
    model = Model("llama_3_70b")
    position = model.state(1, "int32", name="position")
    length = model.add(position, 1)
    table = model.parameter((positions, depth), "fp32", name="rope")
    token = model.tensor((1, 1), "int32", name="token")

    def product(x: Tensor, size: int, shard: P) -> Tensor:
        weight = model.parameter((size, x.shape[-1]), "bf16", shard=shard)
        return model.matmul(x, weight, transpose_other=True)

    def norm(x: Tensor) -> Tensor:
        return model.rmsnorm(x, model.parameter(width, "bf16"), eps=1e-5)

    def split(x: Tensor, count: int) -> Tensor:
        return product(x, count * depth, by_rows).reshape((1, 1, count, depth))

    def cached(x: Tensor) -> Tensor:
        cache = model.state((1, positions, groups, depth), "bf16")
        return model.scatter(cache, x, position, axis=1, output=cache)

    x = model.embedding(token, model.parameter((rows, width), "bf16", shard=by_rows))
    for _ in range(layers):
        y = norm(x)
        q, k, v = (split(y, n) for n in (heads, groups, groups))
        q, k = (model.rope(part, table, position, interleaved=False) for part in (q, k))
        mixed = model.attention(q, cached(k), cached(v), length).reshape((1, 1, heads * depth))
        x = model.add(x, product(mixed, width, by_columns))
        y = norm(x)
        gated = product(y, inner, by_rows).silu().mul(product(y, inner, by_rows))
        x = model.add(x, product(gated, width, by_columns))
    product(norm(x), rows, by_rows)
    model.copy(length, output=position)
    return model


def planned_rank(graph: Graph, kind: str, *, ranks: int = 8) -> Plan:
    """Cut a graph over the axis "tp" and plan the first rank's part for a GPU."""
    topology = topology_of((0,) * ranks)
    part = partition(graph, MeshShape((("tp", ranks),)), 0, topology)
    return make_plan(part.graph, wide_target(GPU_WORKERS, kind=kind), topology=topology)


def planning_cost(kind: str) -> None:
    """Print how many seconds a plan takes to make, and the most memory of this process."""
    graph = llama_70b().freeze()
    began = time.perf_counter()
    planned_rank(graph, kind)
    print(f"s={time.perf_counter() - began}")
    print(f"MB={resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}")


def _task_us(workers: int, policy: Callable[..., Queues]) -> float:
    model = Model("dispatch")
    x = model.tensor((ELEMENTS,), "fp32")
    y = x
    for _ in range(CHAIN):
        y = model.add(y, x)
    options = PlanOptions(is_fused=False, policy=policy)
    with Executor(model=model, device="cpu", workers=workers, options=options) as exe:
        assert len(exe.plan.methods[0].tasks) == CHAIN
        exe.compile()
        exe.tensor_memcpy_host_to_device(x, np.ones(ELEMENTS, np.float32))
        exe.launch()

        def once() -> None:
            exe.run(ITERATIONS)
            exe.wait()

        return _best_s(once, ROUNDS) / ITERATIONS / CHAIN * 1e6


def _call_us(workers: int) -> float:
    model = Model("call")
    x = model.tensor((ELEMENTS,), "fp32")
    model.add(x, x)
    with Executor(model=model, device="cpu", workers=workers) as exe:
        exe.compile()
        exe.tensor_memcpy_host_to_device(x, np.ones(ELEMENTS, np.float32))
        exe.launch()
        times = []
        for _ in range(CALLS):
            began = time.perf_counter()
            exe.run(1)
            exe.wait()
            times.append(time.perf_counter() - began)
        return float(np.median(times)) * 1e6


def _best_s(call: Callable[[], None], rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best
