// Device primitives on a CPU: the same names as ../gpu/ark_gpu.h, for generated source that runs
// in the test suite. What is slow or has state is in the runtime (runtime.h), compiled apart.

#pragma once

#include <stdint.h>

#define ARK_GPU 1
#define ARK_EMULATED 1
#define GPU_FN inline __attribute__((always_inline))
#define GPU_PART __attribute__((noinline))
// A task function: apart, so that programs of hundreds compile in time.
#define GPU_TASK GPU_PART
#define GPU_EXPORT __attribute__((visibility("default"), used))
#define GPU_KERNEL(name, threads)                                \
  extern "C" GPU_EXPORT const uint32_t name##_threads = threads; \
  extern "C" GPU_EXPORT void name()
// At namespace scope, so that the host finds the plain name.
#define GPU_CONSTANT GPU_EXPORT

// 80: cp.async by every lane; 90: bulk copies by one.
#ifndef GPU_EMULATED_ARCH
#define GPU_EMULATED_ARCH 90
#endif
#define GPU_HAS_BULK (GPU_EMULATED_ARCH >= 90)
#define GPU_HAS_SETMAXNREG (GPU_EMULATED_ARCH >= 90)
#define GPU_HAS_WGMMA (GPU_EMULATED_ARCH >= 90)

struct alignas(16) gpu_vec4 {
  uint32_t x, y, z, w;
};
struct alignas(8) gpu_vec2 {
  uint32_t x, y;
};

constexpr uint32_t GPU_WARP = 32;
constexpr uint32_t GPU_ALL_LANES = 0xffffffff;

// --- the runtime --------------------------------------------------------------------------------

// EMU_SYSTEM: the host takes part.
enum emu_order : uint32_t {
  EMU_RELAXED = 0,
  EMU_ACQUIRE = 1,
  EMU_RELEASE = 2,
  EMU_ACQ_REL = 3,
  EMU_SYSTEM = 4,
};
enum emu_collective : uint32_t { EMU_SYNC, EMU_SHUFFLE, EMU_BALLOT, EMU_REDUCE };
enum emu_atomic : uint32_t { EMU_ADD, EMU_EXCHANGE, EMU_COMPARE_EXCHANGE };
enum emu_space : uint32_t { EMU_GLOBAL, EMU_READONLY };

extern "C" {
// Constant over the life of a fiber, which is what the attribute promises.
__attribute__((const)) uint32_t emu_thread();
__attribute__((const)) uint32_t emu_block();
__attribute__((const)) uint32_t emu_grid();
__attribute__((const)) char* emu_smem();

void emu_check(const void* p, uint32_t bytes, uint32_t space);
void emu_sync_warp();
uint64_t emu_shuffle(uint64_t bits, uint32_t lane, uint32_t kind);
void emu_all_lanes(uint64_t bits, uint64_t* all, uint32_t kind);
void emu_barrier(int id, int threads, bool waits);
void emu_ldmatrix(uint32_t* r, const void* row, uint32_t count, bool trans);
void emu_mma(float* c, const uint32_t* a, const uint32_t* b, bool is_bf16);
uint32_t emu_shared_address(const void* p);
void emu_wgmma(float* c, uint32_t columns, uint64_t a, uint64_t b, bool is_bf16);
void emu_wgmma_fence();
void emu_wgmma_commit();
void emu_wgmma_wait(uint32_t groups);

void emu_mbarrier_init(uint64_t* b, uint32_t count);
void emu_mbarrier_fence();
void emu_mbarrier_arrive(uint64_t* b);
void emu_mbarrier_expect(uint64_t* b, uint32_t bytes);
bool emu_mbarrier_test(uint64_t* b, uint32_t parity);
bool emu_mbarrier_wait(uint64_t* b, uint32_t parity, const uint32_t* quit);
void emu_fill_bulk(void* dst, const void* src, uint32_t bytes, uint64_t* full);
void emu_fill_lanes(void* dst, const void* src, uint32_t bytes);
void emu_fill_arrive(uint64_t* full);
void emu_fill_drain();
void emu_copy16(void* dst, const void* src, bool valid);
void emu_copy_commit();
void emu_copy_wait(uint32_t groups);
void emu_prefetch(const void* src, uint32_t bytes);

uint64_t emu_load(const void* word, uint32_t bytes, uint32_t order);
void emu_store(void* word, uint64_t value, uint32_t bytes, uint32_t order);
uint64_t emu_update(void* word, uint64_t value, uint64_t expected, uint32_t bytes, uint32_t op,
                    uint32_t order);
void emu_fence();
int emu_wait(const uint64_t* word, int64_t want, const uint32_t* abort, uint64_t limit_ns,
             uint32_t order);
int emu_wait_host(const uint64_t* word, int64_t want, const uint32_t* abort);
void emu_nanosleep(uint32_t ns);
uint64_t emu_clock_ns();
void emu_task_begin(uint32_t method, uint32_t task);
void emu_task_end();
}

template <class T>
struct gpu_identity {
  typedef T type;
};
// A parameter that takes no part in deducing T.
template <class T>
using gpu_same = typename gpu_identity<T>::type;

// The bits of a 4- or 8-byte value in a 64-bit word, and back.
template <class T>
GPU_FN uint64_t emu_bits(T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "4 or 8 bytes");
  if constexpr (sizeof(T) == 4)
    return __builtin_bit_cast(uint32_t, value);
  else
    return __builtin_bit_cast(uint64_t, value);
}
template <class T>
GPU_FN T emu_value(uint64_t bits) {
  if constexpr (sizeof(T) == 4)
    return __builtin_bit_cast(T, uint32_t(bits));
  else
    return __builtin_bit_cast(T, bits);
}

// --- memory and ids -----------------------------------------------------------------------------

GPU_FN char* gpu_smem() { return emu_smem(); }
GPU_FN uint32_t gpu_shared_address(const void* p) { return emu_shared_address(p); }
template <class T>
GPU_FN T* gpu_global(T* p) {
  emu_check(p, 0, EMU_GLOBAL);
  return p;
}
template <class T>
GPU_FN T* gpu_global_pointer(uint64_t address) {
  return gpu_global(reinterpret_cast<T*>(address));
}
GPU_FN uint32_t gpu_thread() { return emu_thread(); }
GPU_FN uint32_t gpu_kernel_thread() { return emu_thread(); }
GPU_FN uint32_t gpu_block() { return emu_block(); }
GPU_FN uint32_t gpu_grid() { return emu_grid(); }
GPU_FN uint32_t gpu_lane() { return emu_thread() % GPU_WARP; }
GPU_FN uint32_t gpu_warp() { return emu_thread() / GPU_WARP; }

template <class V>
GPU_FN V gpu_load_readonly(const V* from) {
  static_assert(sizeof(V) == 1 || sizeof(V) == 2 || sizeof(V) == 4 || sizeof(V) == 8 ||
                    sizeof(V) == 16,
                "1, 2, 4, 8 or 16 bytes");
  emu_check(from, sizeof(V), EMU_READONLY);
  return *from;
}
template <class V>
GPU_FN V gpu_load_streaming(const V* from) {
  return gpu_load_readonly(from);
}
template <class V>
GPU_FN V gpu_load_fixed(const V* from) {
  static_assert(sizeof(V) == 8, "8 bytes");
  return *from;
}
template <class T>
GPU_FN T* gpu_anew(T* p) {
  return p;
}

// --- warp and CTA -------------------------------------------------------------------------------

GPU_FN void gpu_sync_warp() { emu_sync_warp(); }
template <class T>
GPU_FN T gpu_shuffle_xor(T value, int mask) {
  return emu_value<T>(emu_shuffle(emu_bits(value), gpu_lane() ^ uint32_t(mask), EMU_SHUFFLE));
}
template <class T>
GPU_FN T gpu_shuffle(T value, int lane) {
  return emu_value<T>(emu_shuffle(emu_bits(value), uint32_t(lane), EMU_SHUFFLE));
}
GPU_FN uint32_t gpu_ballot(bool value) {
  return uint32_t(emu_shuffle(value, 0, EMU_BALLOT));
}
// The tree of a butterfly over masks 16, 8, 4, 2, 1, as this lane sees it.
template <class T, class Op>
GPU_FN T gpu_warp_reduce(T value, Op op) {
  uint64_t all[GPU_WARP];
  T tree[GPU_WARP];
  emu_all_lanes(emu_bits(value), all, EMU_REDUCE);
  for (uint32_t i = 0; i < GPU_WARP; ++i) tree[i] = emu_value<T>(all[gpu_lane() ^ i]);
  for (uint32_t mask = 16; mask > 0; mask /= 2)
    for (uint32_t i = 0; i < mask; ++i) tree[i] = op(tree[i], tree[i ^ mask]);
  return tree[0];
}
GPU_FN void gpu_barrier(int id, int threads) { emu_barrier(id, threads, true); }
GPU_FN void gpu_barrier_arrive(int id, int threads) { emu_barrier(id, threads, false); }

// --- mbarriers and asynchronous copies ----------------------------------------------------------

typedef uint64_t gpu_mbarrier;

constexpr uint32_t GPU_FILL_ARRIVALS = GPU_HAS_BULK ? 1 : GPU_WARP;

GPU_FN void gpu_mbarrier_init(gpu_mbarrier* b, uint32_t count) { emu_mbarrier_init(b, count); }
GPU_FN void gpu_mbarrier_fence() { emu_mbarrier_fence(); }
GPU_FN void gpu_mbarrier_arrive(gpu_mbarrier* b) { emu_mbarrier_arrive(b); }
#if GPU_HAS_BULK
GPU_FN void gpu_mbarrier_expect(gpu_mbarrier* b, uint32_t bytes) { emu_mbarrier_expect(b, bytes); }
#endif
GPU_FN bool gpu_mbarrier_test(gpu_mbarrier* b, uint32_t parity) {
  return emu_mbarrier_test(b, parity);
}
GPU_FN bool gpu_mbarrier_wait(gpu_mbarrier* b, uint32_t parity, const uint32_t* quit) {
  return emu_mbarrier_wait(b, parity, quit);
}

GPU_FN void gpu_fill_begin([[maybe_unused]] gpu_mbarrier* full,
                           [[maybe_unused]] uint32_t total_bytes) {
#if GPU_HAS_BULK
  if (gpu_lane() == 0) emu_mbarrier_expect(full, total_bytes);
  emu_sync_warp();
#endif
}
GPU_FN void gpu_fill(void* dst, const void* src, uint32_t bytes,
                     [[maybe_unused]] gpu_mbarrier* full) {
#if GPU_HAS_BULK
  emu_fill_bulk(dst, src, bytes, full);
#else
  emu_fill_lanes(dst, src, bytes);
#endif
}
GPU_FN void gpu_fill_end([[maybe_unused]] gpu_mbarrier* full) {
#if !GPU_HAS_BULK
  emu_fill_arrive(full);
#endif
}
GPU_FN void gpu_fill_renew() {}
GPU_FN void gpu_fill_drain() { emu_fill_drain(); }
GPU_FN void gpu_copy16(void* dst, const void* src, bool valid) { emu_copy16(dst, src, valid); }
GPU_FN void gpu_copy_commit() { emu_copy_commit(); }
template <int N>
GPU_FN void gpu_copy_wait() {
  emu_copy_wait(N);
}
GPU_FN void gpu_prefetch_l2(const void* src, uint32_t bytes) { emu_prefetch(src, bytes); }

// --- tensor cores -------------------------------------------------------------------------------

GPU_FN void gpu_ldmatrix4(uint32_t (&r)[4], const void* row) { emu_ldmatrix(r, row, 4, false); }
GPU_FN void gpu_ldmatrix4_trans(uint32_t (&r)[4], const void* row) {
  emu_ldmatrix(r, row, 4, true);
}
GPU_FN void gpu_ldmatrix2(uint32_t (&r)[2], const void* row) { emu_ldmatrix(r, row, 2, false); }
GPU_FN void gpu_ldmatrix2_trans(uint32_t (&r)[2], const void* row) {
  emu_ldmatrix(r, row, 2, true);
}
GPU_FN void gpu_mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emu_mma(c, a, b, true);
}
GPU_FN void gpu_mma_fp16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emu_mma(c, a, b, false);
}

#if GPU_HAS_WGMMA
GPU_FN void gpu_wgmma_publish() {}
GPU_FN void gpu_wgmma_fence() { emu_wgmma_fence(); }
GPU_FN void gpu_wgmma_commit() { emu_wgmma_commit(); }
template <int N>
GPU_FN void gpu_wgmma_wait() {
  emu_wgmma_wait(N);
}
template <int COUNT>
GPU_FN void gpu_wgmma_hold(float (&)[COUNT][4]) {}
template <int N>
GPU_FN void gpu_wgmma_bf16(float (&c)[N / 8][4], uint64_t a, uint64_t b) {
  emu_wgmma(c[0], N, a, b, true);
}
template <int N>
GPU_FN void gpu_wgmma_fp16(float (&c)[N / 8][4], uint64_t a, uint64_t b) {
  emu_wgmma(c[0], N, a, b, false);
}
#endif

// --- words that CTAs, GPUs and the host meet at -------------------------------------------------

#define GPU_LOAD(name, order)                                \
  template <class T>                                         \
  GPU_FN T name(const T* word) {                             \
    return emu_value<T>(emu_load(word, sizeof(T), order));   \
  }
#define GPU_STORE(name, order)                               \
  template <class T>                                         \
  GPU_FN void name(T* word, gpu_same<T> value) {             \
    emu_store(word, emu_bits<T>(value), sizeof(T), order);   \
  }
#define GPU_ATOMIC(name, op)                                 \
  template <class T>                                         \
  GPU_FN T name(T* word, gpu_same<T> value) {                \
    return emu_value<T>(                                     \
        emu_update(word, emu_bits<T>(value), 0, sizeof(T), op, EMU_ACQ_REL)); \
  }
GPU_LOAD(gpu_load_relaxed, EMU_RELAXED)
GPU_LOAD(gpu_load_acquire, EMU_ACQUIRE)
GPU_LOAD(gpu_load_relaxed_system, EMU_RELAXED | EMU_SYSTEM)
GPU_LOAD(gpu_load_acquire_system, EMU_ACQUIRE | EMU_SYSTEM)
GPU_STORE(gpu_store_relaxed, EMU_RELAXED)
GPU_STORE(gpu_store_release, EMU_RELEASE)
GPU_STORE(gpu_store_relaxed_system, EMU_RELAXED | EMU_SYSTEM)
GPU_STORE(gpu_store_release_system, EMU_RELEASE | EMU_SYSTEM)
GPU_ATOMIC(gpu_exchange, EMU_EXCHANGE)
GPU_ATOMIC(gpu_add, EMU_ADD)
#undef GPU_LOAD
#undef GPU_STORE
#undef GPU_ATOMIC

template <class T>
GPU_FN T gpu_compare_exchange(T* word, gpu_same<T> expected, gpu_same<T> value) {
  return emu_value<T>(emu_update(word, emu_bits<T>(value), emu_bits<T>(expected), sizeof(T),
                                 EMU_COMPARE_EXCHANGE, EMU_ACQ_REL));
}
GPU_FN void gpu_add_release(uint64_t* word, uint64_t value) {
  emu_update(word, value, 0, sizeof(*word), EMU_ADD, EMU_RELEASE);
}
GPU_FN void gpu_add_release_system(uint64_t* word, uint64_t value) {
  emu_update(word, value, 0, sizeof(*word), EMU_ADD, EMU_RELEASE | EMU_SYSTEM);
}
GPU_FN void gpu_fence() { emu_fence(); }
GPU_FN void gpu_fence_system() { emu_fence(); }

GPU_FN int gpu_wait(const uint64_t* word, int64_t want, const uint32_t* abort,
                    uint64_t limit_ns) {
  return emu_wait(word, want, abort, limit_ns, EMU_ACQUIRE);
}
GPU_FN int gpu_wait_system(const uint64_t* word, int64_t want, const uint32_t* abort,
                           uint64_t limit_ns) {
  return emu_wait(word, want, abort, limit_ns, EMU_ACQUIRE | EMU_SYSTEM);
}
GPU_FN int gpu_wait_host(const uint64_t* word, int64_t want, const uint32_t* abort) {
  return emu_wait_host(word, want, abort);
}
GPU_FN int gpu_wait_idle(const uint64_t* word, int64_t want, const uint32_t* abort) {
  return emu_wait_host(word, want, abort);
}
GPU_FN void gpu_nanosleep(uint32_t ns) { emu_nanosleep(ns); }
GPU_FN uint64_t gpu_clock_ns() { return emu_clock_ns(); }

// --- arithmetic ---------------------------------------------------------------------------------

GPU_FN float gpu_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
GPU_FN float gpu_reciprocal(float x) { return 1.0f / x; }
GPU_FN float gpu_sqrt(float x) { return __builtin_sqrtf(x); }
GPU_FN float gpu_rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }

// Bit patterns of 16-bit floats; rounding to nearest even, every NaN becomes 0x7fff.
GPU_FN float gpu_bf16_to_float(uint16_t bits) {
  return __builtin_bit_cast(float, uint32_t(bits) << 16);
}
GPU_FN float gpu_fp16_to_float(uint16_t bits) {
  return float(__builtin_bit_cast(_Float16, bits));
}
GPU_FN uint16_t gpu_float_to_bf16(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  return x != x ? 0x7fff : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
GPU_FN uint16_t gpu_float_to_fp16(float x) {
  return x != x ? 0x7fff : __builtin_bit_cast(uint16_t, _Float16(x));
}
GPU_FN uint32_t gpu_pack_bf16(float lo, float hi) {
  return gpu_float_to_bf16(lo) | uint32_t(gpu_float_to_bf16(hi)) << 16;
}
GPU_FN uint32_t gpu_pack_fp16(float lo, float hi) {
  return gpu_float_to_fp16(lo) | uint32_t(gpu_float_to_fp16(hi)) << 16;
}

// --- registers and tasks ------------------------------------------------------------------------

template <int N>
GPU_FN void gpu_set_max_registers_dec() {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0, "a multiple of 8 from 24 to 256");
}
template <int N>
GPU_FN void gpu_set_max_registers_inc() {
  static_assert(N >= 24 && N <= 256 && N % 8 == 0, "a multiple of 8 from 24 to 256");
}
// From here on this thread's accesses must lie in what the task declared.
GPU_FN void gpu_task_begin(uint32_t method, uint32_t task) { emu_task_begin(method, task); }
GPU_FN void gpu_task_end() { emu_task_end(); }
