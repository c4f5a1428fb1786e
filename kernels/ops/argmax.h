// Index of the largest element of a row: the first of equals, the first NaN.
template <class T, class Row>
ARK_FN int32_t ark_argmax(const Row& row, int64_t n) {
  const T top = ark_max<T>(row, n);
  for (int64_t i = 0; i < n; ++i) {
    const T x = row(i);
    if (x == top || x != x) return int32_t(i);
  }
  return 0;
}
