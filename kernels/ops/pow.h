// a^b by squaring in unsigned arithmetic, which wraps; b has that many BITS. A recursion and not a
// loop, so that the loop around it vectorizes.
template <int BITS>
ARK_FN uint32_t ark_pow_wrapped(uint32_t a, uint32_t b) {
  if constexpr (BITS == 0)
    return 1;
  else
    return (b & 1 ? a : 1) * ark_pow_wrapped<BITS - 1>(a * a, b >> 1);
}

// a^b; integers wrap, and of their negative powers only those of 1 and -1 are not 0.
template <class T>
ARK_FN T ark_pow(T a, T b) {
  if constexpr (ark_is_float<T>) {
    return ark_pow_float(a, b);
  } else {
    // Unsigned numbers have no negative powers: that their highest one looks like -1 is no harm.
    const bool is_inverse = b < T(0), has_inverse = (a == T(1)) | (a == T(-1));
    const uint32_t power = is_inverse ? uint32_t(b) & 1 : uint32_t(b);
    const T value = T(ark_pow_wrapped<8 * sizeof(T)>(uint32_t(a), power));
    return is_inverse & !has_inverse ? T(0) : value;
  }
}
