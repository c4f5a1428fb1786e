// The row of the table that an index names; null, with the run ended, if it is outside.
template <class T>
ARK_FN const T* ark_embedding(const ark_call& call, const T* table, int32_t index,
                              const int64_t* extra) {
  const int64_t rows = extra[0], row_stride = extra[1];
  if (ARK_LIKELY(index >= 0 && index < rows)) return table + index * row_stride;
  ark_fail(call, index, rows);
  return nullptr;
}
