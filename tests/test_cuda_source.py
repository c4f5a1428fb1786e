"""Every operator's and whole programs' CUDA source becomes code that keeps to registers."""

from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from ark_dist.core.errors import CompilerNotFoundError
from ark_dist.core.op import OPS
from ark_dist.launch import nvrtc, sass
from tests.cuda_code import (
    ALL_DTYPES_ARCH,
    REPORT,
    Compiled,
    Job,
    compiling,
    heading,
    operator_jobs,
    plan_of,
    rank_jobs,
    row,
    transformer_jobs,
)

try:
    nvrtc.find_nvrtc()
    sass.find_nvdisasm()
except CompilerNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)

JOBS = [*transformer_jobs(), *rank_jobs(), *operator_jobs()]
MOST_FUNCTIONS = 40  # of a whole model
Results = dict[Job, Future[Compiled]]


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> Iterator[Results]:
    """The programs of the tests that were chosen, compiled side by side."""
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    jobs = {spec.params["job"]: None for spec in specs if spec and "job" in spec.params}
    with compiling(list(jobs)) as futures:
        yield futures


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_a_program_keeps_to_registers(job: Job, compiled: Results) -> None:
    found = compiled[job].result()
    kernel = found.kernel
    assert (kernel.stack_bytes, kernel.spill_store_bytes, kernel.spill_load_bytes) == (0, 0, 0)
    assert found.code.local == {}


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_a_program_compiles_silently_and_knows_its_memory(job: Job, compiled: Results) -> None:
    found = compiled[job].result()
    # Of spills the assembler warns too.
    assert [line for line in found.warnings if "Local memory used" not in line] == []
    assert found.code.generic == {}
    assert found.long_divisions == 0
    assert found.kernel.shared_bytes == 0  # all of it is dynamic


@pytest.mark.parametrize("job", transformer_jobs(), ids=str)
def test_a_model_has_few_functions_and_the_instructions_for_its_work(
    job: Job, compiled: Results
) -> None:
    found = compiled[job].result()
    assert found.function_count <= MOST_FUNCTIONS
    # There LDGSTS brings the weights, and registers stay where they are.
    stream = () if job.arch == "sm_80" else ("UBLKCP", "USETMAXREG.DEALLOC", "USETMAXREG.TRY_ALLOC")
    products = ("HMMA.16816.F32", "LDSM.16.M88.4", "LDGSTS.E.BYPASS.128")
    wanted = (*products, *stream, "LDG.E.128", "LDS.128", "STG.E.128")
    counts = {opcode: found.code.count(opcode) for opcode in wanted}
    assert all(counts.values()), (counts, found.code.opcodes)


@pytest.mark.parametrize("job", rank_jobs(), ids=str)
def test_ranks_tell_one_another_across_the_system(job: Job, compiled: Results) -> None:
    """Flags are raised and awaited beyond the GPU, and a wait for them is no plain load."""
    (method,) = plan_of(job).methods
    ops = [node.op for node in method.nodes]
    # Whole: ready, wait, taken, release; in slices: ready, wait, arrived, wait.
    assert ops.count("handshake") == 8 and ops.count("reduce_parts") == 2
    opcodes = compiled[job].result().code.opcodes
    assert any(name.startswith("LD") and ".STRONG.SYS" in name for name in opcodes), opcodes
    assert any(name.startswith("ST") and ".STRONG.SYS" in name for name in opcodes), opcodes


def test_every_operator_and_dtype_is_compiled() -> None:
    compiled = set()
    for job in (*rank_jobs(), *operator_jobs()):
        if job.arch == ALL_DTYPES_ARCH:
            nodes = (node for method in plan_of(job).methods for node in method.nodes)
            compiled |= {(node.op, job.dtype) for node in nodes}
    computing = [op for op in OPS.values() if op.kernel is not None and op.effect != "handshake"]
    wanted = {(op.name, d) for op in computing for d in op.dtypes}
    assert wanted - compiled == set()
    # A request is the same function, which has no dtype.
    assert "handshake" in {name for name, _ in compiled}


@pytest.mark.parametrize("job", [job for job in JOBS if job.arch == ALL_DTYPES_ARCH], ids=str)
def test_the_report_is_current(job: Job, compiled: Results) -> None:
    text = REPORT.read_text("utf-8")
    version = nvrtc.find_nvrtc().version
    if f"NVRTC {version}." not in text:
        pytest.skip(f"{REPORT.name} was not written with NVRTC {version}")
    assert text.startswith(heading())
    assert row(job, compiled[job].result()) in text.splitlines(), (
        "write it anew: python -m tests.cuda_code --write"
    )
