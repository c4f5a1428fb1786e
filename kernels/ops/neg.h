// Change the sign; integers wrap.
template <class T>
ARK_FN T ark_neg(T a) {
  if constexpr (ark_is_float<T>)
    return -a;
  else
    return T(0u - uint32_t(a));
}
