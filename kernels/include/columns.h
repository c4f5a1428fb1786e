// Reductions of many rows to one on a CPU: of columns side by side in memory, a piece at a time.

template <class T, int DIMS>
struct ark_columns {
  typedef ark_compute<T> value;
  ark_grid<T, DIMS> rows;  // whose element i is the first column of row i
  int64_t n;
  int64_t count;

  ARK_FN const value* row(int64_t i, value* widened) const {
    const T* data = rows.data + rows.offset(i, DIMS);
    if constexpr (sizeof(T) == sizeof(value)) {
      return data;
    } else {
      ark_widen(widened, data, count);
      return widened;
    }
  }

  // Fold the columns, each in the order of its rows. As in rows, blocks are folded by themselves.
  template <class Step>
  ARK_FN void fold(value* totals, value start, const Step& step) const {
    constexpr int64_t room = sizeof(T) == sizeof(value) ? 0 : ARK_PIECE;
    alignas(64) value block[ARK_PIECE], wide[4 * room + 1];
    for (int64_t j = 0; j < count; ++j) totals[j] = start;
    for (int64_t first = 0; first < n; first += ARK_BLOCK) {
      const int64_t stop = n - first < ARK_BLOCK ? n : first + ARK_BLOCK;
      for (int64_t j = 0; j < count; ++j) block[j] = start;
      int64_t i = first;
      for (; i + 4 <= stop; i += 4) {
        const value *a = row(i, wide), *b = row(i + 1, wide + room);
        const value *c = row(i + 2, wide + 2 * room), *d = row(i + 3, wide + 3 * room);
        ARK_INDEPENDENT
        for (int64_t j = 0; j < count; ++j)
          block[j] = step(step(step(step(block[j], a[j]), b[j]), c[j]), d[j]);
      }
      for (; i < stop; ++i) {
        const value* a = row(i, wide);
        ARK_INDEPENDENT
        for (int64_t j = 0; j < count; ++j) block[j] = step(block[j], a[j]);
      }
      for (int64_t j = 0; j < count; ++j) totals[j] = step(totals[j], block[j]);
    }
  }
};
