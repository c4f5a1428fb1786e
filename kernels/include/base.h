// Element types, their conversions, and the arithmetic that task bodies share.

#include <stdint.h>

#define ARK_FN inline __attribute__((always_inline))
// Large parts that many task functions share: compiled once, not into each.
#define ARK_PART __attribute__((noinline))
#define ARK_COLD __attribute__((noinline, cold))
#if defined(__clang__)
#define ARK_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define ARK_INDEPENDENT _Pragma("GCC ivdep")
#endif
#define ARK_LIKELY(x) __builtin_expect(!!(x), 1)

typedef bool ark_bool;
typedef _Float16 ark_fp16;

// Brain float: the upper half of an fp32.
struct ark_bf16 {
  uint16_t bits;
};

struct ark_no_params {};

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
  return float(x);
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
  return ark_fp16(x);
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
  static constexpr T lowest = is_signed ? T(int64_t(-1) << (8 * sizeof(T) - 1)) : T(0);
  static constexpr T highest = T(~lowest);
  static constexpr float lowest_float = float(lowest);
  static constexpr float above = float(double(highest) + 1.0);
};

ARK_FN float ark_sqrt(float x) { return __builtin_sqrtf(x); }

// exp in fp32, within 1 ulp or so: 2^n * p(r) with r in [-ln2/2, ln2/2] and the Taylor
// polynomial of degree 7. Written without branches so that loops over it vectorize.
ARK_FN float ark_exp(float x) {
  const float low = -104.0f, high = 89.0f;
  const float clamped = x < low ? low : (x > high ? high : x);
  const float n = __builtin_rintf(clamped * 1.44269504088896341f);
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // Two steps, so that results below the normal range round once and overflow gives inf.
  const int32_t half = int32_t(n) / 2, rest = int32_t(n) - half;
  const float scaled = p * ark_from_bits(uint32_t(half + 127) << 23) *
                       ark_from_bits(uint32_t(rest + 127) << 23);
  return x != x ? x : scaled;
}

// Lanes of partial sums: a fixed order of additions that vectorizes.
constexpr int ARK_LANES = 16;

// Sum of n values given by index, in a fixed order.
template <class T, class Row>
ARK_FN T ark_sum(const Row& row, int64_t n) {
  T lanes[ARK_LANES] = {};
  int64_t i = 0;
  for (; i + ARK_LANES <= n; i += ARK_LANES)
    for (int lane = 0; lane < ARK_LANES; ++lane) lanes[lane] += row(i + lane);
  for (int lane = 0; i < n; ++i, ++lane) lanes[lane] += row(i);
  for (int width = ARK_LANES / 2; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  return lanes[0];
}

// Largest of n values given by index; a NaN wins.
template <class T, class Row>
ARK_FN T ark_max(const Row& row, int64_t n) {
  T lanes[ARK_LANES];
  for (int lane = 0; lane < ARK_LANES; ++lane) lanes[lane] = row(0);
  int64_t i = 0;
  for (; i + ARK_LANES <= n; i += ARK_LANES)
    for (int lane = 0; lane < ARK_LANES; ++lane) {
      const T x = row(i + lane);
      lanes[lane] = x > lanes[lane] || x != x ? x : lanes[lane];
    }
  for (int lane = 0; i < n; ++i, ++lane) {
    const T x = row(i);
    lanes[lane] = x > lanes[lane] || x != x ? x : lanes[lane];
  }
  T top = lanes[0];
  for (int lane = 1; lane < ARK_LANES; ++lane)
    top = lanes[lane] > top || lanes[lane] != lanes[lane] ? lanes[lane] : top;
  return top;
}

// A row of elements with a stride, read in the compute type.
template <class T>
struct ark_row {
  const T* data;
  int64_t stride;
  ARK_FN ark_compute<T> operator()(int64_t i) const { return ark_load<T>(data[i * stride]); }
};

// What normalizes one row: (x - shift) * scale.
struct ark_affine {
  float shift;
  float scale;
};
