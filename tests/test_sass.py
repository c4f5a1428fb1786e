"""The hot kernels become the machine code that they were written for, on every architecture."""

from pathlib import Path

import pytest

from ark_dist.core.errors import CompileError, CompilerNotFoundError
from ark_dist.core.settings import read_settings
from ark_dist.core.source import Source
from ark_dist.core.target import wide_target
from ark_dist.kernels.emit import emit_cuda
from ark_dist.launch import nvrtc, sass
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.device_kernels import kernel_text
from tests.plan_models import block

ARCHS = ("sm_80", "sm_90a", "sm_100a")

try:
    nvrtc.find_nvrtc()
    sass.find_nvdisasm()
except CompilerNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)


def tensor(tile: str, a_along_k: bool, b_along_k: bool, **rest: str) -> str:
    along = {"a_along_k": str(a_along_k).lower(), "b_along_k": str(b_along_k).lower()}
    return kernel_text("tensor", **{"t": "ark_bf16", "tile": tile, **along, **rest})


def few(kind: str, rows: int, dtype: str = "ark_bf16", **rest: str) -> str:
    return kernel_text(kind, ta=dtype, tb=dtype, m=rows, r=4, **rest)


PAIRS = {"epilogue": "test_store_pair"}
NORM = {"prologue": "test_norm"}
TENSOR_OPCODES = ("HMMA.16816.F32", "LDSM.16.M88.4", "LDGSTS.E.BYPASS.128")
TRANSPOSED = ("LDSM.16.MT88.4",)
GROUPS = {"128, 128, 8, 4": "HGMMA.64x128x16.F32", "128, 64, 8, 3": "HGMMA.64x64x16.F32"}
# Name: source, opcodes that all have, opcodes from sm_90 on, opcodes of sm_80.
KERNELS = {
    "tensor 128": (tensor("128, 128, 2, 3", True, True, **PAIRS), TENSOR_OPCODES, (), ()),
    "tensor 128 transposed": (
        tensor("128, 128, 2, 3", False, False, t="ark_fp16"),
        ("HMMA.16816.F32", "LDGSTS.E.BYPASS.128", *TRANSPOSED),
        (),
        (),
    ),
    "tensor 64": (tensor("64, 64, 2, 3", True, False), (*TENSOR_OPCODES, *TRANSPOSED), (), ()),
    "tensor 16": (tensor("16, 128, 1, 3", True, True), TENSOR_OPCODES, (), ()),
    "tensor normalized": (
        tensor("128, 64, 4, 3", True, True, **NORM),
        (*TENSOR_OPCODES, "LDG.E.128", "STS.128"),
        (),
        (),
    ),
    "plain 128": (
        kernel_text("plain", ta="float", tb="float", tile="8, 8"),
        ("FFMA", "LDS.128"),
        (),
        (),
    ),
    "plain 64": (
        kernel_text("plain", ta="ark_bf16", tb="float", tile="4, 4"),
        ("FFMA", "LDS.128"),
        (),
        (),
    ),
    **{
        f"stream {rows} {dtype}": (
            few("stream", rows, dtype),
            ("LDS.128", "FFMA", "SHFL.BFLY"),
            ("UBLKCP", "SYNCS.PHASECHK.TRANS64.TRYWAIT", "SYNCS.ARRIVE.TRANS64"),
            ("LDGSTS.E.BYPASS.128", "ATOMS.ARRIVE.64"),
        )
        for rows, dtype in [(1, "ark_bf16"), (1, "ark_fp16"), (4, "float"), (8, "ark_bf16")]
    },
    "stream normalized": (few("stream", 1, **NORM), ("LDS.128", "FFMA"), ("UBLKCP",), ("LDGSTS",)),
    **{
        f"direct {rows} {dtype}": (few("direct", rows, dtype), ("LDG.E.128", "LDS.128"), (), ())
        for rows, dtype in [(1, "ark_bf16"), (1, "float"), (4, "ark_fp16"), (8, "ark_bf16")]
    },
    "computed": (few("computed", 2), ("LDS.128", "FFMA"), (), ()),
}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", KERNELS)
def test_a_hot_kernel_keeps_to_registers_and_known_memory(name: str, arch: str) -> None:
    text, everywhere, bulk, lanes = KERNELS[name]
    source = Source(name, "cuda", text)
    binary, report = nvrtc.compile_cuda(source, arch=arch, settings=read_settings())
    figures = report.kernel("kernel")
    assert (figures.stack_bytes, figures.spill_store_bytes, figures.spill_load_bytes) == (0, 0, 0)
    assert figures.shared_bytes == 0
    (function,) = sass.functions(binary.path).values()  # all is inlined
    assert function.generic == {}
    assert function.local == {}
    wanted = (*everywhere, *(lanes if arch == "sm_80" else bulk))
    counts = {opcode: function.count(opcode) for opcode in wanted}
    assert all(counts.values()), (counts, function.opcodes)
    is_tensor = name.startswith("tensor")
    assert bool(function.count("HMMA")) == is_tensor


@pytest.mark.parametrize("tile", GROUPS)
@pytest.mark.parametrize("dtype", ["ark_bf16", "ark_fp16"])
@pytest.mark.parametrize("rest", [{}, NORM, PAIRS], ids=str)
def test_warp_groups_multiply_on_sm_90a(tile: str, dtype: str, rest: dict[str, str]) -> None:
    text = tensor(tile, True, True, t=dtype, **rest)
    source = Source("groups", "cuda", text)
    binary, report = nvrtc.compile_cuda(source, arch="sm_90a", settings=read_settings())
    figures = report.kernel("kernel")
    assert (figures.stack_bytes, figures.spill_store_bytes, figures.spill_load_bytes) == (0, 0, 0)
    assert "serialized" not in report.log  # what ptxas says of products that must wait
    (function,) = sass.functions(binary.path).values()
    assert function.generic == {} and function.local == {}
    assert function.count(GROUPS[tile]) == 4
    assert function.count("HMMA") == function.count("LDSM") == 0
    assert function.count("FENCE.VIEW.ASYNC")  # what threads wrote is published


@pytest.mark.parametrize("arch", ARCHS)
def test_a_whole_program_keeps_to_registers_and_known_memory(arch: str) -> None:
    source, _ = emit_cuda(make_plan(block(), wide_target(8, arch, "cuda"), PlanOptions()))
    binary, report = nvrtc.compile_cuda(source, arch=arch, settings=read_settings())
    assert report.kernel("ark_kernel").stack_bytes == 0
    function = sass.functions(binary.path)["ark_kernel"]
    assert function.generic == {} and function.local == {}


@pytest.mark.parametrize("arch", ARCHS)
def test_generic_and_local_accesses_are_found(arch: str) -> None:
    text = """
#include "ark_gpu.h"
GPU_CONSTANT float** table;
GPU_KERNEL(slow, 64) {
  float* y = gpu_global(table)[gpu_block()];
  if (y == nullptr) y = reinterpret_cast<float*>(gpu_smem());
  float values[64];
  for (int i = 0; i < 64; ++i) values[(i * i) % 64] = y[i];
  y[gpu_thread()] = values[uint32_t(y[64]) % 64];
}
"""
    source = Source("slow", "cuda", text)
    binary, _ = nvrtc.compile_cuda(source, arch=arch, settings=read_settings())
    function = sass.functions(binary.path)["slow"]
    assert {opcode.split(".")[0] for opcode in function.generic} == {"LD", "ST"}
    assert {opcode.split(".")[0] for opcode in function.local} == {"LDL", "STL"}


def test_opcodes_are_counted_by_name_and_modifiers() -> None:
    text = """
	.section	.text.first,"ax",@progbits
.text.first:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/               @P1 BRA `(.L_x_0) ;
        /*0020*/              @!P0 LDG.E.128 R8, desc[UR4][R2.64] ;
        /*0030*/             @!UP0 UIADD3 UR4, -UR5, 0x100000, URZ ;
        /*0040*/                   LDG.E R8, desc[UR4][R2.64] ;
        /*0050*/                   LD.E.64 R8, [R2.64] ;
	.section	.text.second,"ax",@progbits
        /*0000*/                   STL [R1], R2 ;
"""
    first, second = sass.parse(text).values()
    assert (first.name, second.name) == ("first", "second")
    assert first.count("LDG") == 2
    assert first.count("LDG.128") == first.count("LDG.E.128") == 1
    assert first.count("UIADD3") == first.count("BRA") == 1
    assert first.generic == {"LD.E.64": 1}
    assert first.local == {}
    assert second.local == {"STL": 1}


def test_a_file_that_is_no_cubin_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kernel.cubin"
    path.write_text("no cubin")
    with pytest.raises(CompileError, match="can't be disassembled"):
        sass.disassemble(path)


def test_without_the_disassembler_the_error_names_its_wheel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sass, "TOOL_PATTERNS", ())
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(CompilerNotFoundError, match="pip install nvidia-cuda-nvdisasm"):
        sass.find_nvdisasm()
