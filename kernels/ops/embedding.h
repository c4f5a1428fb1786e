// Whether an index names a row of the table; if not, the run ends.
ARK_FN bool ark_is_row(const ark_call& call, int32_t index, int64_t rows) {
  if (ARK_LIKELY(index >= 0 && index < rows)) return true;
  ark_fail(call, index, rows);
  return false;
}

// The row of the table that an index names; null if it is outside.
template <class T>
ARK_FN const T* ark_embedding(const ark_call& call, const T* table, int32_t index,
                              const int64_t* extra) {
  const int64_t rows = extra[0], row_stride = extra[1];
  return ark_is_row(call, index, rows) ? table + index * row_stride : nullptr;
}

// The same of a table that is packed as "panels_t" (core/packing.py), where 16 rows lie together
// and 4 bytes of each after one another; element j of the row is at ark_panel_place<T>(j).
template <class T>
ARK_FN const T* ark_embedding_packed(const ark_call& call, const T* table, int32_t index,
                                     const int64_t* extra) {
  constexpr int width = 16, group = 4 / sizeof(T);
  const int64_t rows = extra[0], row_stride = extra[1];
  if (!ark_is_row(call, index, rows)) return nullptr;
  return table + index / width * width * row_stride + index % width * group;
}
template <class T>
ARK_FN int64_t ark_panel_place(int64_t j) {
  constexpr int width = 16, group = 4 / sizeof(T);
  return j / group * group * width + j % group;
}

// Where a part of a table, from row extra[2] on, has the row of an index below extra[3], if
// `is_here`; null if the whole table has no such row.
template <class T>
ARK_FN const T* ark_embedding_part(const ark_call& call, const T* table, int32_t index,
                                   const int64_t* extra, bool* is_here) {
  if (!ark_is_row(call, index, extra[3])) return nullptr;
  *is_here = index >= extra[2] && index < extra[2] + extra[0];
  return *is_here ? ark_embedding(call, table, int32_t(index - extra[2]), extra) : table;
}
template <class T>
ARK_FN const T* ark_embedding_part_packed(const ark_call& call, const T* table, int32_t index,
                                          const int64_t* extra, bool* is_here) {
  if (!ark_is_row(call, index, extra[3])) return nullptr;
  *is_here = index >= extra[2] && index < extra[2] + extra[0];
  return *is_here ? ark_embedding_packed(call, table, int32_t(index - extra[2]), extra) : table;
}
