// Random numbers that are a function of where they are used: the same on every device, whoever
// computes them (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

struct ark_random {
  uint32_t word[4];
};

// Philox4x32 with 10 rounds: 128 random bits for a counter of 128 bits and a key of 64.
ARK_FN ark_random ark_philox(ark_random counter, uint32_t key_low, uint32_t key_high) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t even = uint64_t(0xD2511F53u) * counter.word[0];
    const uint64_t odd = uint64_t(0xCD9E8D57u) * counter.word[2];
    counter = {{uint32_t(odd >> 32) ^ counter.word[1] ^ key_low, uint32_t(odd),
                uint32_t(even >> 32) ^ counter.word[3] ^ key_high, uint32_t(even)}};
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
  return counter;
}

// --- what sampling computes with, alike on every device -----------------------------------------

// Fixed point: `ARK_ONE` is 1.
constexpr int ARK_FRACTION = 30;
constexpr int64_t ARK_ONE = int64_t(1) << ARK_FRACTION;
constexpr int64_t ARK_LOG2_E = 1549082005;
// A logit this far below the largest one is never drawn, so that farther ones count as this far:
// noise is at most log2(2^31), and at least -log2(31).
constexpr float ARK_SAMPLE_RANGE = 64.0f;
// Keys of logits: integers in the order of the floats, -0 before 0, all NaN at the end.
constexpr uint32_t ARK_KEY_INFINITY = 0xff800000u, ARK_KEY_LOWEST = 0x00800000u;

ARK_FN uint32_t ark_order_key(float x) {
  const uint32_t bits = x == 0 ? 0 : x != x ? 0x7fc00000u : ark_bits(x);
  return bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000u);
}
ARK_FN float ark_order_value(uint32_t key) {
  return ark_from_bits(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

ARK_FN int64_t ark_fixed_series(int64_t, int64_t last) { return last; }
// c0 + x * (c1 + x * (...)).
template <class... Rest>
ARK_FN int64_t ark_fixed_series(int64_t x, int64_t first, Rest... rest) {
  return first + ((ark_fixed_series(x, rest...) * x) >> ARK_FRACTION);
}

// The exponent of an integer in [1, 2^36), or one more where rounding to fp32 gives that.
ARK_FN int ark_fixed_exponent(int64_t x) { return int(ark_bits(float(x)) >> 23) - 127; }

// log2 of an integer in [1, 2^36), within 10^-8: a Chebyshev polynomial of the mantissa.
ARK_FN int64_t ark_fixed_log2(int64_t x) {
  const int exponent = ark_fixed_exponent(x);
  const int64_t mantissa =
      exponent < ARK_FRACTION ? x << (ARK_FRACTION - exponent) : x >> (exponent - ARK_FRACTION);
  return exponent * ARK_ONE +
         ark_fixed_series(mantissa - ARK_ONE, 1, 1549081648, -774526479, 516126118, -385288495,
                          299774478, -225143025, 146784139, -72886067, 23321972, -3502467);
}

// 2^x for x <= 0, in steps of 2^-31.
ARK_FN uint32_t ark_fixed_exp2(int64_t x) {
  const int64_t shift = -(x >> ARK_FRACTION);
  if (shift > 32) return 0;
  const int64_t power = ark_fixed_series(x & (ARK_ONE - 1), ARK_ONE, 744260852, 257945486,
                                         59571873, 10398316, 1330509, 234782);
  return uint32_t((((power << 2) >> shift) + 1) >> 1);
}

// Gumbel noise in units of ln 2, but for a constant: -log2(-log2(1 - u)), where u is an odd
// number of 31 bits over 2^31.
ARK_FN int64_t ark_gumbel(uint32_t bits) {
  const int64_t u = int64_t(bits >> 1 | 1);
  if (u <= ARK_ONE) {
    // log2(u) and, smooth down to 0, log2(-log2(1 - u) / u).
    const int64_t rest = ark_fixed_series(u >> 1, 567758568, 774541526, 322691224, 194491605,
                                          124250947, 178518149, -240367337, 874905434,
                                          -1078265318, 776382390);
    return 31 * ARK_ONE - ark_fixed_log2(u) - rest;
  }
  const int64_t amount = 31 * ARK_ONE - ark_fixed_log2((int64_t(1) << 31) - u);
  return ARK_FRACTION * ARK_ONE - ark_fixed_log2(amount);
}

// What ark_gumbel can give at most.
ARK_FN int64_t ark_gumbel_limit(uint32_t bits) {
  return (32 - ark_fixed_exponent(int64_t(bits >> 1 | 1))) * ARK_ONE;
}
