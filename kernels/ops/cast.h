// An integer in fp32 for rounding to 16 bits: where its magnitude has more than 24 bits, those that
// do not fit are kept as one last bit, so that no half is mistaken for another number.
template <class T>
ARK_FN float ark_cast_sticky(T a) {
  const uint32_t size = a < T(0) ? 0u - uint32_t(a) : uint32_t(a);
  const uint32_t upper = (size >> 8) | ((size & 255) != 0 ? 1u : 0u);
  const float exact = float(int32_t(size & 0xffffff)), shifted = float(int32_t(upper)) * 256.0f;
  const float magnitude = size < (1u << 24) ? exact : shifted;
  return a < T(0) ? -magnitude : magnitude;
}

// Convert to another dtype, rounding once: floats to integers cut the fraction off and stop at the
// integer's range, NaN becomes 0; integers to narrower integers wrap. Floats come and go as fp32.
template <class To, class From>
ARK_FN ark_compute<To> ark_cast(From a) {
  typedef ark_compute<To> result;
  if constexpr (ark_is_bool<From>) {
    // GCC 12 vectorizes conversions of bytes only.
    return ark_cast<To>(__builtin_bit_cast(uint8_t, a));
  } else if constexpr (ark_is_bool<result>) {
    return a != From(0);
  } else if constexpr (ark_is_integer<result> && ark_is_float<From>) {
    // Limits as floats: the upper one rounds up, so it is compared with >=.
    if (!(a == a)) return To(0);
    if (a >= ark_limits<To>::above) return ark_limits<To>::highest;
    if (a <= ark_limits<To>::lowest_float) return ark_limits<To>::lowest;
    return To(a);
  } else if constexpr (ark_is_integer<result>) {
    return To(a);
  } else if constexpr (ark_is_integer<From> && sizeof(From) > sizeof(To)) {
    return ark_round<To>(ark_cast_sticky(a));
  } else {
    return ark_round<To>(float(a));
  }
}
