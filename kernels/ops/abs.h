// The magnitude; the lowest integer stays.
template <class T>
ARK_FN T ark_abs(T a) {
  if constexpr (ark_is_float<T>)
    return ark_magnitude(a);
  else
    return a < T(0) ? T(0u - uint32_t(a)) : a;
}
