// mbarriers, and asynchronous copies from global to shared memory.

#pragma once

#include "gpu_words.h"

// --- mbarriers ---------------------------------------------------------------------------------

typedef uint64_t gpu_mbarrier;

GPU_FN void gpu_mbarrier_init(gpu_mbarrier* b, uint32_t count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(gpu_shared_address(b)), "r"(count)
               : "memory");
}

// Between the inits and the CTA barrier that lets others see them.
GPU_FN void gpu_mbarrier_fence() {
#if GPU_HAS_BULK
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

GPU_FN void gpu_mbarrier_arrive(gpu_mbarrier* b) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(
                   gpu_shared_address(b))
               : "memory");
}

#if GPU_HAS_BULK
// Arrive once and announce bytes that copies will complete.
GPU_FN void gpu_mbarrier_expect(gpu_mbarrier* b, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   gpu_shared_address(b)),
               "r"(bytes)
               : "memory");
}
#endif

// Whether the phase of that parity is complete; sm_90 waits a little before it says no.
GPU_FN bool gpu_mbarrier_test(gpu_mbarrier* b, uint32_t parity) {
  uint32_t is_done;
#if GPU_HAS_BULK
#define GPU_TEST_WAIT "mbarrier.try_wait"
#else
#define GPU_TEST_WAIT "mbarrier.test_wait"
#endif
  asm volatile("{ .reg .pred p; " GPU_TEST_WAIT
               ".parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(is_done)
               : "r"(gpu_shared_address(b)), "r"(parity)
               : "memory");
#undef GPU_TEST_WAIT
  return is_done != 0;
}

// Wait until the phase of that parity is complete; false if *quit is set.
GPU_FN bool gpu_mbarrier_wait(gpu_mbarrier* b, uint32_t parity, const uint32_t* quit) {
  while (!gpu_mbarrier_test(b, parity)) {
    if (gpu_load_relaxed(quit) != 0) return false;
#if !GPU_HAS_BULK
    gpu_nanosleep(20);
#endif
  }
  return true;
}

// --- asynchronous copies -----------------------------------------------------------------------

// What one fill of a slot counts on its `full` barrier, for gpu_mbarrier_init.
constexpr uint32_t GPU_FILL_ARRIVALS = GPU_HAS_BULK ? 1 : GPU_WARP;

// A fill of one slot: begin, any number of copies, end; each called by the whole warp.
GPU_FN void gpu_fill_begin(gpu_mbarrier* full, uint32_t total_bytes) {
#if GPU_HAS_BULK
  if (gpu_lane() == 0) gpu_mbarrier_expect(full, total_bytes);
  gpu_sync_warp();
#endif
}

// Before the fills of a command: the host may have written their sources since the last one.
GPU_FN void gpu_fill_renew() {
#if GPU_HAS_BULK
  asm volatile("fence.proxy.async.global;" ::: "memory");
#endif
}

// Copy `bytes` from global to shared memory; addresses and bytes are multiples of 16.
GPU_FN void gpu_fill(void* dst, const void* src, uint32_t bytes, gpu_mbarrier* full) {
  const uint32_t to = gpu_shared_address(dst);
  const uint64_t from = gpu_global_address(src);
#if GPU_HAS_BULK
  if (gpu_lane() == 0)
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1], %2, [%3], %4;" ::"r"(to),
        "l"(from), "r"(bytes), "r"(gpu_shared_address(full)), "l"(gpu_evict_first())
        : "memory");
#else
#pragma unroll 4
  for (uint32_t i = gpu_lane() * 16; i < bytes; i += GPU_WARP * 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i), "l"(from + i)
                 : "memory");
#endif
}

GPU_FN void gpu_fill_end(gpu_mbarrier* full) {
#if !GPU_HAS_BULK
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(gpu_shared_address(full))
               : "memory");
#endif
}

// Before a warp that filled slots exits, once their `full` barriers have been waited for.
GPU_FN void gpu_fill_drain() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// 16 bytes from global to shared memory, or zeros where !valid; both addresses aligned.
GPU_FN void gpu_copy16(void* dst, const void* src, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(gpu_shared_address(dst)),
               "l"(gpu_global_address(src)), "r"(valid ? 16 : 0)
               : "memory");
}
GPU_FN void gpu_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Wait until at most N of this thread's committed groups are under way.
template <int N>
GPU_FN void gpu_copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Bring global memory nearer; called by one thread; multiples of 16 bytes.
GPU_FN void gpu_prefetch_l2(const void* src, uint32_t bytes) {
  const uint64_t from = gpu_global_address(src);
#if GPU_HAS_BULK
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#else
  constexpr uint32_t line_bytes = 128;
#pragma unroll 1
  for (uint32_t i = 0; i < bytes; i += line_bytes)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from + i));
#endif
}
