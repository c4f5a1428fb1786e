// Whether elements differ; NaN differs from everything.
template <class T>
ARK_FN bool ark_not_equal(T a, T b) {
  return a != b;
}
