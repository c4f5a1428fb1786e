"""Try operators on every device, each in a program of its own: `python -m tests.try_operator NAME`.

The shared tests put all operators of a dtype into one program, which takes a minute to compile;
here a few seconds show whether one operator agrees with its formula.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np

from ark_dist.core.builder import GraphBuilder
from ark_dist.core.errors import CompilerNotFoundError
from ark_dist.core.graph import Graph
from ark_dist.core.op import OPS
from ark_dist.core.settings import read_settings
from ark_dist.core.target import cpu_target
from ark_dist.kernels.emit import emit_cuda
from ark_dist.launch.cpuinfo import best_isa
from ark_dist.launch.nvrtc import compile_cuda, find_nvrtc
from ark_dist.launch.session import Session
from tests.emulated import emulated, gpu_plan
from tests.operator_cases import TESTED, Case, add_case, fill_leaf
from tests.operator_formulas import FORMULAS
from tests.plan_models import eager
from tests.running import launched
from tests.test_operators import check

# Cases per dtype: 2, 5 and 8 have NaN and infinities, 7 is empty. Race mode looks at every access.
CASES, RACE_CASES = 9, 3
WORKERS = 2
ARCH = "sm_90a"


def build(name: str, count: int) -> tuple[Graph, tuple[Case, ...]]:
    """A graph with so many cases of one operator for each of its dtypes."""
    builder = GraphBuilder(f"try_{name}")
    cases = []
    for dtype in OPS[name].dtypes:
        rng = np.random.default_rng(list(f"{name} {dtype}".encode()))
        cases += [add_case(builder, OPS[name], dtype, number, rng) for number in range(count)]
    for case in cases:
        builder.keep(case.output)
    return builder.freeze(), tuple(cases)


def compare(session: Session, cases: Sequence[Case], label: str) -> None:
    """Fill the cases' inputs, run once, and compare each result with the formula."""
    rng = np.random.default_rng(0)
    inputs = []
    for case in cases:
        arrays = [fill_leaf(case, i, rng) for i in range(len(case.leaves))]
        for leaf, array in zip(case.leaves, arrays, strict=True):
            session.write(leaf.view, array)
        inputs.append(tuple(look(a) for look, a in zip(case.looks, arrays, strict=True)))
    session.run(1, "forward", {})
    session.wait()
    for case, seen in zip(cases, inputs, strict=True):
        check(case, seen, session.read(case.output.view), label)


def on_cpu(graph: Graph, device: str) -> AbstractContextManager[Session]:
    """The graph's program on "numpy" or "cpu"."""
    return launched(graph, eager(cpu_target(WORKERS, best_isa())), device)


DEVICES: dict[str, tuple[int, Callable[[Graph], AbstractContextManager[Session]]]] = {
    "numpy": (CASES, lambda graph: on_cpu(graph, "numpy")),
    "cpu": (CASES, lambda graph: on_cpu(graph, "cpu")),
    "emulated": (CASES, lambda graph: emulated(gpu_plan(graph, workers=WORKERS))),
    "emulated, race mode": (
        RACE_CASES,
        lambda graph: emulated(gpu_plan(graph, workers=WORKERS), race=True),
    ),
}


def try_nvrtc(name: str) -> str:
    """Compile the operator's CUDA source; say what it needs, or why it was not compiled."""
    try:
        find_nvrtc()
    except CompilerNotFoundError as error:
        return f"not compiled for {ARCH}: {error}"
    source, _ = emit_cuda(gpu_plan(build(name, RACE_CASES)[0], workers=WORKERS, arch=ARCH))
    _, report = compile_cuda(source, arch=ARCH, settings=read_settings())
    kernel = report.kernel("ark_kernel")
    return f"compiled for {ARCH}: {kernel.registers} registers, {kernel.stack_bytes} bytes of stack"


def try_operator(name: str) -> None:
    """Run an operator's cases on all devices and print a line for each."""
    if name not in TESTED or name not in FORMULAS:
        where = "tests/operator_formulas.py has no formula" if name in TESTED else "no random cases"
        sys.exit(f"{name}: {where}; those that can be tried are {', '.join(sorted(FORMULAS))}")
    for device, (count, open_session) in DEVICES.items():
        graph, cases = build(name, count)
        with open_session(graph) as session:
            compare(session, cases, device)
        print(f"{name}: {device}: {len(cases)} cases agree with the formula", flush=True)
    print(f"{name}: {try_nvrtc(name)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.try_operator")
    parser.add_argument("name", nargs="+", help="an operator")
    for given in parser.parse_args().name:
        try_operator(given)
