// Take `input` where the condition is true, else `other`. By masks: with `?:` the compiler would
// load only what it needs, behind a branch, and the loop would not vectorize. Nor does GCC 12
// vectorize what it knows to be a bool, so it is looked at as a byte.
template <class T>
ARK_FN T ark_where(bool condition, T input, T other) {
  const uint32_t mask = 0u - uint32_t(__builtin_bit_cast(uint8_t, condition));
  if constexpr (ark_is_float<T>)
    return ark_from_bits((ark_bits(input) & mask) | (ark_bits(other) & ~mask));
  else if constexpr (ark_is_bool<T>)
    return (condition & input) | (!condition & other);
  else
    return T((uint32_t(input) & mask) | (uint32_t(other) & ~mask));
}
