// Index of the largest element of a row: the first of equals, the first NaN.
template <class T, class Team, class Row>
ARK_FN int32_t ark_argmax(const Team& team, const Row& row, int64_t n) {
  const T top = ark_max<T>(team, row, n);
  return int32_t(ark_find(team, row, n, [&](T x) { return x == top || x != x; }));
}
