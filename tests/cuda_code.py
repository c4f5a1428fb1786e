"""Compile programs for GPUs that no GPU has to be there for, and say what their code needs.

`python -m tests.cuda_code` prints the table of docs/cuda-report.md, `--write` writes it; it
takes one to two minutes.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ark_dist.core.builder import GraphBuilder
from ark_dist.core.dtype import DTYPES, FLOATS
from ark_dist.core.graph import Graph
from ark_dist.core.op import OPS
from ark_dist.core.plan import Plan
from ark_dist.core.settings import read_settings
from ark_dist.core.target import topology_of, wide_target
from ark_dist.kernels.emit import emit_cuda
from ark_dist.kernels.text import shared_layout
from ark_dist.launch import nvrtc, sass
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.emulated import gpu_plan
from tests.operator_cases import TESTED, add_case
from tests.running import strided
from tests.test_attention import add as add_attention
from tests.test_attention import random_case
from tests.test_expand import product
from tests.transformer import Config, transformer

ARCHS = ("sm_80", "sm_90a", "sm_100a")
# All dtypes for one architecture; for the others one of each size.
ALL_DTYPES_ARCH = "sm_90a"
SOME_DTYPES = ("fp32", "bf16", "int8")
CASES = 2  # of each operator and dtype
# Operators in one program at most: the compiler's time grows faster than their number.
MOST_OPERATORS = 40
REPORT = Path(__file__).parent.parent / "docs" / "cuda-report.md"
WORKERS = 132  # streaming multiprocessors
# The sizes of SmolLM2-135M, but for the number of layers.
SMALL_LLAMA = Config(
    prompt=128,
    layers=2,
    hidden=576,
    heads=9,
    groups=3,
    depth=64,
    inner=1536,
    vocabulary=49152,
    positions=1024,
    dtype="bf16",
    is_output_major=True,
    end=2,
)
TRANSFORMER = "transformer"
RANKS = "all_reduce"
# What the table counts.
OPCODES = ("HMMA", "HGMMA", "LDSM", "LDGSTS", "UBLKCP", "LDG.E.128", "LDS.128")
# Subroutines that divide 64 bits.
LONG_DIVISION = re.compile(r"CALL\S* .*__cuda_sm\w*_(?:div|rem)_[su]64")


@dataclass(frozen=True, order=True)
class Job:
    """One program to compile: operators of a family, tried with one dtype, for one architecture."""

    family: str
    dtype: str
    arch: str

    def __str__(self) -> str:
        return f"{self.family} {self.dtype} {self.arch}"


@dataclass(frozen=True)
class Compiled:
    """What came out of a job.

    Attributes:
        function_count: task functions.
        shared_bytes: dynamic shared memory of a CTA.
        kernel: registers, stack and spills.
        code: opcodes of the one function there is.
        warnings: lines of the compiler's log.
        long_divisions: calls of subroutines that divide 64 bits.
    """

    function_count: int
    shared_bytes: int
    kernel: nvrtc.KernelReport
    code: sass.Function
    warnings: tuple[str, ...]
    long_divisions: int


def plain_operators(dtype: str) -> list[str]:
    """Operators of tests/operator_cases.py with a program in common; products have their own."""
    return [name for name in TESTED if dtype in OPS[name].dtypes and name != "matmul"]


def parts(dtype: str) -> list[list[str]]:
    """Names of operators, cut into programs."""
    names = plain_operators(dtype)
    size = -(-len(names) // -(-len(names) // MOST_OPERATORS))
    return [names[first : first + size] for first in range(0, len(names), size)]


def families(dtype: str) -> list[str]:
    """Names of all programs of a dtype."""
    names = [f"operators {number + 1}" for number, _ in enumerate(parts(dtype))]
    return [*names, *(BUILDERS if dtype in FLOATS else ())]


def operator_jobs() -> list[Job]:
    """Every operator and dtype."""
    return [
        Job(family, dtype, arch)
        for arch in ARCHS
        for dtype in (DTYPES if arch == ALL_DTYPES_ARCH else SOME_DTYPES)
        for family in families(dtype)
    ]


def transformer_jobs() -> list[Job]:
    """A whole model."""
    return [Job(TRANSFORMER, SMALL_LLAMA.dtype, arch) for arch in ARCHS]


def rank_jobs() -> list[Job]:
    """A program that talks to another rank."""
    return [Job(RANKS, "fp32", arch) for arch in ARCHS]


def _rank_graph(job: Job) -> Graph:
    """Sums that every rank computes whole, and in slices for all, for rank 0 of 2."""
    builder = GraphBuilder(str(job), rank=0, world_size=2)
    for name, count in (("small", 64), ("large", 1 << 16)):
        x = builder.apply("mul", [builder.tensor((count,), job.dtype), 2])
        builder.keep(builder.apply("all_reduce", [x], {"reduce": "mean"}, name=name))
    return builder.freeze()


def _add_products(builder: GraphBuilder, dtype: str) -> None:
    rng = np.random.default_rng([1, *dtype.encode()])
    for number in range(CASES):
        builder.keep(add_case(builder, OPS["matmul"], dtype, number, rng).output)
    for m, n, k, parts in ((3, 70, 256, 2), (70, 130, 96, 3)):
        a, b = builder.tensor((m, k), dtype), builder.parameter((k, n), dtype)
        builder.keep(product(builder, a, b, parts))
    # Weights that come through the ring.
    weight = builder.parameter((70, 128), dtype)
    turned = {"transpose_input": False, "transpose_other": True, "is_relu": False}
    builder.keep(builder.apply("matmul", [builder.tensor((1, 128), dtype), weight], turned))


def _add_attention(builder: GraphBuilder, dtype: str) -> None:
    rng = np.random.default_rng([2, *dtype.encode()])
    for _ in range(CASES):
        builder.keep(add_attention(builder, random_case(rng), dtype, rng)[-1])
    # Long enough to be computed in parts.
    shapes = ((1, 1, 6, 64), (1, 4000, 2, 64), (1, 4000, 2, 64))
    inputs = [builder.tensor(shape, dtype) for shape in shapes]
    builder.keep(builder.apply("attention", inputs, {"causal": False, "scale": None}))


def _add_rotations_and_samples(builder: GraphBuilder, dtype: str) -> None:
    rng = np.random.default_rng([3, *dtype.encode()])
    for depth, turned, interleaved in ((64, 64, False), (65, 8, True)):
        _, x = strided(builder, (2, 3, 5, depth), dtype, rng)
        _, table = strided(builder, (40, turned), "fp32", rng)
        position = builder.tensor((2,), "int32")
        attrs = {"interleaved": interleaved}
        builder.keep(builder.apply("rope", [x, table, position], attrs))
    angles = builder.tensor((1, 32, 32, 256), dtype)
    builder.keep(builder.apply("rope", [builder.tensor((1, 32, 32, 256), dtype), angles]))
    for shape, one in (((1, 49152), 1), ((3, 300), 3)):
        logits = builder.tensor(shape, dtype)
        numbers = [
            builder.tensor((one,), kind) for kind in ("int32", "fp32", "int32", "fp32", "uint32")
        ]
        builder.keep(builder.apply("sample", [logits, *numbers]))


def _add_control(builder: GraphBuilder, dtype: str) -> None:
    state = builder.state((1,), dtype, name="scalar", init=1)
    builder.command_scalar(state)
    builder.keep(builder.apply("copy", [state]))
    if dtype in OPS["stop_when"].dtypes:
        builder.apply("stop_when", [state])
    x, y = (builder.tensor((3, 40), dtype) for _ in range(2))
    for op, inputs in (("check_finite", [x]), ("check_equal", [x, y])):
        if dtype in OPS[op].dtypes:
            builder.keep(builder.apply(op, inputs))


# Families of operators on floats that have rules of their own.
BUILDERS = {
    "matmul": _add_products,
    "attention": _add_attention,
    "rope and sample": _add_rotations_and_samples,
}


def _operator_graph(job: Job) -> Graph:
    builder = GraphBuilder(str(job))
    if job.family in BUILDERS:
        BUILDERS[job.family](builder, job.dtype)
        return builder.freeze()
    number = int(job.family.split()[-1]) - 1
    if number == 0:
        _add_control(builder, job.dtype)
    for name in parts(job.dtype)[number]:
        rng = np.random.default_rng([0, *f"{name} {job.dtype}".encode()])
        for number in range(CASES):
            builder.keep(add_case(builder, OPS[name], job.dtype, number, rng).output)
    return builder.freeze()


def plan_of(job: Job) -> Plan:
    """The plan of a job's program."""
    if job.family == TRANSFORMER:
        target = wide_target(WORKERS, job.arch, "cuda")
        return make_plan(transformer(SMALL_LLAMA).graph, target, PlanOptions())
    if job.family == RANKS:
        target = wide_target(WORKERS, job.arch, "cuda")
        return make_plan(_rank_graph(job), target, rank=0, topology=topology_of((0, 0)))
    # Attention is cut into parts for workers that would have nothing to do.
    workers = 16 if job.family == "attention" else 2
    return gpu_plan(_operator_graph(job), workers=workers, arch=job.arch)


def compile_job(job: Job) -> Compiled:
    """Compile a job's program, or take it from the cache, and look at its code."""
    source, tables = emit_cuda(plan_of(job))
    binary, report = nvrtc.compile_cuda(source, arch=job.arch, settings=read_settings())
    text = sass.disassemble(binary.path)
    (code,) = sass.parse(text).values()  # all is inlined, or local to the kernel
    layout = shared_layout(job.arch, tables.shared_bytes, tables.has_stream)
    return Compiled(
        function_count=int(tables.tasks["function"].max()) + 1,
        shared_bytes=layout.bytes,
        kernel=report.kernel("ark_kernel"),
        code=code,
        warnings=tuple(line for line in report.log.splitlines() if "warning" in line),
        long_divisions=len(LONG_DIVISION.findall(text)),
    )


@contextmanager
def compiling(jobs: Sequence[Job]) -> Iterator[dict[Job, Future[Compiled]]]:
    """Compile jobs two at a time, in processes of their own."""
    pool = ProcessPoolExecutor(2, mp_context=get_context("spawn"))
    try:
        yield {job: pool.submit(compile_job, job) for job in jobs}
    finally:
        pool.shutdown(cancel_futures=True)


def row(job: Job, found: Compiled) -> str:
    """A job's line of the table."""
    kernel, code = found.kernel, found.code
    figures = (
        *(found.function_count, kernel.registers, kernel.stack_bytes),
        kernel.spill_store_bytes + kernel.spill_load_bytes,
        *(found.shared_bytes, sum(code.opcodes.values())),
        *(code.count(opcode) for opcode in OPCODES),
    )
    return "| " + " | ".join(map(str, (job.family, job.dtype, job.arch, *figures))) + " |"


def heading() -> str:
    """What stands above the table: how it was made."""
    names = ("program", "dtype", "for", "functions", "registers", "stack", "spills", "shared")
    columns = (*names, "instructions", *OPCODES)
    lines = [
        "# CUDA report",
        "",
        "What compiled programs need, per thread and CTA: written by",
        f"`python -m tests.cuda_code --write`, with NVRTC {nvrtc.find_nvrtc().version}. Stack,",
        "spills and shared memory are bytes. Operators are two small cases of each",
        "(`tests/cuda_code.py`), so that their opcodes say which instructions there are, not",
        "how often they run; the transformer has the sizes of SmolLM2-135M in two layers, and",
        "prefill and decode in one program.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * 3 + "---:|" * (len(columns) - 3),
    ]
    return "\n".join(lines)


def report() -> str:
    """The whole report."""
    jobs = [*transformer_jobs(), *rank_jobs(), *operator_jobs()]
    with compiling(jobs) as futures:
        rows = [row(job, futures[job].result()) for job in jobs]
    return "\n".join([heading(), *rows]) + "\n"


def main() -> None:
    """Print the report, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name}")
    is_written = parser.parse_args().write
    text = report()
    if is_written:
        REPORT.write_text(text, "utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
