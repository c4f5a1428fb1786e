// How fast one thread of this machine computes, reads and copies. Every function meets the other
// threads of the measurement first, and returns how many seconds its own work then took.
#include <stdint.h>
#include <time.h>

#if defined(__AVX512F__)
#define ARK_VECTOR_BYTES 64
#define ARK_STREAM "vmovntps %1, %0"
#elif defined(__AVX2__)
#define ARK_VECTOR_BYTES 32
#define ARK_STREAM "vmovntps %1, %0"
#else
#define ARK_VECTOR_BYTES 16
#if defined(__SSE2__)
#define ARK_STREAM "movntps %1, %0"
#endif
#endif

// The letter of a vector register in inline assembly.
#if defined(__AVX512F__)
#define ARK_REGISTER "v"
#elif defined(__SSE2__)
#define ARK_REGISTER "x"
#else
#define ARK_REGISTER "w"
#endif

#define ARK_PEAK extern "C" __attribute__((visibility("default")))

typedef float ark_vector __attribute__((vector_size(ARK_VECTOR_BYTES)));

// Sums enough to hide an addition's latency, and few enough to stay in registers; each has a name,
// since GCC keeps the elements of an array in memory.
#define ARK_TWELVE(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#if ARK_VECTOR_BYTES == 64
constexpr int ARK_SUMS = 24;
#define ARK_ALL(DO) \
  ARK_TWELVE(DO) DO(12) DO(13) DO(14) DO(15) DO(16) DO(17) DO(18) DO(19) DO(20) DO(21) DO(22) DO(23)
#else
constexpr int ARK_SUMS = 12;
#define ARK_ALL(DO) ARK_TWELVE(DO)
#endif
constexpr int ARK_LANES = ARK_VECTOR_BYTES / 4;
// Vectors of one step of a loop over memory.
constexpr int ARK_STEP = 8;
constexpr int64_t ARK_MEET_NS = 1000000000;

// The compiler must have the vector in a register here, and knows nothing of its value afterwards.
static inline void ark_opaque(ark_vector& value) { asm volatile("" : "+" ARK_REGISTER(value)); }

static inline ark_vector ark_splat(float value) {
  ark_vector all;
  for (int i = 0; i < ARK_LANES; ++i) all[i] = value;
  ark_opaque(all);
  return all;
}

static int64_t ark_now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t(now.tv_sec) * 1000000000 + now.tv_nsec;
}

// Wait for all threads, but not for ever: one of them may have failed to start.
static int64_t ark_meet(uint32_t* arrived, uint32_t count) {
  const int64_t began = ark_now_ns();
  int64_t now = began;
  __atomic_add_fetch(arrived, 1, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(arrived, __ATOMIC_SEQ_CST) < count && now - began < ARK_MEET_NS)
    now = ark_now_ns();
  return ark_now_ns();
}

static double ark_since(int64_t began) { return double(ark_now_ns() - began) * 1e-9; }

// Operations of one turn of ark_peak_fma, and of ark_peak_dot: 0 where there is no such instruction.
ARK_PEAK int ark_peak_fma_operations() { return ARK_SUMS * ARK_LANES * 2; }

ARK_PEAK int ark_peak_dot_operations() {
#if defined(__AVX512BF16__)
  return ARK_SUMS * ARK_LANES * 4;
#else
  return 0;
#endif
}

// Multiply and add in fp32.
ARK_PEAK double ark_peak_fma(uint32_t* arrived, uint32_t count, uint64_t turns) {
  // x * 0.5 + 1 tends to 2: never a denormal number, never an infinite one.
  const ark_vector factor = ark_splat(0.5f), summand = ark_splat(1.0f);
#define ARK_MAKE(n) ark_vector sum##n = ark_splat(n);
#define ARK_ADD(n)               \
  sum##n = sum##n * factor + summand; \
  ark_opaque(sum##n);
  ARK_ALL(ARK_MAKE)
  const int64_t began = ark_meet(arrived, count);
  for (uint64_t turn = 0; turn < turns; ++turn) {
    ARK_ALL(ARK_ADD)
  }
  return ark_since(began);
}

// Multiply pairs of bf16 and add them in fp32.
ARK_PEAK double ark_peak_dot(uint32_t* arrived, uint32_t count, uint64_t turns) {
#if defined(__AVX512BF16__)
  const ark_vector left = ark_splat(1.0f), right = ark_splat(1.0f);
#define ARK_DOT(n) asm volatile("vdpbf16ps %1, %2, %0" : "+v"(sum##n) : "v"(left), "v"(right));
  ARK_ALL(ARK_MAKE)
  const int64_t began = ark_meet(arrived, count);
  for (uint64_t turn = 0; turn < turns; ++turn) {
    ARK_ALL(ARK_DOT)
  }
  return ark_since(began);
#else
  return ark_since(ark_meet(arrived, count));
#endif
}

// Read `bytes`, `turns` times.
ARK_PEAK double ark_peak_read(uint32_t* arrived, uint32_t count, uint64_t turns,
                              const char* source, char*, uint64_t bytes) {
  const ark_vector* from = reinterpret_cast<const ark_vector*>(source);
  const uint64_t vectors = bytes / ARK_VECTOR_BYTES / ARK_STEP * ARK_STEP;
  const int64_t began = ark_meet(arrived, count);
  for (uint64_t turn = 0; turn < turns; ++turn) {
    for (uint64_t v = 0; v < vectors; v += ARK_STEP) {
#pragma GCC unroll 8
      for (int i = 0; i < ARK_STEP; ++i) {
        ark_vector value = from[v + i];
        ark_opaque(value);
      }
    }
  }
  return ark_since(began);
}

// Copy `bytes`, `turns` times, with ordinary stores.
ARK_PEAK double ark_peak_copy(uint32_t* arrived, uint32_t count, uint64_t turns,
                              const char* source, char* target, uint64_t bytes) {
  const ark_vector* from = reinterpret_cast<const ark_vector*>(source);
  ark_vector* to = reinterpret_cast<ark_vector*>(target);
  const uint64_t vectors = bytes / ARK_VECTOR_BYTES / ARK_STEP * ARK_STEP;
  const int64_t began = ark_meet(arrived, count);
  for (uint64_t turn = 0; turn < turns; ++turn) {
    for (uint64_t v = 0; v < vectors; v += ARK_STEP) {
#pragma GCC unroll 8
      for (int i = 0; i < ARK_STEP; ++i) {
        ark_vector value = from[v + i];
        ark_opaque(value);  // else the compiler calls memcpy
        to[v + i] = value;
      }
    }
  }
  return ark_since(began);
}

// The same with stores that leave the caches alone, where there are such.
ARK_PEAK double ark_peak_stream(uint32_t* arrived, uint32_t count, uint64_t turns,
                                const char* source, char* target, uint64_t bytes) {
#if defined(ARK_STREAM)
  const ark_vector* from = reinterpret_cast<const ark_vector*>(source);
  ark_vector* to = reinterpret_cast<ark_vector*>(target);
  const uint64_t vectors = bytes / ARK_VECTOR_BYTES / ARK_STEP * ARK_STEP;
  const int64_t began = ark_meet(arrived, count);
  for (uint64_t turn = 0; turn < turns; ++turn) {
    for (uint64_t v = 0; v < vectors; v += ARK_STEP) {
#pragma GCC unroll 8
      for (int i = 0; i < ARK_STEP; ++i)
        asm volatile(ARK_STREAM : "=m"(to[v + i]) : ARK_REGISTER(from[v + i]));
    }
  }
  asm volatile("sfence" ::: "memory");
  return ark_since(began);
#else
  return ark_peak_copy(arrived, count, turns, source, target, bytes);
#endif
}
