// Whether `input` is at least `other`.
template <class T>
ARK_FN bool ark_greater_equal(T a, T b) {
  return a >= b;
}
