"""Small kernels around the matrix products of kernels/ops/matmul.cuh, as tests compile them."""

from importlib import resources

from ark_dist.core import abi

DEVICE_HEADERS = ("ring.h", "elements.h", "panels.h", "matvec.h")
SLOT_BYTES, SLOTS, SCRATCH_OFFSET = 2048, 16, 1024 + 16 * 2048

# Like kernels/device/shared.h: barriers of the ring, its slots, then scratch.
CONSTANTS = f"""
constexpr uint32_t ARK_CONSUMERS = 256, ARK_WARPS = 8, ARK_THREADS = 288;
constexpr int ARK_COMPUTE_BARRIER = 1, ARK_COMMAND_BARRIER = 2;
constexpr uint32_t ARK_RING_SLOTS = {SLOTS}, ARK_SLOT_BYTES = {SLOT_BYTES};
{abi.SEGMENT.c_text}
"""
SHARED = f"""
GPU_FN char* ark_ring_slots() {{ return gpu_smem() + 1024; }}
GPU_FN ark_ring& test_ring() {{ return *reinterpret_cast<ark_ring*>(gpu_smem()); }}
GPU_FN char* test_scratch() {{ return gpu_smem() + {SCRATCH_OFFSET}; }}

struct test_config {{
  const void* a;
  const void* b;
  float* y;
  const float* shift;   // of a row of a
  const float* scale;
  const float* weight;  // along k
  const float* bias;
  const ark_segment* segments;
  ark_matmul_shape shape;
  int64_t y_m, scratch_bytes, segment_count, rounds;
  ark_few_cut cut;
}};
GPU_CONSTANT test_config config;

template <class T>
GPU_FN const T* test_a() {{
  return reinterpret_cast<const T*>(config.a);
}}
template <class T>
GPU_FN const T* test_b() {{
  return reinterpret_cast<const T*>(config.b);
}}

struct test_norm {{
  ARK_FN float operator()(int i, int k, float x) const {{
    const float y = (x - gpu_global(config.shift)[i]) * gpu_global(config.scale)[i];
    return gpu_fma(y, gpu_global(config.weight)[k], gpu_global(config.bias)[k]);
  }}
}};
struct test_store {{
  ARK_FN void operator()(int i, int j, float value) const {{
    gpu_global(config.y)[i * config.y_m + j] = value;
  }}
}};
struct test_store_pair : test_store {{
  ARK_FN void pair(int i, int j, float value, float next) const {{
    *reinterpret_cast<gpu_vec2*>(gpu_global(config.y) + i * config.y_m + j) = {{
        ark_bits(value), ark_bits(next)}};
  }}
}};
"""

KERNELS = {
    "tensor": """
GPU_KERNEL(kernel, ARK_THREADS) {{
  if (gpu_thread() >= ARK_CONSUMERS) return;
  ark_matmul_tensor<{t}, {t}, ark_tensor_tile<{tile}>, {a_along_k}, {b_along_k}>(
      test_scratch(), test_a<{t}>(), test_b<{t}>(), config.shape, {prologue}{{}}, {epilogue}{{}});
}}
""",
    "plain": """
GPU_KERNEL(kernel, ARK_THREADS) {{
  if (gpu_thread() >= ARK_CONSUMERS) return;
  ark_matmul_plain<{ta}, {tb}, ark_plain_tile<{tile}>>(
      test_scratch(), test_a<{ta}>(), test_b<{tb}>(), config.shape, {prologue}{{}}, {epilogue}{{}});
}}
""",
    # Several rounds: slots are used again, and the producer runs ahead.
    "stream": """
GPU_KERNEL(kernel, ARK_THREADS) {{
  ark_ring& ring = test_ring();
  if (gpu_thread() == 0) ark_ring_init(ring);
  gpu_barrier(ARK_COMMAND_BARRIER, ARK_THREADS);
  uint32_t slot = 0;
  if (gpu_thread() >= ARK_CONSUMERS) {{
#pragma unroll 1
    for (int64_t round = 0; round < config.rounds; ++round)
      slot = ark_produce_slots(ring, config.segments, uint32_t(config.segment_count), slot).slot;
    ark_drain_slots(ring, slot);
    return;
  }}
#pragma unroll 1
  for (int64_t round = 0; round < config.rounds; ++round) {{
    if (round % 2 == 1) {{
      ark_skip_slots(ring, slot, uint32_t(config.segment_count));
      slot += uint32_t(config.segment_count);
    }} else {{
      slot = ark_matvec_stream<{ta}, {tb}, {m}, {r}>(
          ring, slot, test_scratch(), config.scratch_bytes, test_a<{ta}>(), config.shape,
          config.cut, {prologue}{{}}, {epilogue}{{}});
    }}
  }}
}}
""",
    # The consumers take nothing and leave; slots are full, or on their way.
    "closed": """
GPU_KERNEL(kernel, ARK_THREADS) {{
  ark_ring& ring = test_ring();
  if (gpu_thread() == 0) ark_ring_init(ring);
  gpu_barrier(ARK_COMMAND_BARRIER, ARK_THREADS);
  if (gpu_thread() == 0) ark_ring_close(ring);
  if (gpu_thread() < ARK_CONSUMERS) return;
  const ark_produced produced =
      ark_produce_slots(ring, config.segments, uint32_t(config.segment_count), 0);
  ark_drain_slots(ring, produced.slot);
  if (gpu_lane() == 0) gpu_global(config.y)[0] = produced.is_closed ? 1 : 0;
}}
""",
    "direct": """
GPU_KERNEL(kernel, ARK_THREADS) {{
  if (gpu_thread() >= ARK_CONSUMERS) return;
  ark_matvec_direct<{ta}, {tb}, {m}, {r}>(test_scratch(), config.scratch_bytes, test_a<{ta}>(),
                                      test_b<{tb}>(), config.shape, {prologue}{{}}, {epilogue}{{}});
}}
""",
    "computed": """
GPU_KERNEL(kernel, ARK_THREADS) {{
  if (gpu_thread() >= ARK_CONSUMERS) return;
  const auto operand = [](int k, int j) {{
    const {tb} b = gpu_global(test_b<{tb}>())[k * config.shape.b_k + j * config.shape.b_n];
    return 2.0f * ark_load<{tb}>(b);
  }};
  ark_matvec_computed<{ta}, {m}, {r}>(test_scratch(), config.scratch_bytes, test_a<{ta}>(),
                                  config.shape, operand, {prologue}{{}}, {epilogue}{{}});
}}
""",
}


def kernel_text(kind: str, **parameters: object) -> str:
    """Return the source of one kernel; `prologue` and `epilogue` may be left out."""
    defaults = {"prologue": "ark_matmul_no_prologue", "epilogue": "test_store"}
    body = KERNELS[kind].format(**{**defaults, **parameters})
    folder = resources.files("ark_dist.kernels")
    headers = [(folder / "device" / name).read_text("utf-8") for name in DEVICE_HEADERS]
    base = (folder / "include" / "base.h").read_text("utf-8")
    products = (folder / "ops" / "matmul.cuh").read_text("utf-8")
    return "\n".join(['#include "ark_gpu.h"', base, CONSTANTS, *headers, products, SHARED, body])
