// Small kernels that use one primitive each; BUG_... and some modes plant one bug.

#include "ark_gpu.h"

struct Config {
  uint64_t in, out, word, flag;
  uint64_t mode;
};
GPU_CONSTANT Config config;

template <class T>
GPU_FN const T* in() {
  return gpu_global(reinterpret_cast<const T*>(config.in));
}
template <class T>
GPU_FN T* out() {
  return gpu_global(reinterpret_cast<T*>(config.out));
}
GPU_FN uint64_t* word() { return gpu_global(reinterpret_cast<uint64_t*>(config.word)); }
GPU_FN uint32_t* flag() { return gpu_global(reinterpret_cast<uint32_t*>(config.flag)); }

struct Add {
  template <class T>
  GPU_FN T operator()(T a, T b) const {
    return a + b;
  }
};

// --- tensor cores: in holds A[16, 16], B[16, 8] and its transpose, out C[16, 8] -----------------

GPU_KERNEL(matrices, 32) {
  const uint32_t lane = gpu_lane();
  uint16_t* smem = reinterpret_cast<uint16_t*>(gpu_smem());
  constexpr uint32_t elements = 256 + 128 + 128 + 256;
  for (uint32_t i = lane; i < elements; i += 32) smem[i] = in<uint16_t>()[i];
  gpu_sync_warp();
  const uint16_t* a_rows = smem;
  const uint16_t* b_rows = smem + 256;
  const uint16_t* b_columns = smem + 256 + 128;
  const uint16_t* a_columns = smem + 256 + 128 + 128;
  uint32_t a[4], b[2];
  if (config.mode & 1)  // A is stored by columns: matrices of 8 columns, transposed
    gpu_ldmatrix4_trans(a, a_columns + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8);
  else
    gpu_ldmatrix4(a, a_rows + lane % 16 * 16 + lane / 16 * 8);
  if (config.mode & 2)
    gpu_ldmatrix2_trans(b, b_rows + lane % 16 * 8);
  else
    gpu_ldmatrix2(b, b_columns + lane % 8 * 16 + lane / 8 % 2 * 8);
  const uint32_t g = lane / 4, t = lane % 4;
  float* c = out<float>();
  float sums[4];
  for (uint32_t i = 0; i < 4; ++i) sums[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  if (config.mode & 4)
    gpu_mma_fp16(sums, a, b);
  else
    gpu_mma_bf16(sums, a, b);
  for (uint32_t i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}

// --- warps --------------------------------------------------------------------------------------

// out[lane] = {sum of in, in[lane ^ 5], in[(lane + 3) % 32], ballot of in > 0, sum of 64-bit ids}
GPU_KERNEL(warps, 64) {
  const uint32_t lane = gpu_lane();
  const float x = in<float>()[gpu_thread()];
  float* to = out<float>() + gpu_thread() * 5;
  to[0] = gpu_warp_reduce(x, Add());
  to[1] = gpu_shuffle_xor(x, 5);
  to[2] = gpu_shuffle(x, int(lane + 3) % 32);
  to[3] = __builtin_bit_cast(float, gpu_ballot(x > 0));
  to[4] = float(gpu_warp_reduce(uint64_t(gpu_thread()) << 33, Add()) >> 33);
}

// --- conversions: out[i] and out[n + i] are what in[i] becomes ----------------------------------

GPU_KERNEL(to_halves, 32) {
  const float* from = in<float>();
  uint16_t* to = out<uint16_t>();
  const uint64_t n = config.mode;
  for (uint64_t i = 2 * gpu_lane(); i < n; i += 64) {
    const uint32_t bf16 = gpu_pack_bf16(from[i], from[i + 1]);
    const uint32_t fp16 = gpu_pack_fp16(from[i], from[i + 1]);
    to[i] = uint16_t(bf16);
    to[i + 1] = uint16_t(bf16 >> 16);
    to[n + i] = uint16_t(fp16);
    to[n + i + 1] = uint16_t(fp16 >> 16);
  }
}

GPU_KERNEL(from_halves, 32) {
  const uint16_t* from = in<uint16_t>();
  float* to = out<float>();
  const uint64_t n = config.mode;
  for (uint64_t i = gpu_lane(); i < n; i += 32) {
    to[i] = gpu_bf16_to_float(from[i]);
    to[n + i] = gpu_fp16_to_float(from[i]);
  }
}

// --- copies: 4 groups of 16 bytes per thread, the odd threads' last one not valid ---------------

GPU_KERNEL(copies, 64) {
  const uint32_t thread = gpu_thread();
  char* mine = gpu_smem() + thread * 64;
  for (uint32_t i = 0; i < 4; ++i) {
    gpu_copy16(mine + i * 16, in<char>() + thread * 64 + i * 16, i < 3 || thread % 2 == 0);
    gpu_copy_commit();
  }
  gpu_copy_wait<2>();
  const gpu_vec4* from = reinterpret_cast<const gpu_vec4*>(mine);
  gpu_vec4* to = reinterpret_cast<gpu_vec4*>(out<char>() + thread * 64);
  to[0] = from[0];
  to[1] = from[1];
#if defined(BUG_COPY_WAIT)
  to[2] = from[2];
#endif
  gpu_copy_wait<0>();
  to[2] = from[2];
#if !defined(BUG_COPY_BARRIER)
  gpu_barrier(0, 64);
#endif
  // The neighbour's.
  out<gpu_vec4>()[(thread ^ 1) * 4 + 3] =
      reinterpret_cast<const gpu_vec4*>(gpu_smem() + (thread ^ 1) * 64)[3];
}

// --- words --------------------------------------------------------------------------------------

// All CTAs count; the one that comes last writes what it saw.
GPU_KERNEL(words, 32) {
  if (gpu_lane() == 0) {
    const uint64_t before = gpu_add(word(), 1);
    uint32_t seen = gpu_load_acquire(flag());
    while (gpu_compare_exchange(flag(), seen, seen + 2) != seen) seen = gpu_load_relaxed(flag());
    if (before + 1 == gpu_grid()) out<uint64_t>()[0] = gpu_exchange(word(), uint64_t(77));
  }
}

// A message by fences and relaxed words: CTA 0 to CTA 1.
GPU_KERNEL(fences, 32) {
  if (gpu_lane() != 0) return;
  if (gpu_block() == 0) {
    out<float>()[0] = 42;
#if !defined(BUG_NO_FENCE)
    gpu_fence();
#endif
    gpu_store_relaxed(word(), 1);
  } else {
    while (gpu_load_relaxed(word()) == 0) gpu_nanosleep(50);
#if !defined(BUG_NO_FENCE_AFTER)
    gpu_fence();
#endif
    out<float>()[1] = out<float>()[0];
  }
}

// Warp 0 waits in barrier 3 for warp 1, which only arrives.
GPU_KERNEL(arrives, 64) {
  float* smem = reinterpret_cast<float*>(gpu_smem());
  if (gpu_warp() == 1) {
    smem[gpu_lane()] = float(gpu_lane());
    gpu_barrier_arrive(3, 64);
#if defined(BUG_AFTER_ARRIVE)
    smem[gpu_lane()] = 7;
#endif
  } else {
    gpu_barrier(3, 64);
    out<float>()[gpu_lane()] = smem[31 - gpu_lane()];
  }
}

// Commands from the host: in each one another CTA adds 1 to out[0], without a word on the device.
GPU_KERNEL(commands, 32) {
  if (gpu_lane() != 0) return;
  for (int64_t command = 0;; ++command) {
    if (gpu_wait_host(word(), command + 1, flag()) != 1) return;
    if (command % gpu_grid() != gpu_block()) continue;
    out<float>()[0] += 1;
#if defined(BUG_NOT_TOLD)
    gpu_add_release(reinterpret_cast<uint64_t*>(out<char>() + 8), 1);
#else
    gpu_add_release_system(reinterpret_cast<uint64_t*>(out<char>() + 8), 1);
#endif
  }
}

// --- memory that lanes share --------------------------------------------------------------------

// Each lane writes a byte of its own, or (mode 1) the byte of a neighbour too.
GPU_KERNEL(bytes, 32) {
  uint8_t* to = out<uint8_t>();
  to[gpu_lane()] = uint8_t(gpu_lane());
  if (config.mode == 1 && gpu_lane() == 5) to[6] = 0;
  gpu_sync_warp();
  if (gpu_lane() == 0) *reinterpret_cast<gpu_vec2*>(to) = *reinterpret_cast<gpu_vec2*>(to + 8);
  gpu_sync_warp();
  if (gpu_lane() == 1) to[0] = to[1];
}

// A plain flag in shared memory, which nothing orders.
GPU_KERNEL(plain_flag, 64) {
  uint32_t* shared_flag = reinterpret_cast<uint32_t*>(gpu_smem());
  if (gpu_thread() == 0) *shared_flag = 0;
  gpu_barrier(0, 64);
  if (gpu_thread() == 0) *shared_flag = 1;
  if (gpu_thread() == 32) out<uint32_t>()[0] = gpu_load_relaxed(shared_flag);
}

// Task 3 copies in to out, `mode` elements too far.
GPU_KERNEL(task, 32) {
  gpu_task_begin(2, 3);
  const uint64_t i = gpu_lane() / 4 * 8 + gpu_lane() % 4 + config.mode;
  out<float>()[i] = in<float>()[i];
  gpu_task_end();
}
