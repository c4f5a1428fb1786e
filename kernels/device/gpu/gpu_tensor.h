// Tensor cores: fragments and products of one warp.

#pragma once

#include "gpu_memory.h"

// Matrices of 8 rows of 16 bytes: lane i gives the address of row i % 8 of matrix i / 8.
#define GPU_LDMATRIX4(name, trans)                                                      \
  GPU_FN void name(uint32_t (&r)[4], const void* row) {                                 \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                       \
                 : "r"(gpu_shared_address(row))                                         \
                 : "memory");                                                           \
  }
#define GPU_LDMATRIX2(name, trans)                                                      \
  GPU_FN void name(uint32_t (&r)[2], const void* row) {                                 \
    asm volatile("ldmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 {%0, %1}, [%2];"    \
                 : "=r"(r[0]), "=r"(r[1])                                               \
                 : "r"(gpu_shared_address(row))                                         \
                 : "memory");                                                           \
  }
GPU_LDMATRIX4(gpu_ldmatrix4, "")
GPU_LDMATRIX4(gpu_ldmatrix4_trans, ".trans")
GPU_LDMATRIX2(gpu_ldmatrix2, "")
GPU_LDMATRIX2(gpu_ldmatrix2_trans, ".trans")
#undef GPU_LDMATRIX4
#undef GPU_LDMATRIX2

// c[16, 8] += a[16, 16] * b[16, 8], one warp. Lane 4g + t holds c[g, 2t], c[g, 2t + 1],
// c[g + 8, 2t], c[g + 8, 2t + 1].
#define GPU_MMA(name, type)                                                             \
  GPU_FN void name(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {     \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 "                  \
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"               \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));            \
  }
GPU_MMA(gpu_mma_bf16, "bf16")
GPU_MMA(gpu_mma_fp16, "f16")
#undef GPU_MMA

#if GPU_HAS_WGMMA
// Warp groups: 128 threads multiply operands that lie in shared memory, while they go on. An
// operand is rows of 64 elements (128 bytes) whose 16-byte chunk c lies at place c ^ (row % 8);
// its first row is aligned to 1024 bytes.

// What was written to shared memory before is seen by the warp groups' products after.
GPU_FN void gpu_wgmma_publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Before the first product, and after other code touched the sums.
GPU_FN void gpu_wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
GPU_FN void gpu_wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Wait until at most N committed groups are under way; until then their sums must not be touched.
template <int N>
GPU_FN void gpu_wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Keep the compiler from moving uses of the sums across this place: it does not know that
// products go on.
template <int COUNT>
GPU_FN void gpu_wgmma_hold(float (&c)[COUNT][4]) {
#pragma unroll
  for (int j = 0; j < COUNT; ++j)
    asm volatile("" : "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])::"memory");
}

#define GPU_SUMS4(c, j) "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define GPU_SUMS16(c, j) \
  GPU_SUMS4(c, j), GPU_SUMS4(c, j + 1), GPU_SUMS4(c, j + 2), GPU_SUMS4(c, j + 3)
#define GPU_DIGITS(d)                                                                   \
  "%" #d "0, %" #d "1, %" #d "2, %" #d "3, %" #d "4, "                                  \
  "%" #d "5, %" #d "6, %" #d "7, %" #d "8, %" #d "9"
#define GPU_ONES "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9"
#define GPU_WGMMA(name, type)                                                           \
  template <int N>                                                                      \
  GPU_FN void name(float (&c)[N / 8][4], uint64_t a, uint64_t b) {                      \
    static_assert(N == 64 || N == 128, "columns of the product");                       \
    if constexpr (N == 64)                                                              \
      asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0; "                              \
                   "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {"     \
                   GPU_ONES ", " GPU_DIGITS(1) ", " GPU_DIGITS(2) ", %30, %31}, "       \
                   "%32, %33, p, 1, 1, 0, 0; }"                                         \
                   : GPU_SUMS16(c, 0), GPU_SUMS16(c, 4)                                 \
                   : "l"(a), "l"(b)                                                     \
                   : "memory");                                                         \
    else                                                                                \
      asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0; "                              \
                   "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {"    \
                   GPU_ONES ", " GPU_DIGITS(1) ", " GPU_DIGITS(2) ", " GPU_DIGITS(3)    \
                   ", " GPU_DIGITS(4) ", " GPU_DIGITS(5) ", %60, %61, %62, %63}, "      \
                   "%64, %65, p, 1, 1, 0, 0; }"                                         \
                   : GPU_SUMS16(c, 0), GPU_SUMS16(c, 4), GPU_SUMS16(c, 8),              \
                     GPU_SUMS16(c, 12)                                                  \
                   : "l"(a), "l"(b)                                                     \
                   : "memory");                                                         \
  }
// c[64, N] += a[64, 16] * b[N, 16]^T. Warp w of the group and its lane 4g + t hold, in c[j], the
// elements of row 16w + g and row 16w + g + 8, columns 8j + 2t and 8j + 2t + 1. Operands begin at
// a multiple of 16 elements of their rows.
GPU_WGMMA(gpu_wgmma_bf16, "bf16")
GPU_WGMMA(gpu_wgmma_fp16, "f16")
#undef GPU_WGMMA
#undef GPU_ONES
#undef GPU_DIGITS
#undef GPU_SUMS16
#undef GPU_SUMS4
#endif
