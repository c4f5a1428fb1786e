// Mean of a row.
template <class T, class Team, class Row>
ARK_FN T ark_reduce_mean(const Team& team, const Row& row, int64_t n) {
  return ark_sum<T>(team, row, n) / T(n);
}

// The same of columns.
template <class T, class Columns>
ARK_FN void ark_reduce_mean_columns(const Columns& columns, T* totals) {
  columns.fold(totals, T(0), ark_plus{});
  for (int64_t j = 0; j < columns.count; ++j) totals[j] = totals[j] / T(columns.n);
}
