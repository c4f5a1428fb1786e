// Sum of a row.
template <class T, class Row>
ARK_FN T ark_reduce_sum(const Row& row, int64_t n) {
  return ark_sum<T>(row, n);
}
