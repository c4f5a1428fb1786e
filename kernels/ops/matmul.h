// Matrix multiplication. B is read in panels of 16 columns, which packed weights are stored in
// (core/packing.py) and other operands are copied into, block by block. A micro tile of a few rows
// by a few panels accumulates in registers over all of a block's depth, in fp32.

#if defined(__AVX512F__)
#define ARK_VECTOR_BYTES 64
#elif defined(__AVX__)
#define ARK_VECTOR_BYTES 32
#else
#define ARK_VECTOR_BYTES 16
#endif
#if defined(__clang__)
#define ARK_UNROLL _Pragma("unroll")
#else
#define ARK_UNROLL _Pragma("GCC unroll 16")
#endif

typedef float ark_vector __attribute__((vector_size(ARK_VECTOR_BYTES), aligned(4)));
constexpr int ARK_VECTOR = ARK_VECTOR_BYTES / 4;
// Columns of a panel, and its vectors.
constexpr int ARK_PANEL = 16;
constexpr int ARK_PANEL_VECTORS = ARK_PANEL / ARK_VECTOR;
// The rows and panels of a micro tile: its sums, a vector of A and those of B
// fit the registers (32 with AVX-512, else 16).
constexpr int ARK_MICRO_ROWS = 6;
constexpr int ARK_MICRO_PANELS = ARK_VECTOR == 16 ? 4 : 1;
// Columns that go through the epilogue at a time.
constexpr int64_t ARK_COLUMNS = 64;
constexpr int64_t ARK_STREAM_COLUMNS = 1024;
// Depth of a block of panels that stay in the second cache while all rows pass; and of a block that
// is copied, which costs the cache twice.
constexpr int64_t ARK_DEPTH = 1024, ARK_COPIED_DEPTH = 256;
// Rows of a block; kernels/cpu_matmul.py knows these.
constexpr int64_t ARK_MATMUL_MOST_ROWS = 240;
static_assert(ARK_COLUMNS == 64 && ARK_COPIED_DEPTH == 256 && ARK_MICRO_ROWS == 6 &&
              ARK_MATMUL_MOST_ROWS == 240 && ARK_STREAM_COLUMNS <= 18 * ARK_COLUMNS);

ARK_FN int64_t ark_whole(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// Sizes and strides (elements) of one tile: a[m, k] * b[k, n], and the rows of a block. Of a packed
// B the strides hold for whole panels, and whole pairs of k if it has pairs.
struct ark_matmul_shape {
  int64_t m, n, k, a_m, a_k, b_k, b_n, rows;
};

ARK_FN ark_matmul_shape ark_matmul_params(const int64_t* extra) {
  return {extra[0], extra[1], extra[2], extra[3], extra[4], extra[5], extra[6], extra[7]};
}

template <class A, class B>
constexpr bool ark_is_same = false;
template <class A>
constexpr bool ark_is_same<A, A> = true;

// What micro tiles multiply: fp32, or pairs of bf16 where the processor adds up their products.
template <class T>
struct ark_matmul_element_of {
  typedef float type;
};
// Elements of a panel's column that lie side by side.
template <class T>
constexpr int ARK_PAIR = 4 / sizeof(T);

ARK_FN const ark_vector& ark_vector_at(const float* row, int v) {
  return *reinterpret_cast<const ark_vector*>(row + v * ARK_VECTOR);
}
ARK_FN ark_vector& ark_vector_at(float* row, int v) {
  return *reinterpret_cast<ark_vector*>(row + v * ARK_VECTOR);
}

// ROWS x PANELS panels of sums, kept in registers.
template <int ROWS, int PANELS>
struct ark_micro_sums {
  static constexpr int vectors = PANELS * ARK_PANEL_VECTORS;
  ark_vector c[ROWS][vectors];

  ARK_FN void clear() {
    ARK_UNROLL
    for (int i = 0; i < ROWS; ++i)
      ARK_UNROLL
      for (int v = 0; v < vectors; ++v) c[i][v] = ark_vector{};
  }
  ARK_FN void load(const float* sums) {
    ARK_UNROLL
    for (int i = 0; i < ROWS; ++i)
      ARK_UNROLL
      for (int v = 0; v < vectors; ++v) c[i][v] = ark_vector_at(sums + i * ARK_COLUMNS, v);
  }
  ARK_FN void store(float* sums) const {
    ARK_UNROLL
    for (int i = 0; i < ROWS; ++i)
      ARK_UNROLL
      for (int v = 0; v < vectors; ++v)
        ark_vector_at(sums + i * ARK_COLUMNS, v) = c[i][v];
  }
};

// Rows of A and panels of B as micro tiles read them.
template <class E>
struct ark_matmul_block {
  const E* a;
  int64_t a_stride;
  const E* b;
  int64_t panel_stride;
  int64_t depth;
};

// sums += a * b along the block's depth.
template <int ROWS, int PANELS>
ARK_FN void ark_matmul_products(ark_micro_sums<ROWS, PANELS>& sums,
                                const ark_matmul_block<float>& block) {
  constexpr int vectors = ark_micro_sums<ROWS, PANELS>::vectors;
  const float *a = block.a, *b = block.b;
  for (int64_t p = 0; p < block.depth; ++p, ++a, b += ARK_PANEL) {
    ark_vector x[vectors];
    ARK_UNROLL
    for (int v = 0; v < vectors; ++v)
      x[v] = ark_vector_at(b + v / ARK_PANEL_VECTORS * block.panel_stride, v % ARK_PANEL_VECTORS);
    ARK_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      const float y = a[i * block.a_stride];
      ARK_UNROLL
      for (int v = 0; v < vectors; ++v) sums.c[i][v] += y * x[v];
    }
  }
}

#if defined(__AVX512BF16__)
template <>
struct ark_matmul_element_of<ark_bf16> {
  typedef ark_bf16 type;
};

typedef int ark_pairs __attribute__((vector_size(64), aligned(4)));

ARK_FN ark_pairs ark_every_pair(const ark_bf16* pair) {
  ark_pairs result;
  asm("vpbroadcastd %1, %0" : "=v"(result) : "m"(*reinterpret_cast<const int*>(pair)));
  return result;
}
ARK_FN ark_vector ark_add_pairs(ark_vector sums, ark_pairs a, ark_pairs b) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));
  return sums;
}

// The same with pairs; the depth is even.
template <int ROWS, int PANELS>
ARK_FN void ark_matmul_products(ark_micro_sums<ROWS, PANELS>& sums,
                                const ark_matmul_block<ark_bf16>& block) {
  const ark_bf16 *a = block.a, *b = block.b;
  for (int64_t p = 0; p < block.depth; p += 2, a += 2, b += 2 * ARK_PANEL) {
    ark_pairs x[PANELS];
    ARK_UNROLL
    for (int v = 0; v < PANELS; ++v)
      x[v] = *reinterpret_cast<const ark_pairs*>(b + v * block.panel_stride);
    ARK_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      const ark_pairs y = ark_every_pair(a + i * block.a_stride);
      ARK_UNROLL
      for (int v = 0; v < PANELS; ++v) sums.c[i][v] = ark_add_pairs(sums.c[i][v], y, x[v]);
    }
  }
}
#endif

template <class T>
using ark_matmul_element = typename ark_matmul_element_of<T>::type;

// sums[rows][PANELS * 16] = a * b, or += if it is not the first block of the depth.
template <int ROWS, int PANELS, class E>
ARK_PART void ark_matmul_micro(float* to, const ark_matmul_block<E>& block, bool is_first) {
  ark_micro_sums<ROWS, PANELS> sums;
  if (is_first)
    sums.clear();
  else
    sums.load(to);
  ark_matmul_products(sums, block);
  sums.store(to);
}

template <int MOST, int PANELS, class E>
ARK_FN void ark_matmul_rows(float* to, const ark_matmul_block<E>& block, int64_t rows,
                            bool is_first) {
  if (rows == MOST)
    ark_matmul_micro<MOST, PANELS>(to, block, is_first);
  else if constexpr (MOST > 1)
    ark_matmul_rows<MOST - 1, PANELS>(to, block, rows, is_first);
}

// All rows, PANELS at a time and then fewer. Micro tiles are as even as they can be: one of few
// rows waits for its own sums.
template <int PANELS, class E>
ARK_FN void ark_matmul_panels(float* to, ark_matmul_block<E> block, int64_t rows, int64_t panels,
                              bool is_first) {
  const int64_t tiles = (rows + ARK_MICRO_ROWS - 1) / ARK_MICRO_ROWS;
  for (; panels >= PANELS; panels -= PANELS) {
    ark_matmul_block<E> part = block;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t first = rows * tile / tiles, last = rows * (tile + 1) / tiles;
      part.a = block.a + first * block.a_stride;
      ark_matmul_rows<ARK_MICRO_ROWS, PANELS>(to + first * ARK_COLUMNS, part, last - first,
                                              is_first);
    }
    to += PANELS * ARK_PANEL;
    block.b += PANELS * block.panel_stride;
  }
  if constexpr (PANELS > 1) ark_matmul_panels<PANELS / 2>(to, block, rows, panels, is_first);
}

// to[rows][columns] of ARK_COLUMNS; compiled once for all task functions.
template <class E>
ARK_PART void ark_matmul_sums(float* to, const ark_matmul_block<E>& block, int64_t rows,
                              int64_t columns, bool is_first) {
  ark_matmul_panels<ARK_MICRO_PANELS>(to, block, rows, (columns + ARK_PANEL - 1) / ARK_PANEL,
                                      is_first);
}

// Copy rows of A, all of their depth, through the prologue; a last pair is filled up with 0.
template <class E, class T, class Prologue>
ARK_FN void ark_matmul_copy_a(E* to, int64_t to_stride, const T* a, const ark_matmul_shape& s,
                              int64_t rows, const Prologue& prologue) {
  for (int64_t r = 0; r < rows; ++r, to += to_stride, a += s.a_m) {
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
    for (int64_t p = s.k; p < to_stride; ++p) to[p] = ark_store<E>(0.0f);
  }
}

// Copy a block of a row-major or turned B into panels, filled up with 0.
template <class E, class T>
ARK_PART void ark_matmul_copy_b(E* to, const T* b, int64_t b_k, int64_t b_n, int64_t depth,
                                int64_t columns) {
  constexpr int pair = ARK_PAIR<E>;
  const int64_t padded = ark_whole(depth, pair);
  for (int64_t j0 = 0; j0 < columns; j0 += ARK_PANEL, b += ARK_PANEL * b_n) {
    const int64_t width = columns - j0 < ARK_PANEL ? columns - j0 : ARK_PANEL;
    const auto at = [&](int64_t p, int64_t j) -> E& {
      return to[p / pair * pair * ARK_PANEL + j * pair + p % pair];
    };
    const auto value = [&](int64_t p, int64_t j, int64_t step) {
      const bool is_inside = p < depth && j < width;
      return ark_store<E>(is_inside ? ark_load<T>(b[p * b_k + j * step]) : 0.0f);
    };
    if (b_n == 1)
      for (int64_t p = 0; p < padded; ++p)
        for (int64_t j = 0; j < ARK_PANEL; ++j) at(p, j) = value(p, j, 1);
    else
      for (int64_t j = 0; j < ARK_PANEL; ++j)
        for (int64_t p = 0; p < padded; ++p) at(p, j) = value(p, j, b_n);
    to += padded * ARK_PANEL;
  }
}

template <class T>
ARK_FN void ark_widen_panel(float* to, const T* from) {
#if defined(ARK_CONVERTS_FP16)
  for (int j = 0; j < ARK_PANEL; j += ARK_CONVERTED)
    *reinterpret_cast<ark_wholes*>(to + j) =
        ark_widened(*reinterpret_cast<const ark_halves*>(from + j));
#else
  for (int j = 0; j < ARK_PANEL; ++j) to[j] = ark_load<T>(from[j]);
#endif
}

// Take 16 pairs apart and widen them.
template <class T>
ARK_FN void ark_matmul_unzip(float* even, float* odd, const T* pairs) {
  const ark_words words = *reinterpret_cast<const ark_words*>(pairs);
  if constexpr (ark_is_bf16<T>) {
    *reinterpret_cast<ark_words*>(even) = words << 16;
    *reinterpret_cast<ark_words*>(odd) = words & 0xffff0000;
  } else {
    T low[ARK_PANEL], high[ARK_PANEL];
    *reinterpret_cast<ark_upper_halves*>(low) = __builtin_convertvector(words, ark_upper_halves);
    *reinterpret_cast<ark_upper_halves*>(high) =
        __builtin_convertvector(words >> 16, ark_upper_halves);
    ark_widen_panel(even, low);
    ark_widen_panel(odd, high);
  }
}

// Copy a block of packed pairs of 16 bits into fp32 panels; the depth is even.
template <class T>
ARK_PART void ark_matmul_widen_b(float* to, const T* b, int64_t panel_stride, int64_t depth,
                                 int64_t columns) {
  for (int64_t j0 = 0; j0 < columns; j0 += ARK_PANEL, b += panel_stride) {
    const T* pairs = b;
    for (int64_t p = 0; p < depth; p += 2, pairs += 2 * ARK_PANEL, to += 2 * ARK_PANEL)
      ark_matmul_unzip(to, to + ARK_PANEL, pairs);
  }
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

// B as it is given, row-major or turned, or `IS_PACKED`: in panels.
template <class T, bool IS_PACKED>
struct ark_matmul_b {
  typedef ark_matmul_element<T> E;
  static constexpr bool is_packed = IS_PACKED;
  // Whether micro tiles read it where it is.
  static constexpr bool is_direct = IS_PACKED && ark_is_same<E, T>;
  static constexpr int64_t most_depth = is_direct ? ARK_DEPTH : ARK_COPIED_DEPTH;
  const T* data;

  // The panels of some columns, from row `first` on; `copy` is memory for them.
  ARK_FN ark_matmul_block<E> block(E* copy, const ark_matmul_shape& s, int64_t first,
                                   int64_t column, int64_t columns) const {
    const int64_t left = s.k - first, depth = left < most_depth ? left : most_depth;
    const int64_t padded = ark_whole(depth, IS_PACKED ? ARK_PAIR<T> : ARK_PAIR<E>);
    const T* b = data + first * s.b_k + column * s.b_n;
    if constexpr (is_direct) {
      return {nullptr, 0, b, ARK_PANEL * s.b_n, padded};
    } else if constexpr (IS_PACKED) {
      ark_matmul_widen_b(copy, b, ARK_PANEL * s.b_n, padded, columns);
      return {nullptr, 0, copy, ARK_PANEL * padded, depth};
    } else {
      ark_matmul_copy_b(copy, b, s.b_k, s.b_n, depth, columns);
      return {nullptr, 0, copy, ARK_PANEL * padded, padded};
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

// Rows that make copying B into panels worth its while.
constexpr int64_t ARK_MATMUL_MIN_ROWS = 4;

// Scratch memory: sums of all rows of a block, a copy of A's rows, a copy of B's panels.
template <class TA, class B, class Prologue, class Epilogue>
ARK_FN void ark_matmul(float* scratch, const TA* a, const B& b, const ark_matmul_shape& s,
                       Prologue prologue, const Epilogue& epilogue) {
  typedef typename B::E E;
  float* sums = scratch;
  E* copied_b = reinterpret_cast<E*>(sums + s.rows * ARK_COLUMNS);
  E* copied_a = reinterpret_cast<E*>(sums + s.rows * ARK_COLUMNS + ARK_COLUMNS * ARK_COPIED_DEPTH);
  if (!B::is_packed && s.m < ARK_MATMUL_MIN_ROWS) {
    float* row = reinterpret_cast<float*>(copied_a);
    ark_matmul_stream(sums, row, a, b.data, s, prologue, epilogue);
    return;
  }
  const int64_t a_stride = ark_whole(s.k, ARK_PAIR<E>);
  for (int64_t i0 = 0; i0 < s.m; i0 += s.rows, a += s.rows * s.a_m) {
    const int64_t rows = s.m - i0 < s.rows ? s.m - i0 : s.rows;
    for (int64_t i = 0; i < rows; ++i)
      prologue.prepare(i, ark_row<TA>{a + i * s.a_m, s.a_k}, s.k);
    const ark_matmul_a<E> left = ark_matmul_left(copied_a, a_stride, a, s, rows, prologue);
    for (int64_t j0 = 0; j0 < s.n; j0 += ARK_COLUMNS) {
      const int64_t columns = s.n - j0 < ARK_COLUMNS ? s.n - j0 : ARK_COLUMNS;
      for (int64_t p0 = 0; p0 == 0 || p0 < s.k; p0 += B::most_depth) {
        ark_matmul_block<E> block = b.block(copied_b, s, p0, j0, columns);
        block.a = left.data + p0;
        block.a_stride = left.stride;
        ark_matmul_sums(sums, block, rows, columns, p0 == 0);
      }
      for (int64_t i = 0; i < rows; ++i) epilogue(i0 + i, j0, sums + i * ARK_COLUMNS, columns);
    }
  }
}
