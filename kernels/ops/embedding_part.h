// Rows `first` and on of a table of `rows` are here; all others give zeros.
template <class Team, class T, int IN, int OUT>
ARK_FN void ark_embedding_part(const Team& team, const ark_call& call,
                               const ark_tile<const int32_t, IN>& index,
                               const ark_tile<const T, 2>& table, const ark_tile<T, OUT>& out,
                               int64_t first, int64_t rows) {
  static_assert(OUT == IN + 1, "a row for each index");
  const int64_t from_step = table.stride(1), to_step = out.stride(IN);
  ark_each_row(team, out, [&](const ark_position<OUT>& at) {
    int64_t place = 0;
    for (int d = 0; d < IN; ++d) place += at.index[d] * index.stride(d);
    const int64_t i = index.data[place];
    if (!ARK_LIKELY(i >= 0 && i < rows)) ark_fail(call, i, rows);
    const bool is_here = i >= first && i < first + table.size(0);
    const T* from = table.data + (is_here ? (i - first) * table.stride(0) : 0);
    T* to = out.data + at.in(out);
    return [=](int64_t j) { to[j * to_step] = is_here ? from[j * from_step] : T{}; };
  });
}
