// Matrix multiplication. B is read in panels of 16 columns, which packed weights are stored in
// (core/packing.py) and other operands are copied into, block by block.

#include "include/micro.h"
#include "include/int8.h"
#include "include/amx.h"

constexpr int64_t ARK_STREAM_COLUMNS = 1024;
// Depth of a block of panels that stay in the second cache while all rows pass; and of a block that
// is copied, which costs the cache twice.
constexpr int64_t ARK_DEPTH = 1024, ARK_COPIED_DEPTH = 256;
// Rows of a block; kernels/cpu_matmul.py knows these.
constexpr int64_t ARK_MATMUL_MOST_ROWS = 240;
static_assert(ARK_COLUMNS == 64 && ARK_COPIED_DEPTH == 256 && ARK_MICRO_ROWS == 6 &&
              ARK_MATMUL_MOST_ROWS == 240 && ARK_STREAM_COLUMNS <= 18 * ARK_COLUMNS);

// Sizes and strides (elements) of one tile: a[m, k] * b[k, n], and the rows of a block. Of a packed
// B the strides hold for whole panels, and whole pairs of k if it has pairs.
struct ark_matmul_shape {
  int64_t m, n, k, a_m, a_k, b_k, b_n, rows;
};

ARK_FN ark_matmul_shape ark_matmul_params(const int64_t* extra) {
  return {extra[0], extra[1], extra[2], extra[3], extra[4], extra[5], extra[6], extra[7]};
}

// Copy row r of A, all of its depth, through the prologue.
template <class E, class T, class Prologue>
ARK_FN void ark_matmul_copy_line(E* to, const T* a, const ark_matmul_shape& s, int64_t r,
                                 const Prologue& prologue) {
  if constexpr (ark_is_same<E, T> && Prologue::is_empty) {
    if (s.a_k == 1)
      __builtin_memcpy(to, a, s.k * sizeof(E));
    else
      for (int64_t p = 0; p < s.k; ++p) to[p] = a[p * s.a_k];
    return;
  }
  for (int64_t first = 0; first < s.k; first += ARK_PIECE) {
    const int64_t count = ark_piece(s.k - first);
    float piece[ARK_PIECE];
    ark_load_row(piece, a + first * s.a_k, count, s.a_k);
    if constexpr (!Prologue::is_empty) {
      ARK_INDEPENDENT
      for (int64_t j = 0; j < count; ++j) piece[j] = prologue(r, first + j, piece[j]);
    }
    ark_narrow(to + first, piece, count);
  }
}

// Copy rows of A; a last pair is filled up with 0.
template <class E, class T, class Prologue>
ARK_FN void ark_matmul_copy_a(E* to, int64_t to_stride, const T* a, const ark_matmul_shape& s,
                              int64_t rows, const Prologue& prologue) {
  for (int64_t r = 0; r < rows; ++r, to += to_stride, a += s.a_m) {
    ark_matmul_copy_line(to, a, s, r, prologue);
    for (int64_t p = s.k; p < to_stride; ++p) to[p] = ark_store<E>(0.0f);
  }
}

template <class E, class T>
ARK_FN E ark_matmul_as(T x) {
  if constexpr (ark_is_same<E, T>)
    return x;
  else
    return ark_store<E>(ark_load<T>(x));
}

// Copy a whole row of a panel, whose elements are `pair` apart there.
template <int PAIR, class E, class T>
ARK_FN void ark_matmul_copy_row(E* to, const T* from) {
  if constexpr (PAIR == 1 && !ark_is_same<E, T>)
    ark_widen_panel(to, from);
  else
    for (int j = 0; j < ARK_PANEL; ++j) to[j * PAIR] = ark_matmul_as<E>(from[j]);
}

// Copy a block of a row-major or turned B into panels, filled up with 0 and to pairs of T.
template <class E, class T>
ARK_PART void ark_matmul_copy_b(E* to, const T* b, int64_t b_k, int64_t b_n, int64_t depth,
                                int64_t columns) {
  constexpr int pair = ARK_PAIR<E>;
  const int64_t padded = ark_whole(depth, ARK_PAIR<T>);
  for (int64_t j0 = 0; j0 < columns; j0 += ARK_PANEL, b += ARK_PANEL * b_n) {
    const int64_t width = columns - j0 < ARK_PANEL ? columns - j0 : ARK_PANEL;
    const auto row = [&](int64_t p) { return to + p / pair * pair * ARK_PANEL + p % pair; };
    if (width < ARK_PANEL || padded > depth)
      for (int64_t i = 0; i < padded * ARK_PANEL; ++i) to[i] = ark_store<E>(0.0f);
    if (b_n == 1 && width == ARK_PANEL)
      for (int64_t p = 0; p < depth; ++p) ark_matmul_copy_row<pair>(row(p), b + p * b_k);
    else
      for (int64_t j = 0; j < width; ++j)
        for (int64_t p = 0; p < depth; ++p)
          row(p)[j * pair] = ark_matmul_as<E>(b[p * b_k + j * b_n]);
    to += padded * ARK_PANEL;
  }
}

// Copy a block of packed pairs, or groups, into panels of what is multiplied.
template <class E, class T>
ARK_PART void ark_matmul_widen_b(E* to, const T* b, int64_t panel_stride, int64_t depth,
                                 int64_t columns) {
  const int64_t size = ark_whole(depth, ARK_PAIR<T>) * ARK_PANEL;
  for (int64_t j0 = 0; j0 < columns; j0 += ARK_PANEL, b += panel_stride, to += size)
    ark_matmul_widen_panel(to, b, depth);
}

ARK_FN float ark_matmul_relu(float x) { return x < 0 ? 0 : x; }

// What happens to an element of A on the way in: nothing,
struct ark_matmul_no_prologue {
  static constexpr bool is_empty = true;
  template <class Row>
  ARK_FN void prepare(int64_t, const Row&, int64_t) {}
  ARK_FN float operator()(int64_t, int64_t, float x) const { return x; }
};

// or the normalization of its row, with the norm's weight and bias along it.
template <class Norm, class Weight, class Bias>
struct ark_matmul_norm {
  static constexpr bool is_empty = false;
  Norm norm;
  Weight weight;
  Bias bias;
  ark_affine rows[ARK_MATMUL_MOST_ROWS];
  template <class Row>
  ARK_FN void prepare(int64_t i, const Row& row, int64_t n) {
    rows[i] = norm(row, n);
  }
  ARK_FN float operator()(int64_t i, int64_t k, float x) const {
    return ark_normalize(rows[i], x, k, weight, bias);
  }
};

// Rows that vectors take, where there are tiles for more.
constexpr int64_t ARK_MATMUL_FEW = ARK_MICRO_ROWS;

// Rows that read packed B in place: all, if it is as it is multiplied. A narrower type is widened
// on the way, for each micro tile again, which bf16 from int8 is worth more often than not.
template <class E, class T>
ARK_FN constexpr int64_t ark_matmul_most_direct() {
  if (ark_is_same<E, T>) return ARK_MATMUL_MOST_ROWS;
  if (!ark_is_same<E, typename ark_matmul_types<E, T>::element>) return 0;
  return ark_is_same<E, float> ? ARK_MATMUL_FEW : 3 * ARK_MICRO_ROWS;
}

// to[rows][columns] of ARK_COLUMNS = a * b or +=; compiled once for all task functions.
template <class E, class B>
ARK_PART void ark_matmul_sums(float* to, const ark_matmul_block<E, B>& block, int64_t rows,
                              int64_t columns, bool is_first) {
  constexpr bool is_tiled = ark_is_same<E, B> && ark_amx_multiplies<E>;
  constexpr bool is_vector = ark_is_same<E, typename ark_matmul_types<E, B>::element>;
  if constexpr (is_tiled)
    if (!is_vector || rows > ARK_MATMUL_FEW)
      return ark_amx_sums(to, block, rows, columns, is_first);
  if constexpr (is_vector)
    ark_matmul_tiles(to, block, rows, (columns + ARK_PANEL - 1) / ARK_PANEL, is_first);
}

// A as micro tiles read it: where it is, or a copy.
template <class E>
struct ark_matmul_a {
  const E* data;
  int64_t stride;
};

template <class E, class T, class Prologue>
ARK_FN ark_matmul_a<E> ark_matmul_left(E* copy, int64_t copy_stride, const T* a,
                                       const ark_matmul_shape& s, int64_t rows,
                                       const Prologue& prologue) {
  if constexpr (ark_is_same<E, T> && Prologue::is_empty)
    if (s.a_k == 1 && copy_stride == s.k) return {a, s.a_m};
  ark_matmul_copy_a(copy, copy_stride, a, s, rows, prologue);
  return {copy, copy_stride};
}

// B as it is given, row-major or turned, or `IS_PACKED`: in panels; and what A is, once a prologue
// has rounded it.
template <class LEFT, class T, bool IS_PACKED>
struct ark_matmul_b {
  typedef T type;
  typedef ark_matmul_types<LEFT, T> types;
  static constexpr bool is_packed = IS_PACKED;
  const T* data;

  // sums = left * some columns of B along all of the depth; `copy` is memory for panels.
  template <class E>
  ARK_FN void multiply(float* sums, const ark_matmul_a<E>& left, E* copy,
                       const ark_matmul_shape& s, int64_t rows, int64_t column,
                       int64_t columns) const {
    const bool is_direct = IS_PACKED && rows <= ark_matmul_most_direct<E, T>();
    const int64_t most = is_direct ? ARK_DEPTH : ARK_COPIED_DEPTH;
    for (int64_t first = 0; first == 0 || first < s.k; first += most) {
      const int64_t depth = s.k - first < most ? s.k - first : most;
      const E* a = left.data + first;
      const T* b = data + first * s.b_k + column * s.b_n;
      if constexpr (IS_PACKED) {
        if (is_direct) {
          const ark_matmul_block<E, T> block{a, left.stride, b, ARK_PANEL * s.b_n, depth};
          ark_matmul_sums(sums, block, rows, columns, first == 0);
          continue;
        }
      }
      if constexpr (!IS_PACKED)
        ark_matmul_copy_b(copy, b, s.b_k, s.b_n, depth, columns);
      else if constexpr (!ark_is_same<E, T>)
        ark_matmul_widen_b(copy, b, ARK_PANEL * s.b_n, depth, columns);
      const int64_t panel = ARK_PANEL * ark_whole(depth, ARK_PAIR<T>);
      ark_matmul_sums(sums, ark_matmul_block<E>{a, left.stride, copy, panel, depth}, rows, columns,
                      first == 0);
    }
  }
};

// Few rows of a B in no panels: stream it once and keep the sums of the columns in cache.
template <class TA, class TB, class Prologue, class Epilogue>
ARK_FN void ark_matmul_stream(float* sums, float* row, const TA* a, const TB* b,
                              const ark_matmul_shape& s, Prologue& prologue,
                              const Epilogue& epilogue) {
  for (int64_t i = 0; i < s.m; ++i, a += s.a_m) {
    prologue.prepare(0, ark_row<TA>{a, s.a_k}, s.k);
    ark_matmul_copy_a(row, s.k, a, s, 1, prologue);
    for (int64_t j0 = 0; j0 < s.n; j0 += ARK_STREAM_COLUMNS) {
      const int64_t left = s.n - j0, columns = left < ARK_STREAM_COLUMNS ? left : ARK_STREAM_COLUMNS;
      const TB* block = b + j0 * s.b_n;
      for (int64_t j = 0; j < columns; ++j) sums[j] = 0;
      if (s.b_n == 1) {
        for (int64_t p = 0; p < s.k; ++p, block += s.b_k) {
          ARK_INDEPENDENT
          for (int64_t j = 0; j < columns; ++j) sums[j] += row[p] * ark_load<TB>(block[j]);
        }
      } else {
        for (int64_t j = 0; j < columns; ++j, block += s.b_n) {
          const ark_row<TB> line{block, s.b_k};
          const auto product = [&](int64_t p) { return row[p] * line(p); };
          sums[j] = ark_sum<float>(ark_team{}, product, s.k);
        }
      }
      epilogue(i, j0, sums, columns);
    }
  }
}

// Rows that make copying B into panels worth its while.
constexpr int64_t ARK_MATMUL_MIN_ROWS = 4;

// Products of elements of type E. Scratch memory: sums of all rows of a block, a copy of B's panels,
// a copy of A's rows.
template <class E, class TA, class B, class Prologue, class Epilogue>
ARK_FN void ark_matmul_blocks(float* scratch, const TA* a, const B& b, const ark_matmul_shape& s,
                              Prologue& prologue, const Epilogue& epilogue) {
  float* sums = scratch;
  E* copied_b = reinterpret_cast<E*>(sums + s.rows * ARK_COLUMNS);
  E* copied_a = reinterpret_cast<E*>(sums + s.rows * ARK_COLUMNS + ARK_COLUMNS * ARK_COPIED_DEPTH);
  constexpr int pair = ARK_PAIR<E>, group = ARK_PAIR<typename B::type>;
  const int64_t a_stride = ark_whole(s.k, pair > 1 && group > pair ? group : pair);
  for (int64_t i0 = 0; i0 < s.m; i0 += s.rows, a += s.rows * s.a_m) {
    const int64_t rows = s.m - i0 < s.rows ? s.m - i0 : s.rows;
    for (int64_t i = 0; i < rows; ++i)
      prologue.prepare(i, ark_row<TA>{a + i * s.a_m, s.a_k}, s.k);
    const ark_matmul_a<E> left = ark_matmul_left(copied_a, a_stride, a, s, rows, prologue);
    for (int64_t j0 = 0; j0 < s.n; j0 += ARK_COLUMNS) {
      const int64_t columns = s.n - j0 < ARK_COLUMNS ? s.n - j0 : ARK_COLUMNS;
      b.multiply(sums, left, copied_b, s, rows, j0, columns);
      for (int64_t i = 0; i < rows; ++i) epilogue(i0 + i, j0, sums + i * ARK_COLUMNS, columns);
    }
  }
}

template <class TA, class B, class Prologue, class Epilogue>
ARK_FN void ark_matmul(float* scratch, const TA* a, const B& b, const ark_matmul_shape& s,
                       Prologue prologue, const Epilogue& epilogue) {
  typedef typename B::types types;
  typedef typename types::type T;
  if (!B::is_packed && s.m < ARK_MATMUL_MIN_ROWS) {
    float* row = scratch + ARK_STREAM_COLUMNS;
    return ark_matmul_stream(scratch, row, a, b.data, s, prologue, epilogue);
  }
  if constexpr (ark_amx_multiplies<T>)
    if (ark_amx_has<T>() && s.m > ARK_MATMUL_FEW)
      return ark_matmul_blocks<T>(scratch, a, b, s, prologue, epilogue);
  ark_matmul_blocks<typename types::element>(scratch, a, b, s, prologue, epilogue);
}
