// Words that threads of several CTAs, GPUs and the host meet at: ordered loads and stores,
// atomics, fences, and bounded waits.

#pragma once

#include "gpu_memory.h"

template <class T>
struct gpu_identity {
  typedef T type;
};
// A parameter that takes no part in deducing T.
template <class T>
using gpu_same = typename gpu_identity<T>::type;

// Words of 4 or 8 bytes, in global memory (gpu_global) or in that of the CTA (gpu_smem): the
// compiler follows a pointer to where it came from and keeps one of the two instructions.
#define GPU_LOAD_FROM(space, order, address)                                                \
  if constexpr (sizeof(T) == 4) {                                                           \
    uint32_t v;                                                                             \
    asm volatile("ld." order "." space ".u32 %0, [%1];" : "=r"(v) : address : "memory");    \
    return __builtin_bit_cast(T, v);                                                        \
  } else {                                                                                  \
    uint64_t v;                                                                             \
    asm volatile("ld." order "." space ".u64 %0, [%1];" : "=l"(v) : address : "memory");    \
    return __builtin_bit_cast(T, v);                                                        \
  }
#define GPU_LOAD(name, order)                                                               \
  template <class T>                                                                        \
  GPU_FN T name(const T* word) {                                                            \
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "4 or 8 bytes");                        \
    if (!__isGlobal(word)) {                                                                \
      GPU_LOAD_FROM("shared", order, "r"(gpu_shared_address(word)))                         \
    } else {                                                                                \
      GPU_LOAD_FROM("global", order, "l"(gpu_global_address(word)))                         \
    }                                                                                       \
  }
#define GPU_STORE_TO(space, order, address)                                                 \
  if constexpr (sizeof(T) == 4) {                                                           \
    const uint32_t v = __builtin_bit_cast(uint32_t, T(value));                              \
    asm volatile("st." order "." space ".u32 [%0], %1;" ::address, "r"(v) : "memory");      \
  } else {                                                                                  \
    const uint64_t v = __builtin_bit_cast(uint64_t, T(value));                              \
    asm volatile("st." order "." space ".u64 [%0], %1;" ::address, "l"(v) : "memory");      \
  }
#define GPU_STORE(name, order)                                                              \
  template <class T>                                                                        \
  GPU_FN void name(T* word, gpu_same<T> value) {                                            \
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "4 or 8 bytes");                        \
    if (!__isGlobal(word)) {                                                                \
      GPU_STORE_TO("shared", order, "r"(gpu_shared_address(word)))                          \
    } else {                                                                                \
      GPU_STORE_TO("global", order, "l"(gpu_global_address(word)))                          \
    }                                                                                       \
  }
// Atomics are on global memory; both acquire and release, and return what was there before.
#define GPU_ATOMIC(name, op, unsigned_type)                                             \
  template <class T>                                                                    \
  GPU_FN T name(T* word, gpu_same<T> value) {                                           \
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "4 or 8 bytes");                    \
    const uint64_t p = gpu_global_address(word);                                        \
    if constexpr (sizeof(T) == 4) {                                                     \
      uint32_t v = __builtin_bit_cast(uint32_t, value);                                 \
      asm volatile("atom.acq_rel.gpu.global." op "." unsigned_type "32 %0, [%1], %0;"   \
                   : "+r"(v)                                                            \
                   : "l"(p)                                                             \
                   : "memory");                                                         \
      return __builtin_bit_cast(T, v);                                                  \
    } else {                                                                            \
      uint64_t v = __builtin_bit_cast(uint64_t, value);                                 \
      asm volatile("atom.acq_rel.gpu.global." op "." unsigned_type "64 %0, [%1], %0;"   \
                   : "+l"(v)                                                            \
                   : "l"(p)                                                             \
                   : "memory");                                                         \
      return __builtin_bit_cast(T, v);                                                  \
    }                                                                                   \
  }

GPU_LOAD(gpu_load_relaxed, "relaxed.gpu")
GPU_LOAD(gpu_load_acquire, "acquire.gpu")
GPU_LOAD(gpu_load_relaxed_system, "relaxed.sys")
GPU_LOAD(gpu_load_acquire_system, "acquire.sys")
GPU_STORE(gpu_store_relaxed, "relaxed.gpu")
GPU_STORE(gpu_store_release, "release.gpu")
GPU_STORE(gpu_store_relaxed_system, "relaxed.sys")
GPU_STORE(gpu_store_release_system, "release.sys")
GPU_ATOMIC(gpu_exchange, "exch", "b")
GPU_ATOMIC(gpu_add, "add", "u")

#undef GPU_LOAD
#undef GPU_LOAD_FROM
#undef GPU_STORE
#undef GPU_STORE_TO
#undef GPU_ATOMIC

// Store `value` where `expected` is; returns what was there before.
template <class T>
GPU_FN T gpu_compare_exchange(T* word, gpu_same<T> expected, gpu_same<T> value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "4 or 8 bytes");
  const uint64_t p = gpu_global_address(word);
  if constexpr (sizeof(T) == 4) {
    uint32_t v = __builtin_bit_cast(uint32_t, value);
    const uint32_t e = __builtin_bit_cast(uint32_t, expected);
    asm volatile("atom.acq_rel.gpu.global.cas.b32 %0, [%1], %2, %0;"
                 : "+r"(v)
                 : "l"(p), "r"(e)
                 : "memory");
    return __builtin_bit_cast(T, v);
  } else {
    uint64_t v = __builtin_bit_cast(uint64_t, value);
    const uint64_t e = __builtin_bit_cast(uint64_t, expected);
    asm volatile("atom.acq_rel.gpu.global.cas.b64 %0, [%1], %2, %0;"
                 : "+l"(v)
                 : "l"(p), "l"(e)
                 : "memory");
    return __builtin_bit_cast(T, v);
  }
}

GPU_FN void gpu_add_release(uint64_t* word, uint64_t value) {
  asm volatile("red.release.gpu.global.add.u64 [%0], %1;" ::"l"(gpu_global_address(word)),
               "l"(value)
               : "memory");
}
GPU_FN void gpu_add_release_system(uint64_t* word, uint64_t value) {
  asm volatile("red.release.sys.global.add.u64 [%0], %1;" ::"l"(gpu_global_address(word)),
               "l"(value)
               : "memory");
}

GPU_FN void gpu_fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
GPU_FN void gpu_fence_system() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }

// --- time and waiting --------------------------------------------------------------------------

GPU_FN void gpu_nanosleep(uint32_t ns) { asm volatile("nanosleep.u32 %0;" ::"r"(ns)); }
GPU_FN uint64_t gpu_clock_ns() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns)::"memory");
  return ns;
}

// A signal between multiprocessors takes a microsecond: a wait sleeps only after so many polls,
// of a third of that each, and longer and longer.
constexpr uint32_t GPU_EAGER_POLLS = 64, GPU_POLL_NS = 20, GPU_POLL_MAX_NS = 256;
// The same for idle waits, which begin to sleep after some milliseconds.
constexpr uint32_t GPU_IDLE_POLLS = 8192, GPU_IDLE_NS = 1000;
// The clock and the abort word are slow to read: look once in so many polls.
constexpr uint32_t GPU_POLLS_PER_LOOK = 16;

template <bool IS_SYSTEM>
GPU_FN bool gpu_has_come(const uint64_t* word, int64_t want) {
  const uint64_t have = IS_SYSTEM ? gpu_load_relaxed_system(word) : gpu_load_relaxed(word);
  return int64_t(have) >= want;
}

// See what was written before the word that a wait has met.
template <bool IS_SYSTEM>
GPU_FN void gpu_acquire_fence() {
  if constexpr (IS_SYSTEM)
    gpu_fence_system();
  else
    gpu_fence();
}

// One lane waits until int64_t(*word) >= want and sees what was written before: 1 done,
// 0 *abort is set, -1 not within limit_ns.
template <bool IS_SYSTEM>
GPU_FN int gpu_poll(const uint64_t* word, int64_t want, const uint32_t* abort,
                    uint64_t limit_ns) {
  uint64_t start_ns = 0;
  uint32_t sleep_ns = GPU_POLL_NS;
#pragma unroll 1
  for (uint32_t polls = 1; !gpu_has_come<IS_SYSTEM>(word, want); ++polls) {
    if (polls % GPU_POLLS_PER_LOOK == 0) {
      if (gpu_load_relaxed_system(abort) != 0) return 0;
      const uint64_t now_ns = gpu_clock_ns();
      if (start_ns == 0) start_ns = now_ns;
      if (now_ns - start_ns >= limit_ns) return -1;
    }
    if (polls < GPU_EAGER_POLLS) continue;
    gpu_nanosleep(sleep_ns);
    sleep_ns = sleep_ns < GPU_POLL_MAX_NS ? 2 * sleep_ns : sleep_ns;
  }
  gpu_acquire_fence<IS_SYSTEM>();
  return 1;
}

GPU_FN int gpu_wait(const uint64_t* word, int64_t want, const uint32_t* abort,
                    uint64_t limit_ns) {
  return gpu_poll<false>(gpu_global(word), want, gpu_global(abort), limit_ns);
}
// The same for words that peers or the host write.
GPU_FN int gpu_wait_system(const uint64_t* word, int64_t want, const uint32_t* abort,
                           uint64_t limit_ns) {
  return gpu_poll<true>(gpu_global(word), want, gpu_global(abort), limit_ns);
}

// Idle waits have no limit.
template <bool IS_SYSTEM>
GPU_FN int gpu_poll_idle(const uint64_t* word, int64_t want, const uint32_t* abort) {
  static_assert(GPU_IDLE_POLLS % GPU_POLLS_PER_LOOK == 0, "where the count stays, it looks");
#pragma unroll 1
  for (uint32_t polls = 1; !gpu_has_come<IS_SYSTEM>(word, want); polls += polls < GPU_IDLE_POLLS) {
    if (polls % GPU_POLLS_PER_LOOK == 0 && gpu_load_relaxed_system(abort) != 0) return 0;
    gpu_nanosleep(polls < GPU_IDLE_POLLS ? GPU_POLL_NS : GPU_IDLE_NS);
  }
  gpu_acquire_fence<IS_SYSTEM>();
  return 1;
}

// The idle wait for the host's next command,
GPU_FN int gpu_wait_host(const uint64_t* word, int64_t want, const uint32_t* abort) {
  return gpu_poll_idle<true>(gpu_global(word), want, gpu_global(abort));
}
// and for the CTA that passes it on.
GPU_FN int gpu_wait_idle(const uint64_t* word, int64_t want, const uint32_t* abort) {
  return gpu_poll_idle<false>(gpu_global(word), want, gpu_global(abort));
}
