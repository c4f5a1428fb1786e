// Smallest element of a row; a NaN wins.
template <class T, class Team, class Row>
ARK_FN T ark_reduce_min(const Team& team, const Row& row, int64_t n) {
  return ark_min<T>(team, row, n);
}

// The same of columns.
template <class T, class Columns>
ARK_FN void ark_reduce_min_columns(const Columns& columns, T* totals) {
  columns.fold(totals, ark_highest<T>(), ark_smaller{});
}
