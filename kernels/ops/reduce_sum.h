// Sum of a row; integers wrap.
template <class T, class Team, class Row>
ARK_FN T ark_reduce_sum(const Team& team, const Row& row, int64_t n) {
  return ark_sum<T>(team, row, n);
}

// The same of columns.
template <class T, class Columns>
ARK_FN void ark_reduce_sum_columns(const Columns& columns, T* totals) {
  columns.fold(totals, T(0), ark_plus{});
}
