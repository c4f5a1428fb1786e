// Entry, memory, ids, warps, barriers of a CTA, and arithmetic.

#pragma once

#include <stdint.h>

#define ARK_GPU 1
#define GPU_FN __device__ __forceinline__
#define GPU_PART __device__ __noinline__
// A task function: part of the one kernel, so that its address spaces are known.
#define GPU_TASK GPU_FN
#define GPU_KERNEL(name, threads) extern "C" __global__ void __launch_bounds__(threads, 1) name()
// A variable at namespace scope keeps its plain name: the host finds it by that.
#define GPU_CONSTANT __constant__

// Bulk copies (one lane, counted in bytes) came with sm_90; before, each lane copies.
#if __CUDA_ARCH__ >= 900
#define GPU_HAS_BULK 1
#else
#define GPU_HAS_BULK 0
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(__CUDA_ARCH_FEAT_SM100_ALL) || \
    defined(__CUDA_ARCH_SPECIFIC__) || defined(__CUDA_ARCH_FAMILY_SPECIFIC__)
#define GPU_HAS_SETMAXNREG 1
#else
#define GPU_HAS_SETMAXNREG 0
#endif
// Products by warp groups, straight from shared memory.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define GPU_HAS_WGMMA 1
#else
#define GPU_HAS_WGMMA 0
#endif

// 16 and 8 bytes that move in one instruction.
struct alignas(16) gpu_vec4 {
  uint32_t x, y, z, w;
};
struct alignas(8) gpu_vec2 {
  uint32_t x, y;
};

constexpr uint32_t GPU_WARP = 32;
constexpr uint32_t GPU_ALL_LANES = 0xffffffff;

// --- memory and ids ----------------------------------------------------------------------------

extern __shared__ __align__(1024) char gpu_smem_block[];

// The dynamic shared memory of this CTA.
GPU_FN char* gpu_smem() { return gpu_smem_block; }

// Promise that a pointer leads to global memory, so that no generic loads come out.
template <class T>
GPU_FN T* gpu_global(T* p) {
  __builtin_assume(__isGlobal(p));
  return p;
}

// The pointer to an address in global memory.
template <class T>
GPU_FN T* gpu_global_pointer(uint64_t address) {
  return static_cast<T*>(__cvta_global_to_generic(address));
}

GPU_FN uint64_t gpu_global_address(const void* p) { return __cvta_generic_to_global(p); }
GPU_FN uint32_t gpu_shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// The compiler must not see where this comes from: it would take what tasks work out from it before
// all of them, and keep it in registers as long as the kernel runs. An asm statement stays within
// its branch.
GPU_FN uint32_t gpu_thread() {
  uint32_t thread;
  asm("mov.u32 %0, %%tid.x;" : "=r"(thread));
  __builtin_assume(thread < 1024);
  return thread;
}
// The same for the code around the tasks: an asm statement there would serve the tasks too.
GPU_FN uint32_t gpu_kernel_thread() { return threadIdx.x; }
GPU_FN uint32_t gpu_block() {
  uint32_t block;
  asm("mov.u32 %0, %%ctaid.x;" : "=r"(block));
  return block;
}
GPU_FN uint32_t gpu_grid() { return gridDim.x; }
GPU_FN uint32_t gpu_lane() { return gpu_thread() % GPU_WARP; }
GPU_FN uint32_t gpu_warp() { return gpu_thread() / GPU_WARP; }

// Memory that is used once need not push other data out of L2.
GPU_FN uint64_t gpu_evict_first() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Load through the read-only path: what nobody writes while the kernel runs.
template <class V>
GPU_FN V gpu_load_readonly(const V* from) {
  const uint64_t p = gpu_global_address(from);
  if constexpr (sizeof(V) == 16) {
    gpu_vec4 v;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p));
    return __builtin_bit_cast(V, v);
  } else if constexpr (sizeof(V) == 8) {
    uint64_t v;
    asm("ld.global.nc.u64 %0, [%1];" : "=l"(v) : "l"(p));
    return __builtin_bit_cast(V, v);
  } else if constexpr (sizeof(V) == 4) {
    uint32_t v;
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return __builtin_bit_cast(V, v);
  } else if constexpr (sizeof(V) == 2) {
    uint16_t v;
    asm("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(p));
    return __builtin_bit_cast(V, v);
  } else {
    static_assert(sizeof(V) == 1, "1, 2, 4, 8 or 16 bytes");
    uint32_t v;
    asm("ld.global.nc.u8 %0, [%1];" : "=r"(v) : "l"(p));
    return __builtin_bit_cast(V, uint8_t(v));
  }
}

// Load 8 bytes of the CTA's memory that nobody writes before the CTA's next barrier: the compiler
// may keep them across other stores. The address comes from gpu_anew.
template <class V>
GPU_FN V gpu_load_fixed(const V* from) {
  static_assert(sizeof(V) == 8, "8 bytes");
  uint64_t v;
  asm("ld.shared.u64 %0, [%1];" : "=l"(v) : "r"(gpu_shared_address(from)));
  return __builtin_bit_cast(V, v);
}

// The same pointer to the CTA's memory, though the compiler can't know: what is read through it is
// read anew.
template <class T>
GPU_FN T* gpu_anew(T* p) {
  uint32_t address = gpu_shared_address(p);
  asm volatile("" : "+r"(address)::"memory");
  return static_cast<T*>(__cvta_shared_to_generic(address));
}

// As gpu_load_readonly, for data that is read once: it is the first to leave the caches.
template <class V>
GPU_FN V gpu_load_streaming(const V* from) {
  const uint64_t p = gpu_global_address(from);
  if constexpr (sizeof(V) == 16) {
    gpu_vec4 v;
    asm("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p), "l"(gpu_evict_first()));
    return __builtin_bit_cast(V, v);
  } else if constexpr (sizeof(V) == 8) {
    uint64_t v;
    asm("ld.global.nc.L1::no_allocate.L2::cache_hint.u64 %0, [%1], %2;"
        : "=l"(v)
        : "l"(p), "l"(gpu_evict_first()));
    return __builtin_bit_cast(V, v);
  } else {
    return gpu_load_readonly(from);
  }
}

// --- warp and CTA ------------------------------------------------------------------------------

GPU_FN void gpu_sync_warp() { __syncwarp(); }

template <class T>
GPU_FN T gpu_shuffle_xor(T value, int mask) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "4 or 8 bytes");
  if constexpr (sizeof(T) == 4)
    return __builtin_bit_cast(
        T, __shfl_xor_sync(GPU_ALL_LANES, __builtin_bit_cast(unsigned int, value), mask));
  else
    return __builtin_bit_cast(
        T, __shfl_xor_sync(GPU_ALL_LANES, __builtin_bit_cast(unsigned long long, value), mask));
}

template <class T>
GPU_FN T gpu_shuffle(T value, int lane) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "4 or 8 bytes");
  if constexpr (sizeof(T) == 4)
    return __builtin_bit_cast(
        T, __shfl_sync(GPU_ALL_LANES, __builtin_bit_cast(unsigned int, value), lane));
  else
    return __builtin_bit_cast(
        T, __shfl_sync(GPU_ALL_LANES, __builtin_bit_cast(unsigned long long, value), lane));
}

GPU_FN uint32_t gpu_ballot(bool value) { return __ballot_sync(GPU_ALL_LANES, value); }

// Combine one value per lane by an associative, commutative operation; all lanes get it.
template <class T, class Op>
GPU_FN T gpu_warp_reduce(T value, Op op) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value = op(value, gpu_shuffle_xor(value, mask));
  return value;
}

GPU_FN void gpu_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
GPU_FN void gpu_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// --- arithmetic --------------------------------------------------------------------------------

GPU_FN float gpu_fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
// Within 1 and 2 ulp; a division would be a call.
GPU_FN float gpu_reciprocal(float x) {
  float y;
  asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
GPU_FN float gpu_rsqrt(float x) {
  float y;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

GPU_FN float gpu_sqrt(float x) { return __fsqrt_rn(x); }

// Bit patterns of 16-bit floats; rounding to nearest even.
GPU_FN float gpu_bf16_to_float(uint16_t bits) { return __uint_as_float(uint32_t(bits) << 16); }
GPU_FN float gpu_fp16_to_float(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
GPU_FN uint16_t gpu_float_to_bf16(float x) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
GPU_FN uint16_t gpu_float_to_fp16(float x) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
GPU_FN uint32_t gpu_pack_bf16(float lo, float hi) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(hi), "f"(lo));
  return bits;
}
GPU_FN uint32_t gpu_pack_fp16(float lo, float hi) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(hi), "f"(lo));
  return bits;
}
