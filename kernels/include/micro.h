// Products of rows with panels of 16 columns on a CPU: a micro tile of a few rows by a few panels
// accumulates in registers over all of a block's depth, in fp32.

#if defined(__AVX512F__)
#define ARK_VECTOR_BYTES 64
#elif defined(__AVX__)
#define ARK_VECTOR_BYTES 32
#else
#define ARK_VECTOR_BYTES 16
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
// Those of a tall one, for up to 16 rows: B comes from memory then, and is read as few times and in
// as few streams as can be.
constexpr int ARK_TALL_ROWS = ARK_VECTOR == 16 ? 8 : ARK_MICRO_ROWS;
constexpr int ARK_TALL_PANELS = ARK_VECTOR == 16 ? 2 : 1;
constexpr int64_t ARK_TALL_MOST = 16;
// Rows whose sums leave room for many panels and what widens them.
constexpr int ARK_WIDENED_ROWS = ARK_VECTOR == 16 ? 4 : ARK_MICRO_ROWS;
// Columns that go through the epilogue at a time.
constexpr int64_t ARK_COLUMNS = 64;
ARK_FN int64_t ark_whole(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

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
template <class E, class B = E>
struct ark_matmul_block {
  const E* a;
  int64_t a_stride;
  const B* b;
  int64_t panel_stride;
  int64_t depth;
  int64_t ahead = 0;  // from what is read of B to what is read soon
};

// Ask for a line of each of the panels, `ahead` elements further on: weights come from memory while
// products are made. Rows that take long ask for the next panels. One or two rows of bf16 go through
// a panel faster than the processor looks ahead by itself, and ask for what is near in it; those of
// fp32 and fp16 don't, and asking would take longer than it saves.
constexpr int64_t ARK_NEAR = 1024;
template <int PANELS, class B>
ARK_FN void ark_matmul_ask(const B* b, int64_t panel_stride, int64_t ahead) {
  ARK_UNROLL
  for (int v = 0; v < PANELS; ++v) __builtin_prefetch(b + v * panel_stride + ahead);
}

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
    if constexpr (ROWS > 2) ark_matmul_ask<PANELS>(b, block.panel_stride, block.ahead);
    ARK_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      const float y = a[i * block.a_stride];
      ARK_UNROLL
      for (int v = 0; v < vectors; ++v) sums.c[i][v] += y * x[v];
    }
  }
}

template <class T>
ARK_FN void ark_widen_panel(float* to, const T* from) {
  if constexpr (ark_is_same<T, ark_bf16>) {
    ark_load_bf16s(to, from);
    return;
  }
#if defined(ARK_CONVERTS_FP16)
  if constexpr (ark_is_same<T, ark_fp16>) {
    for (int j = 0; j < ARK_PANEL; j += ARK_CONVERTED)
      *reinterpret_cast<ark_wholes*>(to + j) =
          ark_widened(*reinterpret_cast<const ark_halves*>(from + j));
    return;
  }
#endif
  for (int j = 0; j < ARK_PANEL; ++j) to[j] = ark_load<T>(from[j]);
}

// Take 16 pairs apart and widen them.
template <class T>
ARK_FN void ark_matmul_unzip(float (*rows)[ARK_PANEL], const T* pairs) {
  const ark_words words = *reinterpret_cast<const ark_words*>(pairs);
  if constexpr (ark_is_same<T, ark_bf16>) {
    *reinterpret_cast<ark_words*>(rows[0]) = words << 16;
    *reinterpret_cast<ark_words*>(rows[1]) = words & 0xffff0000;
  } else {
    T low[ARK_PANEL], high[ARK_PANEL];
    *reinterpret_cast<ark_upper_halves*>(low) = __builtin_convertvector(words, ark_upper_halves);
    *reinterpret_cast<ark_upper_halves*>(high) =
        __builtin_convertvector(words >> 16, ark_upper_halves);
    ark_widen_panel(rows[0], low);
    ark_widen_panel(rows[1], high);
  }
}

// Copy a packed panel into one of elements E; the last pair or group is a whole one.
template <class E, class T>
ARK_FN void ark_matmul_widen_panel(E* to, const T* from, int64_t depth) {
  constexpr int group = ARK_PAIR<T>, pair = ARK_PAIR<E>;
  for (int64_t p = 0; p < depth; p += group, from += group * ARK_PANEL, to += group * ARK_PANEL) {
    float rows[group][ARK_PANEL];
    ark_matmul_unzip(rows, from);
    for (int q = 0; q < group; ++q)
      for (int j = 0; j < ARK_PANEL; ++j)
        to[q / pair * pair * ARK_PANEL + j * pair + q % pair] = ark_store<E>(rows[q][j]);
  }
}

// Add the products with one row of a panel to its sums.
template <int ROWS, int PANELS>
ARK_FN void ark_matmul_row(ark_micro_sums<ROWS, PANELS>& sums, int panel, const float* a,
                           int64_t a_stride, const float* row) {
  ARK_UNROLL
  for (int i = 0; i < ROWS; ++i) {
    const float y = a[i * a_stride];
    ARK_UNROLL
    for (int v = 0; v < ARK_PANEL_VECTORS; ++v)
      sums.c[i][panel * ARK_PANEL_VECTORS + v] += y * ark_vector_at(row, v);
  }
}

// The same with pairs, or groups, that are widened on the way.
template <int ROWS, int PANELS, class T>
ARK_FN void ark_matmul_products(ark_micro_sums<ROWS, PANELS>& sums,
                                const ark_matmul_block<float, T>& block) {
  const float* a = block.a;
  const T* b = block.b;
  constexpr int group = ARK_PAIR<T>;
  for (int64_t left = block.depth; left > 0; left -= group, a += group, b += group * ARK_PANEL) {
    if constexpr (ROWS > 2) ark_matmul_ask<PANELS>(b, block.panel_stride, block.ahead);
    ARK_UNROLL
    for (int panel = 0; panel < PANELS; ++panel) {
      float rows[group][ARK_PANEL];
      ark_matmul_unzip(rows, b + panel * block.panel_stride);
      ARK_UNROLL
      for (int q = 0; q < group; ++q)
        if (q < left) ark_matmul_row(sums, panel, a + q, block.a_stride, rows[q]);
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

// The same with pairs; A has 0 where the depth is odd.
template <int ROWS, int PANELS>
ARK_FN void ark_matmul_products(ark_micro_sums<ROWS, PANELS>& sums,
                                const ark_matmul_block<ark_bf16>& block) {
  const ark_bf16 *a = block.a, *b = block.b;
  for (int64_t p = 0; p < block.depth; p += 2, a += 2, b += 2 * ARK_PANEL) {
    ark_pairs x[PANELS];
    ARK_UNROLL
    for (int v = 0; v < PANELS; ++v)
      x[v] = *reinterpret_cast<const ark_pairs*>(b + v * block.panel_stride);
    ark_matmul_ask<PANELS>(b, block.panel_stride, ROWS > 2 ? block.ahead : ARK_NEAR);
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
template <int ROWS, int PANELS, class E, class B>
ARK_PART void ark_matmul_micro(float* to, const ark_matmul_block<E, B>& block, bool is_first) {
  ark_micro_sums<ROWS, PANELS> sums;
  if (is_first)
    sums.clear();
  else
    sums.load(to);
  ark_matmul_products(sums, block);
  sums.store(to);
}

template <int MOST, int PANELS, class E, class B>
ARK_FN void ark_matmul_rows(float* to, const ark_matmul_block<E, B>& block, int64_t rows,
                            bool is_first) {
  if (rows == MOST)
    ark_matmul_micro<MOST, PANELS>(to, block, is_first);
  else if constexpr (MOST > 1)
    ark_matmul_rows<MOST - 1, PANELS>(to, block, rows, is_first);
}

// All rows, PANELS at a time and then fewer, MOST rows at most in a micro tile. These are as even
// as they can be: one of few rows waits for its own sums.
template <int MOST, int PANELS, class E, class B>
ARK_FN void ark_matmul_panels(float* to, ark_matmul_block<E, B> block, int64_t rows, int64_t panels,
                              bool is_first) {
  const int64_t tiles = (rows + MOST - 1) / MOST;
  for (; panels >= PANELS; panels -= PANELS) {
    ark_matmul_block<E, B> part = block;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t first = rows * tile / tiles, last = rows * (tile + 1) / tiles;
      part.ahead = tile == 0 ? PANELS * block.panel_stride : 0;
      part.a = block.a + first * block.a_stride;
      ark_matmul_rows<MOST, PANELS>(to + first * ARK_COLUMNS, part, last - first, is_first);
    }
    to += PANELS * ARK_PANEL;
    block.b += PANELS * block.panel_stride;
  }
  if constexpr (PANELS > 1)
    ark_matmul_panels<MOST, PANELS / 2>(to, block, rows, panels, is_first);
}

// The same with the micro tiles that suit so many rows.
template <class E, class B>
ARK_FN void ark_matmul_tiles(float* to, const ark_matmul_block<E, B>& block, int64_t rows,
                             int64_t panels, bool is_first) {
  // Few sums leave room for many panels, which hide how long a product takes, or a widening.
  if (rows <= (sizeof(B) < sizeof(E) ? ARK_WIDENED_ROWS : 2))
    ark_matmul_panels<ARK_WIDENED_ROWS, ARK_MICRO_PANELS>(to, block, rows, panels, is_first);
  else if (rows <= ARK_TALL_MOST)
    ark_matmul_panels<ARK_TALL_ROWS, ARK_TALL_PANELS>(to, block, rows, panels, is_first);
  else
    ark_matmul_panels<ARK_MICRO_ROWS, ARK_MICRO_PANELS>(to, block, rows, panels, is_first);
}
