// Small kernels that misuse one primitive each; no GPU should ever run them.

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

GPU_KERNEL(livelock, 32) {
  while (gpu_load_relaxed(word()) == 0) gpu_nanosleep(10);
}
GPU_KERNEL(null_pointer, 32) {
  if (gpu_lane() == 4) *reinterpret_cast<volatile float*>(config.mode) = 1;
}
GPU_KERNEL(recursion, 32) {
  volatile char big[200 << 10];
  for (uint32_t i = sizeof(big); i > 0; i -= 512) big[i - 1] = 1;
  gpu_sync_warp();
}
GPU_KERNEL(stale_load, 32) {
  out<float>()[32 + gpu_lane()] = gpu_load_readonly(out<float>() + gpu_lane());
}
GPU_KERNEL(shared_as_global, 32) { gpu_global(gpu_smem()); }
GPU_KERNEL(atomic_on_shared, 32) {
  gpu_add(reinterpret_cast<uint32_t*>(gpu_smem()), uint32_t(1));
}
GPU_KERNEL(others_stack, 32) {
  float local = 1;
  if (gpu_lane() == 0) out<uint64_t>()[0] = reinterpret_cast<uint64_t>(&local);
  gpu_sync_warp();
  if (gpu_lane() == 1) *reinterpret_cast<volatile float*>(out<uint64_t>()[0]) = 2;
  gpu_sync_warp();
}
GPU_KERNEL(early_exit, 32) {
  if (gpu_lane() == 17) return;
  out<uint32_t>()[gpu_lane()] = gpu_ballot(true);
}
GPU_KERNEL(two_collectives, 32) {
  if (gpu_lane() < 16)
    gpu_sync_warp();
  else
    gpu_ballot(true);
}
GPU_KERNEL(far_lane, 32) { out<int>()[gpu_lane()] = gpu_shuffle(1, 32); }
GPU_KERNEL(barrier_id, 32) { gpu_barrier(16, 32); }
GPU_KERNEL(barrier_twice, 64) {
  if (gpu_warp() == 0) gpu_barrier_arrive(2, 64);
  if (gpu_warp() == 0) gpu_barrier_arrive(2, 64);
}
GPU_KERNEL(overwritten, 32) {
  gpu_mbarrier* b = reinterpret_cast<gpu_mbarrier*>(gpu_smem());
  if (gpu_lane() == 0) {
    gpu_mbarrier_init(b, 1);
    gpu_mbarrier_fence();
    *b = 0;
    gpu_mbarrier_arrive(b);
  }
}
GPU_KERNEL(exit_copying, 32) {
  gpu_copy16(gpu_smem() + gpu_lane() * 16, in<char>() + gpu_lane() * 16, true);
}
GPU_KERNEL(wide_load, 32) {
  out<gpu_vec4>()[0] = *reinterpret_cast<const gpu_vec4*>(in<char>() + 4);
}
GPU_KERNEL(beyond, 32) { out<float>()[gpu_lane()] = in<float>()[config.mode + gpu_lane()]; }
