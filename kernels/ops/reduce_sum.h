// Sum of a row; integers wrap.
template <class T, class Team, class Row>
ARK_FN T ark_reduce_sum(const Team& team, const Row& row, int64_t n) {
  return ark_sum<T>(team, row, n);
}
