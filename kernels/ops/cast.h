// Convert to another dtype: floats to integers cut the fraction off and stop at the
// integer's range, NaN becomes 0; integers to narrower integers wrap.
template <class To, class From>
ARK_FN To ark_cast(From a) {
  if constexpr (ark_is_bool<To>) {
    return a != From(0);
  } else if constexpr (ark_is_integer<To> && ark_is_float<From>) {
    // Limits as floats: the upper one rounds up, so it is compared with >=.
    if (!(a == a)) return To(0);
    if (a >= ark_limits<To>::above) return ark_limits<To>::highest;
    if (a <= ark_limits<To>::lowest_float) return ark_limits<To>::lowest;
    return To(a);
  } else {
    return To(a);
  }
}
