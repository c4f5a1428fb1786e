// Element types, their conversions, and the arithmetic that task bodies share.

#include <stdint.h>

#if defined(ARK_GPU)  // ark_gpu.h came first
#define ARK_FN GPU_FN
#define ARK_PART GPU_PART
#define ARK_COLD GPU_PART
#define ARK_INDEPENDENT
#else
#define ARK_FN inline __attribute__((always_inline))
// Large parts that many task functions share: compiled once, not into each.
#define ARK_PART __attribute__((noinline))
#define ARK_COLD __attribute__((noinline, cold))
#if defined(__clang__)
#define ARK_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define ARK_INDEPENDENT _Pragma("GCC ivdep")
#endif
#endif
#define ARK_LIKELY(x) __builtin_expect(!!(x), 1)

template <class A, class B>
constexpr bool ark_is_same = false;
template <class A>
constexpr bool ark_is_same<A, A> = true;

typedef bool ark_bool;
#if defined(ARK_GPU)
struct ark_fp16 {
  uint16_t bits;
};
ARK_FN float ark_fp16_to_float(ark_fp16 x) { return gpu_fp16_to_float(x.bits); }
ARK_FN ark_fp16 ark_float_to_fp16(float x) { return ark_fp16{gpu_float_to_fp16(x)}; }
ARK_FN float ark_sqrt(float x) { return gpu_sqrt(x); }
#else
typedef _Float16 ark_fp16;
ARK_FN float ark_fp16_to_float(ark_fp16 x) { return float(x); }
ARK_FN ark_fp16 ark_float_to_fp16(float x) { return ark_fp16(x); }
ARK_FN float ark_sqrt(float x) { return __builtin_sqrtf(x); }
#endif

// Brain float: the upper half of an fp32.
struct ark_bf16 {
  uint16_t bits;
};

ARK_FN uint32_t ark_bits(float x) { return __builtin_bit_cast(uint32_t, x); }
ARK_FN float ark_from_bits(uint32_t x) { return __builtin_bit_cast(float, x); }

// The type that arithmetic on an element type uses.
template <class T>
struct ark_compute_of {
  typedef T type;
};
template <>
struct ark_compute_of<ark_fp16> {
  typedef float type;
};
template <>
struct ark_compute_of<ark_bf16> {
  typedef float type;
};
template <class T>
using ark_compute = typename ark_compute_of<T>::type;

template <class T>
ARK_FN ark_compute<T> ark_load(T x) {
  return x;
}
template <>
ARK_FN float ark_load<ark_fp16>(ark_fp16 x) {
  return ark_fp16_to_float(x);
}
template <>
ARK_FN float ark_load<ark_bf16>(ark_bf16 x) {
  return ark_from_bits(uint32_t(x.bits) << 16);
}

template <class T>
ARK_FN T ark_store(ark_compute<T> x) {
  return x;
}
template <>
ARK_FN ark_fp16 ark_store<ark_fp16>(float x) {
  return ark_float_to_fp16(x);
}
template <>
ARK_FN ark_bf16 ark_store<ark_bf16>(float x) {
  // Round to nearest even; a NaN stays one.
  const uint32_t bits = ark_bits(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40;
  return ark_bf16{uint16_t((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded)};
}

// Round to the precision of an element type, staying in the compute type.
template <class T>
ARK_FN ark_compute<T> ark_round(ark_compute<T> x) {
  return ark_load<T>(ark_store<T>(x));
}

template <class T>
constexpr bool ark_is_bool = false;
template <>
constexpr bool ark_is_bool<bool> = true;
template <class T>
constexpr bool ark_is_float = false;
template <>
constexpr bool ark_is_float<float> = true;
template <class T>
constexpr bool ark_is_integer = !ark_is_bool<T> && !ark_is_float<T>;

// Ranges of integers as floats: `above` is the first float past the range.
template <class T>
struct ark_limits {
  static constexpr bool is_signed = T(-1) < T(0);
  static constexpr T lowest = is_signed ? T(-(int64_t(1) << (8 * sizeof(T) - 1))) : T(0);
  static constexpr T highest = T(~lowest);
  static constexpr float lowest_float = float(lowest);
  static constexpr float above = float(double(highest) + 1.0);
};

// Quotients of counts that are not negative. A tile's counts have 32 bits; a GPU divides 64 bits
// slowly, in a subroutine.
#if defined(ARK_GPU)
ARK_FN int64_t ark_quotient(int64_t a, int64_t b) { return uint32_t(a) / uint32_t(b); }
ARK_FN int64_t ark_remainder(int64_t a, int64_t b) { return uint32_t(a) % uint32_t(b); }
#else
ARK_FN int64_t ark_quotient(int64_t a, int64_t b) { return a / b; }
ARK_FN int64_t ark_remainder(int64_t a, int64_t b) { return a % b; }
#endif

// Correctly rounded.
ARK_FN float ark_divide(float a, float b) { return a / b; }
