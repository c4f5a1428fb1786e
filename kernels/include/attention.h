// Vectors of fp32 and products of small blocks, for attention on a CPU.

// Elements from row to row of what products take and give in scratch memory: the keys of a block.
constexpr int64_t ARK_ATTENTION_KEYS = 64;
// Rows there have whole numbers of this many fp32 elements: the widest vector.
constexpr int64_t ARK_ATTENTION_UNIT = 16;

// --- vectors ------------------------------------------------------------------------------------

template <int... LANE>
struct ark_attention_order {};
#if defined(__AVX512F__)
constexpr int ARK_ATTENTION_LANES = 16;
typedef ark_attention_order<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15> ark_attention_all;
#elif defined(__AVX__)
constexpr int ARK_ATTENTION_LANES = 8;
typedef ark_attention_order<0, 1, 2, 3, 4, 5, 6, 7> ark_attention_all;
#else
constexpr int ARK_ATTENTION_LANES = 4;
typedef ark_attention_order<0, 1, 2, 3> ark_attention_all;
#endif
// Vectors of sums that the registers hold, beside what is added to them.
constexpr int ARK_ATTENTION_SUMS = ARK_ATTENTION_LANES == 16 ? 24 : 12;

typedef float ark_attention_vector
    __attribute__((vector_size(4 * ARK_ATTENTION_LANES), aligned(2), may_alias));
typedef int32_t ark_attention_ints __attribute__((vector_size(4 * ARK_ATTENTION_LANES)));

ARK_FN ark_attention_vector ark_attention_read(const void* from) {
  return *static_cast<const ark_attention_vector*>(from);
}
ARK_FN void ark_attention_write(float* to, ark_attention_vector x) {
  *reinterpret_cast<ark_attention_vector*>(to) = x;
}
ARK_FN ark_attention_vector ark_attention_every(float x) { return ark_attention_vector{} + x; }

// The first n lanes, and `rest` in the others.
template <int... LANE>
ARK_FN ark_attention_vector ark_attention_first(ark_attention_vector x, int64_t n, float rest,
                                                ark_attention_order<LANE...>) {
  return ark_attention_ints{LANE...} < int32_t(n) ? x : ark_attention_every(rest);
}

template <int... FROM>
ARK_FN ark_attention_vector ark_attention_shuffle(ark_attention_vector a, ark_attention_vector b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, FROM...);
#else
  return __builtin_shuffle(a, b, ark_attention_ints{FROM...});
#endif
}

// Swap the lanes of a with bit H for those of b without it.
template <int H, int... LANE>
ARK_FN void ark_attention_swap(ark_attention_vector& a, ark_attention_vector& b,
                               ark_attention_order<LANE...>) {
  constexpr int next = ARK_ATTENTION_LANES;
  const ark_attention_vector low =
      ark_attention_shuffle<(LANE & H ? LANE - H + next : LANE)...>(a, b);
  b = ark_attention_shuffle<(LANE & H ? LANE + next : LANE + H)...>(a, b);
  a = low;
}

// Turn a square of lanes around.
template <int H = ARK_ATTENTION_LANES / 2>
ARK_FN void ark_attention_turn(ark_attention_vector* x) {
  if constexpr (H > 0) {
    ARK_UNROLL
    for (int i = 0; i < ARK_ATTENTION_LANES; ++i)
      if (!(i & H)) ark_attention_swap<H>(x[i], x[i + H], ark_attention_all{});
    ark_attention_turn<H / 2>(x);
  }
}

// Fold the lanes of each of as many vectors as there are lanes into x[0].
template <int H = ARK_ATTENTION_LANES / 2>
ARK_FN void ark_attention_fold(ark_attention_vector* x) {
  if constexpr (H > 0) {
    ARK_UNROLL
    for (int i = 0; i < H; ++i) {
      ark_attention_swap<H>(x[i], x[i + H], ark_attention_all{});
      x[i] += x[i + H];
    }
    ark_attention_fold<H / 2>(x);
  }
}

// The larger one in each lane; NaN is left to others to notice.
ARK_FN ark_attention_vector ark_attention_larger(ark_attention_vector a, ark_attention_vector b) {
  return a > b ? a : b;
}

template <int H = ARK_ATTENTION_LANES / 2>
ARK_FN float ark_attention_largest(ark_attention_vector x) {
  if constexpr (H > 0) {
    ark_attention_vector y = x;
    ark_attention_swap<H>(x, y, ark_attention_all{});
    return ark_attention_largest<H / 2>(ark_attention_larger(x, y));
  } else {
    return x[0];
  }
}

// ark_exp of numbers up to 0 in all lanes. What is below the normal range is 0.
ARK_FN ark_attention_vector ark_attention_exp(ark_attention_vector x) {
  constexpr float rounder = ARK_ROUNDER + 127;  // leaves a power of 2 in the low bits
  const ark_attention_vector lowest = ark_attention_every(-87.3f);
  const ark_attention_vector above = x < lowest ? lowest : x;
  const ark_attention_vector shifted = above * 1.44269504088896341f + rounder;
  const ark_attention_vector n = shifted - rounder;
  const ark_attention_vector r = (above - n * ARK_LN2_HIGH) - n * ARK_LN2_LOW;
  // As ark_exp_series.
  ark_attention_vector p = r * 1.3814540580e-3f + 8.3687454462e-3f;
  p = p * r + 4.1668388993e-2f;
  p = p * r + 1.6666521132e-1f;
  p = p * r + 4.9999994040e-1f;
  const ark_attention_vector value = 1.0f + (r + r * r * p);
  const ark_attention_vector power = (ark_attention_vector)((ark_attention_ints)shifted << 23);
  return x < lowest ? ark_attention_vector{} : value * power;
}

// The exponent's base: the largest score, or 0 where all are minus infinity.
ARK_FN ark_attention_vector ark_attention_base(ark_attention_vector top) {
  return top < -3.4028235e38f ? ark_attention_vector{} : top;
}

// --- rows ---------------------------------------------------------------------------------------

// As many elements as there are lanes, side by side, as fp32; only of types that vectors widen.
template <class T>
constexpr bool ark_attention_widens = ark_is_float<T>;
template <class T>
ARK_FN ark_attention_vector ark_attention_widened(const T* from) {
  return ark_attention_read(from);
}

template <>
constexpr bool ark_attention_widens<ark_bf16> = true;
template <>
ARK_FN ark_attention_vector ark_attention_widened(const ark_bf16* from) {
  typedef uint16_t halves
      __attribute__((vector_size(2 * ARK_ATTENTION_LANES), aligned(2), may_alias));
  const halves x = *reinterpret_cast<const halves*>(from);
  return (ark_attention_vector)(__builtin_convertvector(x, ark_attention_ints) << 16);
}

#if defined(__F16C__)
template <>
constexpr bool ark_attention_widens<ark_fp16> = true;
template <>
ARK_FN ark_attention_vector ark_attention_widened(const ark_fp16* from) {
#if defined(__clang__)
  typedef ark_fp16 halves __attribute__((vector_size(2 * ARK_ATTENTION_LANES), aligned(2)));
  return __builtin_convertvector(*reinterpret_cast<const halves*>(from), ark_attention_vector);
#else
  return ark_widened(*reinterpret_cast<const ark_halves*>(from));
#endif
}
#endif

// What is multiplied: fp32.
struct ark_attention_floats {
  static constexpr int64_t elements = 1;  // in 32 bits

  ARK_FN static ark_attention_vector every(const float* unit) {
    return ark_attention_every(*unit);
  }
  ARK_FN static void add(ark_attention_vector& sum, ark_attention_vector a,
                         ark_attention_vector b) {
    sum += a * b;
  }
  template <class T>
  ARK_FN static void copy(float* to, const T* from, int64_t n, int64_t stride) {
    if (stride == 1)
      ark_widen(to, from, n);
    else
      for (int64_t i = 0; i < n; ++i) to[i] = ark_load<T>(from[i * stride]);
  }
};

// Or pairs of bf16, whose products the processor adds up in fp32.
struct ark_attention_pairs : ark_attention_floats {
#if defined(__AVX512BF16__)
  static constexpr int64_t elements = 2;

  ARK_FN static void add(ark_attention_vector& sum, ark_attention_vector a,
                         ark_attention_vector b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  }
  ARK_FN static ark_attention_vector every(const float* unit) {
    ark_attention_vector result;
    asm("vbroadcastss %1, %0" : "=v"(result) : "m"(*unit));
    return result;
  }
  ARK_FN static void copy(float* to, const ark_bf16* from, int64_t n, int64_t stride) {
    typedef uint16_t half __attribute__((may_alias));
    half* target = reinterpret_cast<half*>(to);
    if (stride == 1)
      for (int64_t i = 0; i < n; ++i) target[i] = from[i].bits;
    else
      for (int64_t i = 0; i < n; ++i) target[i] = from[i * stride].bits;
    if (n % 2) target[n] = 0;
  }
#endif
};

template <class T>
struct ark_attention_units_of {
  typedef ark_attention_floats type;
};
template <>
struct ark_attention_units_of<ark_bf16> {
  typedef ark_attention_pairs type;
};
template <class T>
using ark_attention_units = typename ark_attention_units_of<T>::type;

ARK_FN int64_t ark_attention_whole(int64_t count) {
  return (count + ARK_ATTENTION_UNIT - 1) / ARK_ATTENTION_UNIT * ARK_ATTENTION_UNIT;
}

// Copy n elements, and zeros behind them to whole vectors.
template <class Units, class T>
ARK_FN void ark_attention_copy(float* to, const T* from, int64_t n, int64_t stride) {
  const int64_t units = (n + Units::elements - 1) / Units::elements;
  for (int64_t i = units; i < ark_attention_whole(units); ++i) to[i] = 0;
  Units::copy(to, from, n, stride);
}

// Rows of a matrix in memory: elements from row to row, and along it.
template <class T>
struct ark_attention_lines {
  const T* data;
  int64_t row_stride, stride;

  // Whether rows of n elements are whole vectors of `elements` times their lanes.
  ARK_FN bool is_whole(int64_t n, int64_t elements) const {
    return stride == 1 && n % (elements * ARK_ATTENTION_UNIT) == 0;
  }

  // Whether they are vectors of units as they lie.
  template <class Units>
  ARK_FN bool is_plain(int64_t n) const {
    return sizeof(T) * Units::elements == sizeof(float) && is_whole(n, Units::elements);
  }
};

// Rows of a block that stay as they are, in fp32.
template <class Units, class T>
ARK_PART void ark_attention_rows_of(float* to, int64_t pitch, const ark_attention_lines<T>& from,
                                    int64_t n, int64_t columns) {
  for (int64_t i = 0; i < n; ++i)
    ark_attention_copy<Units>(to + i * pitch, from.data + i * from.row_stride, columns,
                              from.stride);
}

// --- products -----------------------------------------------------------------------------------

// Rows of sums to which columns of b are added, times the elements of a.
template <class B>
struct ark_attention_product {
  float* sums;
  int64_t sums_stride;
  const float* a;  // its rows are ARK_ATTENTION_KEYS apart
  const B* b;
  int64_t b_stride, depth, columns;
  const float* factors;  // of what the sums are before, or null
  bool is_first;         // the sums are 0 before
  int64_t ahead = 0;     // from a row of b to one that is read soon, if it is not 0
};

// Ask for the lines of `bytes` that are read soon.
ARK_FN void ark_attention_ask(const void* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += ARK_LINE_BYTES)
    __builtin_prefetch(static_cast<const char*>(from) + at);
}

template <class Units, int ROWS, int VECTORS, class B>
ARK_FN void ark_attention_micro(const ark_attention_product<B>& p, int64_t column) {
  ark_attention_vector c[ROWS][VECTORS] = {};
  float* sums = p.sums + column;
  if (!p.is_first) {
    ARK_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      const float factor = p.factors != nullptr ? p.factors[r] : 1.0f;
      ARK_UNROLL
      for (int v = 0; v < VECTORS; ++v)
        c[r][v] =
            ark_attention_read(sums + r * p.sums_stride + v * ARK_ATTENTION_LANES) * factor;
    }
  }
  const float* a = p.a;
  const B* b = p.b + column;
  for (int64_t d = 0; d < p.depth; ++d, ++a, b += p.b_stride) {
    ark_attention_vector x[VECTORS];
    ARK_UNROLL
    for (int v = 0; v < VECTORS; ++v) x[v] = ark_attention_widened(b + v * ARK_ATTENTION_LANES);
    if (p.ahead != 0) ark_attention_ask(b + p.ahead, VECTORS * ARK_ATTENTION_LANES * sizeof(B));
    ARK_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      const ark_attention_vector y = Units::every(a + r * ARK_ATTENTION_KEYS);
      ARK_UNROLL
      for (int v = 0; v < VECTORS; ++v) Units::add(c[r][v], y, x[v]);
    }
  }
  ARK_UNROLL
  for (int r = 0; r < ROWS; ++r)
    ARK_UNROLL
    for (int v = 0; v < VECTORS; ++v)
      ark_attention_write(sums + r * p.sums_stride + v * ARK_ATTENTION_LANES, c[r][v]);
}

template <class Units, int ROWS, class B>
ARK_PART void ark_attention_multiply(const ark_attention_product<B>& p) {
  constexpr int most = ARK_ATTENTION_SUMS / ROWS, vectors = most < 4 ? most : 4;
  int64_t column = 0;
  for (; column + vectors * ARK_ATTENTION_LANES <= p.columns;
       column += vectors * ARK_ATTENTION_LANES)
    ark_attention_micro<Units, ROWS, vectors>(p, column);
  for (; column < p.columns; column += ARK_ATTENTION_LANES)
    ark_attention_micro<Units, ROWS, 1>(p, column);
}

template <int ROWS>
struct ark_attention_piece {
  static constexpr int rows = ROWS;
};

// Call f(piece, row) for pieces of the rows from `first` to `count`.
template <class F>
ARK_FN void ark_attention_pieces(int64_t first, int64_t count, const F& f) {
  constexpr int most = ARK_ATTENTION_SUMS / 2;
  int64_t r = first;
  for (; r + most <= count; r += most) f(ark_attention_piece<most>{}, r);
  for (; r + 4 <= count; r += 4) f(ark_attention_piece<4>{}, r);
  if (count - r == 3) f(ark_attention_piece<3>{}, r);
  if (count - r == 2) f(ark_attention_piece<2>{}, r);
  if (count - r == 1) f(ark_attention_piece<1>{}, r);
}
