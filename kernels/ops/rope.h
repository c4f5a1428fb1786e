// Rotate pairs of a row: a + bi times cos + sin i, the angles given as pairs (cos, sin).

// The row of the table for each row of `out`: where positions are given, position + t,
template <class Table, class Position, class Out>
struct ark_rope_table {
  const Table& table;
  const Position& position;
  const Out& out;

  // Whether all rows are there; if not, the run ends.
  ARK_FN bool check(const ark_call& call) const {
    const int64_t count = table.size(0);
    for (int64_t b = 0; b < out.size(0); ++b) {
      const int64_t first = ark_of_row(position, b) + out.start(1);
      if (first >= 0 && first + out.size(1) <= count) continue;
      ark_fail(call, first < 0 || first > count ? first : count, count);
      return false;
    }
    return true;
  }
  template <class At>
  ARK_FN int64_t offset(const At& at) const {
    return (ark_of_row(position, at.index[0]) + out.start(1) + at.index[1]) * table.stride(0);
  }
};

// or else the one that broadcasting gives.
template <class Table, class Out>
struct ark_rope_table<Table, ark_absent, Out> {
  const Table& table;
  const ark_absent& position;
  const Out& out;

  template <class At>
  ARK_FN int64_t offset(const At& at) const {
    constexpr int skipped = Out::dims - Table::dims;
    int64_t sum = 0;
    for (int d = 0; d < Table::dims - 1; ++d)
      if (table.size(d) > 1) sum += at.index[d + skipped] * table.stride(d);
    return sum;
  }
};

// One pair: elements `first` and `second` of x, in steps of their tensors.
template <class A, class T, class Y>
ARK_FN void ark_rope_pair(const T* x, Y* y, const A* angle, int64_t angle_step, int64_t first,
                          int64_t second, int64_t x_step, int64_t y_step) {
  const float a = ark_load<T>(x[first * x_step]), b = ark_load<T>(x[second * x_step]);
  const float c = ark_load<A>(angle[0]), s = ark_load<A>(angle[angle_step]);
  y[first * y_step] = ark_store<Y>(a * c - b * s);
  y[second * y_step] = ark_store<Y>(b * c + a * s);
}

#if !defined(ARK_GPU)
// All pairs of a row, as fp32 in pieces; of rows that are side by side in memory.
template <class A, class T, class Y>
ARK_FN void ark_rope_row(const T* x, Y* y, const A* angles, int64_t half, bool interleaved) {
  float values[ARK_PIECE], turned[ARK_PIECE], factors[ARK_PIECE];
  ark_widen(values, x, 2 * half);
  ark_widen(factors, angles, 2 * half);
  if (interleaved) {
    ARK_INDEPENDENT
    for (int64_t i = 0; i < half; ++i)
      ark_rope_pair(values, turned, factors + 2 * i, 1, 2 * i, 2 * i + 1, 1, 1);
  } else {
    ARK_INDEPENDENT
    for (int64_t i = 0; i < half; ++i)
      ark_rope_pair(values, turned, factors + 2 * i, 1, i, i + half, 1, 1);
  }
  ark_narrow(y, turned, 2 * half);
}
#endif

template <class Team, class T, class Y, class A, int DIMS, int TABLE_DIMS, class Position>
ARK_FN void ark_rope(const Team& team, const ark_call& call, const ark_tile<const T, DIMS>& in,
                     const ark_tile<const A, TABLE_DIMS>& table, const Position& position,
                     const ark_tile<Y, DIMS>& out, bool interleaved) {
  const ark_rope_table<ark_tile<const A, TABLE_DIMS>, Position, ark_tile<Y, DIMS>> rows{
      table, position, out};
  if constexpr (ark_is_given<Position>) {
    if (!rows.check(call)) return;
  }
  constexpr int last = DIMS - 1;
  const int64_t half = table.size(TABLE_DIMS - 1) / 2, rest = out.size(last) - 2 * half;
  const int64_t x_step = in.stride(last), y_step = out.stride(last);
  const int64_t angle_step = table.stride(TABLE_DIMS - 1);
  const int64_t row_count = ark_quotient(out.count(), out.size(last));
  const bool is_plain = x_step == 1 && y_step == 1 && angle_step == 1;
#if !defined(ARK_GPU)
  constexpr bool is_narrow = sizeof(T) + sizeof(Y) + sizeof(A) < 3 * sizeof(float);
  if (is_narrow && is_plain && 2 * half <= ARK_PIECE) {
    for (int64_t row = 0; row < row_count; ++row) {
      const ark_position<DIMS> at(out, row);
      const A* angles = table.data + rows.offset(at);
      ark_rope_row(in.data + at.in(in), out.data + at.in(out), angles, half, interleaved);
    }
  } else
#endif
  ark_each_cell(team, row_count, half, [&](int64_t row) {
    const ark_position<DIMS> at(out, row);
    const T* x = in.data + at.in(in);
    Y* y = out.data + at.in(out);
    const A* angles = table.data + rows.offset(at);
    return [=](int64_t i) {
      const int64_t first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + half;
      if (is_plain)
        ark_rope_pair(x, y, angles + 2 * i, 1, first, second, 1, 1);
      else
        ark_rope_pair(x, y, angles + 2 * i * angle_step, angle_step, first, second, x_step,
                      y_step);
    };
  });
  ark_each_cell(team, row_count, rest, [&](int64_t row) {
    const ark_position<DIMS> at(out, row);
    const T* x = in.data + at.in(in) + 2 * half * x_step;
    Y* y = out.data + at.in(out) + 2 * half * y_step;
    return [=](int64_t i) { y[i * y_step] = ark_store<Y>(ark_load<T>(x[i * x_step])); };
  });
}
