"""All primitives compile for every architecture, and the emulation has the same ones."""

import re
from importlib import resources

import pytest

from ark_dist.core.errors import CompilerNotFoundError
from ark_dist.core.settings import read_settings
from ark_dist.core.source import Source
from ark_dist.launch import nvrtc, sass

ARCHS = ("sm_80", "sm_90a", "sm_100a")
# Names that only the GPU's headers need for themselves.
INTERNAL = {
    *("gpu_global_address", "gpu_evict_first"),
    *("gpu_has_come", "gpu_acquire_fence", "gpu_poll", "gpu_poll_idle"),
}
# Only sm_90a has warp groups' products; tests/test_sass.py compiles them.
ONLY_90A = {
    *("gpu_wgmma_publish", "gpu_wgmma_fence", "gpu_wgmma_commit", "gpu_wgmma_wait"),
    *("gpu_wgmma_hold", "gpu_wgmma_bf16", "gpu_wgmma_fp16"),
}
FUNCTION = re.compile(
    r"^(?:GPU_FN\s[^;{}()]*?\b|GPU_(?:LOAD|STORE|ATOMIC|MMA|WGMMA|LDMATRIX\d)\()(gpu_\w+)"
)

# One use of each primitive; the results reach memory, so that none is left out.
TEXT = """
#include "ark_gpu.h"
struct config_t {
  uint64_t* words;
  uint32_t* half_words;
  const uint32_t* abort;
  float* y;
  const char* bytes;
};
GPU_CONSTANT config_t config;

GPU_KERNEL(words, 384) {
  uint64_t* w = gpu_global_pointer<uint64_t>(gpu_global_address(config.words));
  uint32_t* h = gpu_global(config.half_words);
  const uint32_t* abort = gpu_global(config.abort);
  uint32_t* flag = reinterpret_cast<uint32_t*>(gpu_smem());
  gpu_store_relaxed(flag, 0u);
  gpu_barrier(0, 384);
  gpu_store_relaxed(w + 1, gpu_load_relaxed(w) + gpu_load_acquire(w + 2));
  gpu_store_release(w + 3, gpu_load_relaxed_system(w + 4));
  gpu_store_relaxed_system(w + 5, gpu_load_acquire_system(w + 6));
  gpu_store_release_system(h, gpu_load_relaxed(h + 1) + gpu_load_relaxed(flag));
  h[2] = gpu_exchange(h + 3, 7) + gpu_compare_exchange(h + 4, 8, 9) + gpu_add(h + 5, 1);
  w[14] = gpu_load_fixed(reinterpret_cast<uint64_t*>(gpu_anew(gpu_smem())));
  w[7] = gpu_exchange(w + 8, 7) + gpu_compare_exchange(w + 9, 8, 9) + gpu_add(w + 10, 1);
  gpu_add_release(w + 11, 1);
  gpu_add_release_system(w + 12, 1);
  gpu_fence();
  gpu_fence_system();
  if (gpu_kernel_thread() == 0) {
    int result = gpu_wait(w, 3, abort, 1000);
    result += gpu_wait_system(w + 1, 4, abort, 1000) + gpu_wait_host(w + 2, 5, abort);
    result += gpu_wait_idle(w + 3, 6, abort);
    h[6] = uint32_t(result);
    gpu_nanosleep(100);
    w[13] = gpu_clock_ns();
  }
}

GPU_KERNEL(values, 384) {
  gpu_set_max_registers_dec<40>();
  gpu_set_max_registers_inc<40>();
  gpu_task_begin(0, 0);
  float* y = gpu_global(config.y) + 64 * gpu_thread();
  // Lanes have values of their own, or their shuffles would be left out.
  const char* bytes = gpu_global(config.bytes) + 16 * gpu_thread();
  y[0] = gpu_load_readonly(reinterpret_cast<const float*>(bytes));
  y[1] = float(gpu_load_readonly(reinterpret_cast<const uint16_t*>(bytes)));
  y[2] = float(gpu_load_readonly(reinterpret_cast<const uint8_t*>(bytes)));
  y[3] = float(gpu_load_readonly(reinterpret_cast<const double*>(bytes)));
  *reinterpret_cast<gpu_vec4*>(y + 16) =
      gpu_load_readonly(reinterpret_cast<const gpu_vec4*>(bytes));
  *reinterpret_cast<gpu_vec4*>(y + 20) =
      gpu_load_streaming(reinterpret_cast<const gpu_vec4*>(bytes));
  y[6] = float(gpu_load_streaming(reinterpret_cast<const gpu_vec2*>(bytes)).x);
  y[7] = gpu_shuffle(y[0], 3) + gpu_shuffle_xor(y[1], 3);
  y[8] = float(gpu_shuffle(double(y[0]), 3) + gpu_shuffle_xor(double(y[1]), 3));
  y[9] = float(gpu_ballot(y[2] > 0));
  y[10] = gpu_warp_reduce(y[2], [](float a, float b) { return a > b ? a : b; });
  gpu_sync_warp();
  y[11] = gpu_fma(y[0], y[1], y[2]) + gpu_reciprocal(y[3]) + gpu_rsqrt(y[4]) + gpu_sqrt(y[5]);
  y[12] = y[3] + float(gpu_lane() + gpu_warp() + gpu_block() + gpu_grid());
  y[13] = gpu_bf16_to_float(uint16_t(gpu_lane())) + gpu_fp16_to_float(uint16_t(gpu_lane()));
  y[14] = float(gpu_float_to_bf16(y[3]) + gpu_float_to_fp16(y[4]));
  y[15] = float(gpu_pack_bf16(y[3], y[4]) + gpu_pack_fp16(y[4], y[5]));
  gpu_task_end();
}

GPU_KERNEL(copies, 384) {
  char* to = gpu_smem() + 1024;
  const char* from = gpu_global(config.bytes);
  gpu_mbarrier* full = reinterpret_cast<gpu_mbarrier*>(gpu_smem());
  if (gpu_thread() == 0) {
    gpu_mbarrier_init(full, GPU_FILL_ARRIVALS);
    gpu_mbarrier_init(full + 1, 1);
    gpu_mbarrier_fence();
  }
  gpu_barrier(0, 384);
  if (gpu_warp() == 0) {
    gpu_fill_begin(full, 2048);
    gpu_fill(to, from, 1024, full);
    gpu_fill(to + 1024, from + 2048, 1024, full);
    gpu_fill_end(full);
    gpu_fill_drain();
    gpu_fill_renew();
    gpu_prefetch_l2(from, 4096);
#if GPU_HAS_BULK
    if (gpu_lane() == 0) gpu_mbarrier_expect(full + 1, 0);
#else
    if (gpu_lane() == 0) gpu_mbarrier_arrive(full + 1);
#endif
    gpu_barrier_arrive(1, 64);
  } else if (gpu_warp() == 1) {
    gpu_barrier(1, 64);
  }
  const bool is_there = gpu_mbarrier_wait(full, 0, gpu_global(config.abort));
  gpu_copy16(to + 2048 + 16 * gpu_thread(), from + 16 * gpu_thread(), gpu_thread() > 3);
  gpu_copy_commit();
  gpu_copy_wait<0>();
  gpu_barrier(0, 384);
  uint32_t a[4], b[2], other[4], pair[2];
  const char* row = to + gpu_lane() * 16;
  gpu_ldmatrix4(a, row);
  gpu_ldmatrix4_trans(other, row);
  gpu_ldmatrix2(b, row);
  gpu_ldmatrix2_trans(pair, row);
  float c[4] = {};
  gpu_mma_bf16(c, a, b);
  gpu_mma_fp16(c, other, pair);
  const bool is_over = gpu_mbarrier_test(full + 1, 0);
  float* y = gpu_global(config.y) + 4 * gpu_thread();
  for (int i = 0; i < 4; ++i) y[i] = c[i] + float(is_there) + float(is_over);
  y[0] += float(gpu_shared_address(row));
}
"""
OPCODES = {
    "words": ("LDG.STRONG.GPU", "LDG.STRONG.SYS", "STG.STRONG.GPU", "ATOMG.ADD", "NANOSLEEP"),
    "values": ("SHFL.BFLY", "MUFU.RCP", "MUFU.RSQ", "LDG.E.128.CONSTANT"),
    "copies": ("HMMA.16816.F32.BF16", "HMMA.16816.F32", "LDSM", "LDGSTS", "BAR.ARV"),
}
FROM_90 = {"values": ("USETMAXREG",), "copies": ("UBLKCP", "UBLKPF", "SYNCS")}


def names(*path: str) -> set[str]:
    """The primitives that a folder's headers define."""
    folder = resources.files("ark_dist.kernels") / "device"
    for part in path:
        folder = folder / part
    files = [file for file in folder.iterdir() if file.name.endswith(".h")]
    lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
    return {match[1] for line in lines if (match := FUNCTION.match(line))}


@pytest.mark.parametrize("arch", ARCHS)
def test_every_primitive_compiles_and_knows_its_memory(arch: str) -> None:
    try:
        nvrtc.find_nvrtc()
        sass.find_nvdisasm()
    except CompilerNotFoundError as error:
        pytest.skip(str(error))
    source = Source("primitives", "cuda", TEXT)
    binary, report = nvrtc.compile_cuda(source, arch=arch, settings=read_settings())
    functions = sass.functions(binary.path)
    assert {kernel.name for kernel in report.kernels} == functions.keys() == OPCODES.keys()
    for name, function in functions.items():
        assert function.generic == {} and function.local == {}
        assert report.kernel(name).stack_bytes == 0
        wanted = OPCODES[name] + (FROM_90.get(name, ()) if arch != "sm_80" else ())
        counts = {opcode: function.count(opcode) for opcode in wanted}
        assert all(counts.values()), (counts, function.opcodes)


def test_gpu_and_emulation_have_the_same_primitives() -> None:
    found = names("gpu")
    assert len(found) > 60
    assert found - INTERNAL == names("emulated")


def test_each_primitive_is_compiled_above() -> None:
    used = set(re.findall(r"\bgpu_\w+", TEXT))
    assert names("gpu") - INTERNAL - ONLY_90A - used == set()
