// Functions of fp32 numbers. They have no branches and call nothing, so that loops over them
// vectorize. NaN gives NaN, infinities give the limit. "ulp" is the largest error found over every
// 64th float of all sizes, in units of the result's last place, denormal ones included: first where
// there are fused multiplications and additions, then without. tests/test_math.py holds them to it.

constexpr float ARK_INFINITY = __builtin_bit_cast(float, 0x7f800000u);
constexpr float ARK_NAN = __builtin_bit_cast(float, 0x7fc00000u);
// 1.5 * 2^23: what is added to it is rounded to a whole number, found in the sum's low bits.
constexpr float ARK_ROUNDER = 12582912.0f;
// ln 2 in two parts: whole numbers below 2^15 times the first one are exact.
constexpr float ARK_LN2_HIGH = 0.693359375f, ARK_LN2_LOW = -2.12194440e-4f;

ARK_FN float ark_magnitude(float x) { return ark_from_bits(ark_bits(x) & 0x7fffffff); }
ARK_FN uint32_t ark_sign(float x) { return ark_bits(x) & 0x80000000; }
ARK_FN float ark_flip(float x, uint32_t sign) { return ark_from_bits(ark_bits(x) ^ sign); }

// 2^exponent, from -126 to 127.
ARK_FN float ark_power_of_2(int32_t exponent) {
  return ark_from_bits(uint32_t(exponent + 127) << 23);
}

// mantissa * 2^exponent.
struct ark_power {
  float mantissa;
  int32_t exponent;
};

// The number itself, for exponents up to 252. In two steps: results below the normal range round
// once, and those above it become infinite.
ARK_FN float ark_value(ark_power x) {
  const int32_t half = x.exponent >> 1, rest = x.exponent - half;
  return x.mantissa * ark_power_of_2(half) * ark_power_of_2(rest);
}

// The same for exponents from -190 to 0, of mantissas below 2^64.
ARK_FN float ark_small_value(ark_power x) {
  return x.mantissa * ark_power_of_2(x.exponent + 64) * 0x1p-64f;
}

// (exp(r) - 1 - r) / r^2 for r in [-ln2/2, ln2/2]: the minimax polynomial, by Remez' algorithm, for
// the error relative to exp(r), which is 3.1e-9.
ARK_FN float ark_exp_series(float r) {
  float p = 1.3814540580e-3f;
  p = p * r + 8.3687454462e-3f;
  p = p * r + 4.1668388993e-2f;
  p = p * r + 1.6666521132e-1f;
  return p * r + 4.9999994040e-1f;
}

// The whole number next to x / ln2 and what is left: x = n * ln2 + r. The number given is
// high + low; low is small, or -0 for none.
struct ark_exp_argument {
  float n;
  int32_t exponent;
  float r;

  ARK_FN explicit ark_exp_argument(float high, float low = -0.0f) {
    const float shifted = high * 1.44269504088896341f + ARK_ROUNDER;
    n = shifted - ARK_ROUNDER;
    exponent = int32_t(ark_bits(shifted) - ark_bits(ARK_ROUNDER));
    r = ((high - n * ARK_LN2_HIGH) + low) - n * ARK_LN2_LOW;
  }
};

// exp of high + low, which is between -150 and 130.
ARK_FN ark_power ark_exp_power(float high, float low = -0.0f) {
  const ark_exp_argument x(high, low);
  return {1.0f + (x.r + x.r * x.r * ark_exp_series(x.r)), x.exponent};
}

// 0.99, 0.95 ulp.
ARK_FN float ark_exp(float x) {
  const float above = x < -150.0f ? -150.0f : x;
  return ark_value(ark_exp_power(above > 130.0f ? 130.0f : above));
}

// exp of numbers up to 0; 0 for results below the normal range.
ARK_FN float ark_exp_down(float x) {
  constexpr float lowest = -87.3f;
  const ark_power e = ark_exp_power(x < lowest ? lowest : x);
  const float value = e.mantissa * ark_power_of_2(e.exponent);
  return x < lowest ? 0.0f : value;
}

// A positive number as (1 + fraction) * 2^exponent, with 1 + fraction in [sqrt(1/2), sqrt(2)).
struct ark_log_argument {
  float fraction;
  int32_t exponent;

  ARK_FN explicit ark_log_argument(float x) {
    const bool is_tiny = x < 0x1p-126f;
    const uint32_t bits = ark_bits(is_tiny ? x * 0x1p23f : x);
    const int32_t power = int32_t(bits - 0x3f3504f3) >> 23;  // the bits of sqrt(1/2)
    fraction = ark_from_bits(bits - (uint32_t(power) << 23)) - 1.0f;
    exponent = power - (is_tiny ? 23 : 0);
  }
};

// log(1 + f) = 2 * (s + s^3/3 + s^5/5 + ...) with s = f / (2 + f), where 2 * s = f - s * f.
// 0.89, 0.84 ulp; -inf of 0, NaN of negative numbers.
ARK_FN float ark_log(float x) {
  const ark_log_argument parts(x);
  const float f = parts.fraction, n = float(parts.exponent);
  const float s = ark_divide(f, 2.0f + f), z = s * s;
  const float rest = z * (2.0f / 3 + z * (2.0f / 5 + z * (2.0f / 7 + z * (2.0f / 9))));
  const float value = n * ARK_LN2_HIGH + (f - (s * (f - rest) - n * ARK_LN2_LOW));
  const float positive = x < ARK_INFINITY ? value : x;
  const float number = x < 0.0f ? ARK_NAN : positive;
  return x == 0.0f ? -ARK_INFINITY : number;
}

// 1.5, 1.5 ulp: the root and the quotient round.
ARK_FN float ark_rsqrt(float x) { return ark_divide(1.0f, ark_sqrt(x)); }

// With e = exp(2 |x|) - 1 it is e / (e + 2). 2.7, 2.7 ulp.
ARK_FN float ark_tanh(float x) {
  const float size = ark_magnitude(x);
  const ark_exp_argument twice(2.0f * (size > 10.0f ? 10.0f : size));
  const float less_one = twice.r + twice.r * twice.r * ark_exp_series(twice.r);
  const float power = ark_from_bits(uint32_t(twice.exponent + 127) << 23);
  const float e = power * less_one + (power - 1.0f);
  return ark_flip(ark_divide(e, e + 2.0f), ark_sign(x));
}

// x / (1 + exp(-t)), where t has the sign of x. The exponential is that of a negative number, so
// that small results keep their precision. With t = x, for silu: 3.2, 3.2 ulp.
ARK_FN float ark_gate(float x, float t) {
  const float down = ark_from_bits(ark_bits(t) | 0x80000000);
  const ark_power e = ark_exp_power(down < -120.0f ? -120.0f : down);
  const float power = ark_power_of_2(e.exponent < -126 ? -126 : e.exponent);
  const float value = ark_divide(t < 0.0f ? x * e.mantissa : x, 1.0f + e.mantissa * power);
  return t < 0.0f ? ark_small_value({value, e.exponent}) : value;
}

// 2.3, 2.3 ulp.
ARK_FN float ark_sigmoid(float x) { return ark_gate(1.0f, x); }

// A product, of numbers up to 2^64, and what its rounding loses.
struct ark_product {
  float high;
  float low;
};
ARK_FN ark_product ark_multiply(float a, float b) {
#if defined(__FMA__)
  const float high = a * b;
  return {high, __builtin_fmaf(a, b, -high)};
#else
  // Of the upper halves the product is exact.
  const float head_a = ark_from_bits(ark_bits(a) & 0xfffff000), tail_a = a - head_a;
  const float head_b = ark_from_bits(ark_bits(b) & 0xfffff000), tail_b = b - head_b;
  return {head_a * head_b, head_a * tail_b + tail_a * b};
#endif
}

// x times the chance that a normal number is below x. 5.6, 6.8 ulp, far below 0 too.
ARK_FN float ark_gelu_erf(float x) {
  const float size = ark_magnitude(x), a = size > 16.0f ? 16.0f : size;
  const ark_product square = ark_multiply(-0.5f * a, a);
  const ark_power e = ark_exp_power(square.high, square.low);
  // exp(a^2/2) * erfc(a/sqrt(2))/2 * (a + 3), interpolated at the Chebyshev nodes of
  // t = (a - 3) / (a + 3) for a in [0, 16]; relative error 1.3e-9.
  const float below = ark_divide(1.0f, a + 3.0f), t = 1.0f - 6.0f * below;
  float p = 5.565083205e-05f;
  p = p * t + 1.334795293e-04f;
  p = p * t - 2.450018942e-04f;
  p = p * t - 1.034782122e-03f;
  p = p * t + 1.024294722e-03f;
  p = p * t + 6.970081402e-03f;
  p = p * t - 1.046230981e-02f;
  p = p * t - 4.726279084e-02f;
  p = p * t + 2.300176775e-01f;
  p = p * t - 5.093319875e-01f;
  p = p * t + 7.290836907e-01f;
  const float part = ark_small_value({a * (e.mantissa * (p * below)), e.exponent});
  return (x < -0.0f ? -0.0f : x) - part;
}

// An angle without its whole quarter turns: |x| = quarters * pi/2 + rest, with quarters modulo 4
// and the rest within pi/4.
struct ark_angle {
  float rest;
  uint32_t quarters;
};

ARK_FN uint32_t ark_high_product(uint32_t a, uint32_t b) {
  return uint32_t((uint64_t(a) * b) >> 32);
}

// The word of 2/pi that begins `shift` bits into `first`, which `second` follows.
ARK_FN uint32_t ark_joined(uint32_t first, uint32_t second, uint32_t shift) {
  return (first << shift) | (second >> 1 >> (31 - shift));
}

// One of four words, by two bits.
ARK_FN uint32_t ark_choose(uint32_t bits, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const uint32_t low = bits & 32 ? b : a, high = bits & 32 ? d : c;
  return bits & 64 ? high : low;
}

// |x| * 2/pi modulo 4, in integers. Of the digits of 2/pi only a window of 96 bits matters: what
// is before it gives multiples of 4, what is behind it less than 2^-62. The window begins at the
// bit that the exponent of x says.
ARK_FN ark_angle ark_reduce_angle(float x) {
  const uint32_t bits = ark_bits(x) & 0x7fffffff;
  const uint32_t power = (bits >> 23 < 126 ? 126 : bits >> 23) - 126;
  const uint32_t at = power < 127 ? power : 127;
  const uint32_t mantissa = ((bits & 0x7fffff) | 0x800000) << (power - at);
  // 26 zeros, then the binary digits of 2/pi.
  const uint32_t a = ark_choose(at, 0x00000028, 0xbe60db93, 0x91054a7f, 0x09d5f47d);
  const uint32_t b = ark_choose(at, 0xbe60db93, 0x91054a7f, 0x09d5f47d, 0x4d377036);
  const uint32_t c = ark_choose(at, 0x91054a7f, 0x09d5f47d, 0x4d377036, 0xd8a5664f);
  const uint32_t d = ark_choose(at, 0x09d5f47d, 0x4d377036, 0xd8a5664f, 0x10e4107f);
  const uint32_t shift = at & 31;
  const uint32_t middle = ark_joined(b, c, shift), middle_low = mantissa * middle;
  const uint32_t low = middle_low + ark_high_product(mantissa, ark_joined(c, d, shift));
  const uint32_t high = mantissa * ark_joined(a, b, shift) +
                        ark_high_product(mantissa, middle) + (low < middle_low ? 1 : 0);
  // Quarter turns in units of 2^-30 and, below, of 2^-62.
  const uint32_t quarters = (high + (1u << 29)) >> 30;
  const int32_t left = int32_t(high - (quarters << 30));
  // Two floats hold what is left: 24 bits exactly, and the 31 that follow.
  const float top = float(left & ~63), rest = float((left & 63) << 25 | int32_t(low >> 7));
  // pi/2 in two parts, in those units.
  const float turned = top * (1.57079637050628662f * 0x1p-30f) +
                       (top * (-4.37113882867e-8f * 0x1p-30f) + rest * (1.5707964f * 0x1p-55f));
  const bool is_small = bits < 0x3f490fdb;  // pi/4
  const float number = bits < 0x7f800000 ? turned : ARK_NAN;
  return {is_small ? ark_from_bits(bits) : number, is_small ? 0 : quarters};
}

// Taylor polynomials within pi/4.
ARK_FN float ark_sin_series(float r) {
  const float z = r * r;
  float p = -1.0f / 39916800;
  p = p * z + 1.0f / 362880;
  p = p * z - 1.0f / 5040;
  p = p * z + 1.0f / 120;
  p = p * z - 1.0f / 6;
  return r + r * z * p;
}

ARK_FN float ark_cos_series(float r) {
  const float z = r * r;
  float p = -1.0f / 3628800;
  p = p * z + 1.0f / 40320;
  p = p * z - 1.0f / 720;
  p = p * z + 1.0f / 24;
  return 1.0f - (0.5f * z - z * z * p);
}

// 1.6, 2.5 ulp, however large x is.
ARK_FN float ark_sin(float x) {
  const ark_angle angle = ark_reduce_angle(x);
  const float sine = ark_sin_series(angle.rest), cosine = ark_cos_series(angle.rest);
  const float value = angle.quarters & 1 ? cosine : sine;
  return ark_flip(value, ark_sign(x) ^ (angle.quarters & 2) << 30);
}

// 1.5, 2.5 ulp, however large x is.
ARK_FN float ark_cos(float x) {
  const ark_angle angle = ark_reduce_angle(x);
  const float sine = ark_sin_series(angle.rest), cosine = ark_cos_series(angle.rest);
  const float value = angle.quarters & 1 ? sine : cosine;
  return ark_flip(value, ((angle.quarters + 1) & 2) << 30);
}

// log2 |x| in fp64: a power magnifies its error by up to 149.
ARK_FN double ark_log2_magnitude(float x) {
  const float size = ark_magnitude(x);
  const ark_log_argument parts(size);
  const double f = parts.fraction, s = f / (2.0 + f), z = s * s;
  double p = 1.0 / 13;
  p = p * z + 1.0 / 11;
  p = p * z + 1.0 / 9;
  p = p * z + 1.0 / 7;
  p = p * z + 1.0 / 5;
  p = p * z + 1.0 / 3;
  // 2/ln(2), the factor of the series.
  const double value = double(parts.exponent) + 2.885390081777926815 * (s + s * z * p);
  const double number = size < ARK_INFINITY ? value : double(size);
  return size == 0.0f ? double(-ARK_INFINITY) : number;
}

// 2^x in fp32 of an fp64 number.
ARK_FN float ark_exp2(double x) {
  const double above = x < -200.0 ? -200.0 : x, t = above > 200.0 ? 200.0 : above;
  const double shifted = t + 0x1.8p52;
  const float r = float((t - (shifted - 0x1.8p52)) * 0.693147180559945309);
  const int32_t exponent = int32_t(uint32_t(__builtin_bit_cast(uint64_t, shifted)));
  return ark_value({1.0f + (r + r * r * ark_exp_series(r)), exponent});
}

// The standard's pow: 1 for 1^y and x^0 whatever the other is, NaN for negative numbers to a
// power that is not whole. 0.99, 0.95 ulp over 10^8 pairs.
ARK_FN float ark_pow_float(float x, float y) {
  const float size = ark_magnitude(x);
  const float value = ark_exp2(double(y) * ark_log2_magnitude(x));
  // Added to 2^23, a number is whole, and its last bit says whether it is odd; numbers beyond are
  // whole already, and from 2^24 on even.
  const float power = ark_magnitude(y), whole = power < 0x1p23f ? power + 0x1p23f : power;
  // & and | where && and || would be branches.
  const bool is_whole = (power >= 0x1p23f) | (whole - 0x1p23f == power);
  const uint32_t sign = is_whole & (power < 0x1p24f) ? ark_bits(whole) << 31 : 0;
  const float one = (size == 1.0f) & (y == y) ? 1.0f : value;
  const float number = ark_flip(one, sign & ark_sign(x));
  const bool has_none = (x < 0.0f) & (size < ARK_INFINITY) & !is_whole;
  const float real = has_none ? ARK_NAN : number;
  return (x == 1.0f) | (y == 0.0f) ? 1.0f : real;
}
