// Call put(i, sum of elements up to i) for all i in [first, end), where `total` is the sum of
// those before; returns the last sum. Each block is summed by itself: sums stay as exact as the
// blocks are few and short.
template <class T, class Row, class Put>
ARK_FN T ark_cumsum_part(const Row& row, int64_t first, int64_t end, T total, const Put& put) {
  while (first < end) {
    const int64_t stop = end - first < ARK_BLOCK ? end : first + ARK_BLOCK;
    T block = 0;
    for (; first < stop; ++first) {
      block = T(block + row(first));
      put(first, T(total + block));
    }
    total = T(total + block);
  }
  return total;
}

// Running sums along one dimension of a tile; the sum's type is that of arithmetic.
template <class Team, class From, class To, int DIMS>
ARK_FN void ark_cumsum(const Team& team, const ark_call&, const ark_tile<From, DIMS>& in,
                       const ark_tile<To, DIMS>& out, int64_t axis) {
  typedef ark_compute<To> sum;
  const int along = int(axis < 0 ? axis + DIMS : axis);
  const int64_t n = in.size(along), rows = ark_quotient(in.count(), n);
  const auto row_start = [&](const auto& tile, int64_t row) {
    int64_t offset = 0;
    for (int d = DIMS - 1; d >= 0; --d) {
      if (d == along) continue;
      offset += ark_remainder(row, tile.size(d)) * tile.stride(d);
      row = ark_quotient(row, tile.size(d));
    }
    return tile.data + offset;
  };
  const auto scan = [&](int64_t r, int64_t first, int64_t end, sum total) {
    To* to = row_start(out, r);
    const int64_t step = out.stride(along);
    ark_cumsum_part(ark_row<To>{row_start(in, r), in.stride(along)}, first, end, total,
                    [&](int64_t i, sum value) { to[i * step] = ark_store<To>(value); });
  };
  if (rows >= Team::size) {
    team.each(rows, [&](int64_t r) { scan(r, 0, n, sum(0)); });
    return;
  }
  // Few rows: each member takes a piece of every row, and needs the sum of the pieces before.
  const int64_t piece = (n + Team::size - 1) / Team::size;
  const int64_t first = team.rank() * piece < n ? team.rank() * piece : n;
  const int64_t end = first + piece < n ? first + piece : n;
  for (int64_t r = 0; r < rows; ++r) {
    const ark_row<To> row{row_start(in, r), in.stride(along)};
    const sum mine = ark_cumsum_part(row, first, end, sum(0), [](int64_t, sum) {});
    const auto add = [](sum a, sum b) { return sum(a + b); };
    scan(r, first, end, team.scan_exclusive(mine, add, sum(0)));
  }
}
