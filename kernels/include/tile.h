// Operands as functions of the frame "tile" see them.

// An optional tensor that was left out.
struct ark_absent {};

// The part of a tensor that a task touches. Indices count from the part's first element;
// `start` says where that is in the tensor.
template <class T, int DIMS>
struct ark_tile {
  typedef T type;
  static constexpr int dims = DIMS;
  T* data;
  const int64_t* meta;

  // Operand `operand` of a call; its integers begin at parameter `first`.
  ARK_FN ark_tile(const ark_call& call, int operand, int first)
      : data(ark_operand<T>(call, operand)), meta(call.params + first) {}

  ARK_FN int64_t start(int d) const { return ark_param(meta + d); }
  ARK_FN int64_t size(int d) const { return ark_param(meta + DIMS + d); }
  ARK_FN int64_t stride(int d) const { return ark_param(meta + 2 * DIMS + d); }

  // Elements in all dimensions.
  ARK_FN int64_t count() const {
    int64_t product = 1;
    for (int d = 0; d < DIMS; ++d) product *= size(d);
    return product;
  }

  // The element at one index per dimension.
  template <class... Index>
  ARK_FN T& at(Index... index) const {
    static_assert(sizeof...(Index) == DIMS, "one index per dimension");
    const int64_t position[DIMS + 1] = {int64_t(index)..., 0};
    int64_t offset = 0;
    for (int d = 0; d < DIMS; ++d) offset += position[d] * stride(d);
    return data[offset];
  }
};

// The value for row `row` of a batch, of one value for all rows or one for each.
template <class T, int DIMS>
ARK_FN T ark_of_row(const ark_tile<const T, DIMS>& values, int64_t row) {
  static_assert(DIMS <= 1, "one value, or one per row");
  if constexpr (DIMS == 0)
    return values.data[0];
  else
    return values.data[(values.size(0) > 1 ? row : 0) * values.stride(0)];
}

// Where a row of a tile begins: an index whose last number is 0.
template <int DIMS>
struct ark_position {
  int64_t index[DIMS + 1];

  // Row `row` of a tile, counting them in order.
  template <class T>
  ARK_FN ark_position(const ark_tile<T, DIMS>& tile, int64_t row) {
    index[DIMS > 0 ? DIMS - 1 : 0] = 0;
    for (int d = DIMS - 2; d > 0; --d) {
      index[d] = ark_remainder(row, tile.size(d));
      row = ark_quotient(row, tile.size(d));
    }
    if (DIMS > 1) index[0] = row;
  }

  // The elements from the start of a tile to here.
  template <class T>
  ARK_FN int64_t in(const ark_tile<T, DIMS>& tile) const {
    int64_t offset = 0;
    for (int d = 0; d < DIMS - 1; ++d) offset += index[d] * tile.stride(d);
    return offset;
  }
};

// line(row)(column) for all rows and columns, spread over the team; the calls must not depend on
// each other. One thread asks for each line once, many threads for each cell.
template <class Team, class Line>
ARK_FN void ark_each_cell(const Team& team, int64_t rows, int64_t columns, const Line& line) {
  if (columns >= Team::size) {
    for (int64_t row = 0; row < rows; ++row) team.each(columns, line(row));
  } else {
    team.each(rows * columns, [&](int64_t i) {
      line(ark_quotient(i, columns))(ark_remainder(i, columns));
    });
  }
}

// line(position)(column) for the rows of a tile, along its last dimension.
template <class Team, class T, int DIMS, class Line>
ARK_FN void ark_each_row(const Team& team, const ark_tile<T, DIMS>& tile, const Line& line) {
  const int64_t columns = DIMS > 0 ? tile.size(DIMS > 0 ? DIMS - 1 : 0) : 1;
  int64_t rows = 1;
  for (int d = 0; d < DIMS - 1; ++d) rows *= tile.size(d);
  ark_each_cell(team, rows, columns,
                [&](int64_t row) { return line(ark_position<DIMS>(tile, row)); });
}

// Copy a tile to another one of its shape; they must not share memory.
template <class Team, class T, int DIMS>
ARK_FN void ark_copy_tile(const Team& team, const ark_tile<const T, DIMS>& from,
                          const ark_tile<T, DIMS>& to) {
  constexpr int last = DIMS > 0 ? DIMS - 1 : 0;
  const int64_t from_step = DIMS > 0 ? from.stride(last) : 0;
  const int64_t to_step = DIMS > 0 ? to.stride(last) : 0;
  ark_each_row(team, to, [&](const ark_position<DIMS>& at) {
    const T* source = from.data + at.in(from);
    T* target = to.data + at.in(to);
    return [=](int64_t j) { target[j * to_step] = source[j * from_step]; };
  });
}
