// Rows of values and what a team finds out about them together.

// A row of elements with a stride, read in the compute type.
template <class T>
struct ark_row {
  const T* data;
  int64_t stride;
  ARK_FN ark_compute<T> operator()(int64_t i) const { return ark_load<T>(data[i * stride]); }
};

// Elements of DIMS nested loops, read as one row. `sizes` are followed by the loops' strides.
template <class T, int DIMS>
struct ark_grid {
  const T* data;
  const int64_t* sizes;

  // Offset of element i of the first `dims` loops.
  ARK_FN int64_t offset(int64_t i, int dims) const {
    int64_t sum = 0;
    for (int d = dims - 1; d > 0; --d) {
      sum += ark_remainder(i, sizes[d]) * sizes[DIMS + d];
      i = ark_quotient(i, sizes[d]);
    }
    return sum + i * sizes[DIMS];
  }
  ARK_FN ark_compute<T> operator()(int64_t i) const { return ark_load<T>(data[offset(i, DIMS)]); }
};

// Lanes of partial sums: a fixed order of additions that vectorizes. On a GPU threads are lanes. In
// rows there are several vectors of them, which need not wait for each other.
#if defined(ARK_GPU)
constexpr int ARK_LANES = 1, ARK_ROW_LANES = 1;
#else
constexpr int ARK_LANES = 16, ARK_ROW_LANES = 64;
#endif
// Values that one partial sum takes before it is added to the others: the error of a sum grows
// with this number and the number of such blocks, not with the length of the row.
constexpr int64_t ARK_BLOCK = 128;

// Call f(part, first, size) for the parts of a row one after the other: blocks of it,
template <class Row, class F>
ARK_FN void ark_parts(const Row& row, int64_t n, const F& f) {
  constexpr int64_t most = ARK_BLOCK * ARK_LANES;
  for (int64_t first = 0; first < n; first += most) {
    const auto part = [&](int64_t i) { return row(first + i); };
    f(part, first, n - first < most ? n - first : most);
  }
}

#if !defined(ARK_GPU)
// which are widened where elements have less than 32 bits,
template <class T, class F>
ARK_FN void ark_widened_parts(const ark_row<T>& row, int64_t n, const F& f) {
  constexpr int64_t most = ARK_BLOCK * ARK_LANES;
  alignas(64) float part[most];
  for (int64_t first = 0; first < n; first += most) {
    const int64_t size = n - first < most ? n - first : most;
    ark_load_row(part, row.data + first * row.stride, size, row.stride);
    f(ark_row<float>{part, 1}, first, size);
  }
}
template <class F>
ARK_FN void ark_parts(const ark_row<ark_fp16>& row, int64_t n, const F& f) {
  ark_widened_parts(row, n, f);
}
template <class F>
ARK_FN void ark_parts(const ark_row<ark_bf16>& row, int64_t n, const F& f) {
  ark_widened_parts(row, n, f);
}
#endif

// or blocks of the innermost of several loops.
template <class T, int DIMS, class F>
ARK_FN void ark_parts(const ark_grid<T, DIMS>& grid, int64_t n, const F& f) {
  const int64_t size = grid.sizes[DIMS - 1], stride = grid.sizes[2 * DIMS - 1];
  for (int64_t first = 0; first < n; first += size) {
    const T* data = grid.data + grid.offset(ark_quotient(first, size), DIMS - 1);
    const auto inner = [&](const auto& part, int64_t begin, int64_t count) {
      f(part, first + begin, count);
    };
    // A literal stride of 1 lets the loop over the row vectorize.
    if (stride == 1)
      ark_parts(ark_row<T>{data, 1}, size, inner);
    else
      ark_parts(ark_row<T>{data, stride}, size, inner);
  }
}

// Steps of folds: integers wrap, and a NaN wins. | where || would be a branch.
struct ark_plus {
  template <class T>
  ARK_FN T operator()(T a, T b) const {
    return T(a + b);
  }
};
struct ark_larger {
  template <class T>
  ARK_FN T operator()(T a, T b) const {
    return (b > a) | (b != b) ? b : a;
  }
};
struct ark_smaller {
  template <class T>
  ARK_FN T operator()(T a, T b) const {
    return (b < a) | (b != b) ? b : a;
  }
};

#if !defined(ARK_GPU)
// Folding the last lanes one by one, steps would branch on what the values are; as one vector they
// don't.
typedef float ark_lanes __attribute__((vector_size(64), may_alias));
template <class T, class Step>
constexpr bool ark_folds_vectors = false;
template <>
constexpr bool ark_folds_vectors<float, ark_plus> = true;
template <>
constexpr bool ark_folds_vectors<float, ark_larger> = true;
template <>
constexpr bool ark_folds_vectors<float, ark_smaller> = true;

// The lanes, each in the place of the one that is WIDTH before it.
template <int WIDTH>
ARK_FN ark_lanes ark_rotate(ark_lanes x) {
#if defined(__clang__)
  return __builtin_shufflevector(x, x, (WIDTH + 0) % 16, (WIDTH + 1) % 16, (WIDTH + 2) % 16,
                                 (WIDTH + 3) % 16, (WIDTH + 4) % 16, (WIDTH + 5) % 16,
                                 (WIDTH + 6) % 16, (WIDTH + 7) % 16, (WIDTH + 8) % 16,
                                 (WIDTH + 9) % 16, (WIDTH + 10) % 16, (WIDTH + 11) % 16,
                                 (WIDTH + 12) % 16, (WIDTH + 13) % 16, (WIDTH + 14) % 16,
                                 (WIDTH + 15) % 16);
#else
  typedef int32_t places __attribute__((vector_size(64)));
  const places own = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return __builtin_shuffle(x, (own + WIDTH) & 15);
#endif
}
template <int WIDTH, class Step>
ARK_FN float ark_fold_vector(ark_lanes x, const Step& step) {
  if constexpr (WIDTH > 0)
    return ark_fold_vector<WIDTH / 2>(step(x, ark_rotate<WIDTH>(x)), step);
  else
    return x[0];
}
template <int COUNT, class Step>
ARK_FN float ark_fold_vectors(const ark_lanes* x, const Step& step) {
  if constexpr (COUNT > 1) {
    ark_lanes half[COUNT / 2];
    for (int i = 0; i < COUNT / 2; ++i) half[i] = step(x[i], x[i + COUNT / 2]);
    return ark_fold_vectors<COUNT / 2>(half, step);
  } else {
    return ark_fold_vector<8>(x[0], step);
  }
}
#endif

// Fold all lanes into one, halving their number again and again.
template <int LANES, class T, class Step>
ARK_FN T ark_fold_halves(T* lanes, const Step& step) {
#if !defined(ARK_GPU)
  if constexpr (LANES >= 16 && ark_folds_vectors<T, Step>)
    return ark_fold_vectors<LANES / 16>(reinterpret_cast<const ark_lanes*>(lanes), step);
#endif
  if constexpr (LANES > 1) {
    for (int lane = 0; lane < LANES / 2; ++lane)
      lanes[lane] = step(lanes[lane], lanes[lane + LANES / 2]);
    return ark_fold_halves<LANES / 2>(lanes, step);
  } else {
    return lanes[0];
  }
}

// Fold n values by index into lanes, and those into one, in an order that depends on n alone.
template <class T, int LANES = ARK_LANES, class Row, class Step>
ARK_FN T ark_fold_lanes(const Row& row, int64_t n, T start, const Step& step) {
  alignas(64) T lanes[LANES];
  for (int lane = 0; lane < LANES; ++lane) lanes[lane] = start;
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    ARK_INDEPENDENT
    for (int lane = 0; lane < LANES; ++lane) lanes[lane] = step(lanes[lane], row(i + lane));
  for (int lane = 0; i < n; ++i, ++lane) lanes[lane] = step(lanes[lane], row(i));
  return ark_fold_halves<LANES>(lanes, step);
}

// Fold n values given by index with an associative operation; all members get the result. Each
// member reads what team.each(n) gives it. Taking `start` any number of times changes nothing.
template <class T, class Team, class Row, class Step>
ARK_FN T ark_fold(const Team& team, const Row& row, int64_t n, T start, const Step& step) {
  T total = start;
  if constexpr (Team::size == 1) {
    ark_parts(row, n, [&](const auto& part, int64_t, int64_t size) {
      total = step(total, ark_fold_lanes<T, ARK_ROW_LANES>(part, size, start, step));
    });
    return total;
  } else {
    // Some elements are under way before the first of them is used.
    constexpr int ahead = 8;
    static_assert(ARK_BLOCK % ahead == 0, "whole batches");
    T block = start;
    int64_t count = 0;
#pragma unroll 1
    for (int64_t first = team.rank(); first < n; first += ahead * Team::size) {
      T x[ahead];
#pragma unroll
      for (int u = 0; u < ahead; ++u) {
        const int64_t i = first + u * Team::size;
        x[u] = i < n ? T(row(i)) : start;
      }
#pragma unroll
      for (int u = 0; u < ahead; ++u) block = step(block, x[u]);
      count += ahead;
      if (count % ARK_BLOCK != 0) continue;
      total = step(total, block);
      block = start;
    }
    return team.combine(step(total, block), step);
  }
}

// Sum of n values given by index.
template <class T, class Team, class Row>
ARK_FN T ark_sum(const Team& team, const Row& row, int64_t n) {
  return ark_fold<T>(team, row, n, T(0), ark_plus{});
}

// Below and above all values but NaN; where no member's element has to be read by the others.
template <class T>
ARK_FN T ark_lowest() {
  if constexpr (ark_is_float<T>)
    return ark_from_bits(0xff800000);
  else
    return ark_limits<T>::lowest;
}
template <class T>
ARK_FN T ark_highest() {
  if constexpr (ark_is_float<T>)
    return ark_from_bits(0x7f800000);
  else
    return ark_limits<T>::highest;
}

// Largest of n > 0 values given by index.
template <class T, class Team, class Row>
ARK_FN T ark_max(const Team& team, const Row& row, int64_t n) {
  return ark_fold<T>(team, row, n, ark_lowest<T>(), ark_larger{});
}

// Smallest of n > 0 values given by index.
template <class T, class Team, class Row>
ARK_FN T ark_min(const Team& team, const Row& row, int64_t n) {
  return ark_fold<T>(team, row, n, ark_highest<T>(), ark_smaller{});
}

// The first of n indices whose value `is_wanted`; n if none is.
template <class Team, class Row, class Wanted>
ARK_FN int64_t ark_find(const Team& team, const Row& row, int64_t n, const Wanted& is_wanted) {
  int64_t found = n;
  if constexpr (Team::size == 1) {
    ark_parts(row, n, [&](const auto& part, int64_t first, int64_t size) {
      for (int64_t i = 0; i < size && found == n; ++i)
        if (is_wanted(part(i))) found = first + i;
    });
    return found;
  } else {
    team.each(n, [&](int64_t i) {
      if (i < found && is_wanted(row(i))) found = i;
    });
    return team.combine(found, [](int64_t a, int64_t b) { return a < b ? a : b; });
  }
}

// What normalizes one row: (x - shift) * scale.
struct ark_affine {
  float shift;
  float scale;
};

template <class Row>
constexpr bool ark_is_given = true;
template <>
constexpr bool ark_is_given<ark_absent> = false;

// Normalize element i of a row, then scale and shift it by the parameters that are there.
template <class Weight, class Bias>
ARK_FN float ark_normalize(const ark_affine& affine, float x, int64_t i, const Weight& weight,
                           const Bias& bias) {
  float y = (x - affine.shift) * affine.scale;
  if constexpr (ark_is_given<Weight>) y *= weight(i);
  if constexpr (ark_is_given<Bias>) y += bias(i);
  return y;
}

// The values of a row by index, normalized.
template <class Row, class Weight, class Bias>
struct ark_normalized {
  ark_affine affine;
  Row row;
  Weight weight;
  Bias bias;
  ARK_FN float operator()(int64_t i) const {
    return ark_normalize(affine, row(i), i, weight, bias);
  }
};
template <class Row, class Weight, class Bias>
ARK_FN ark_normalized<Row, Weight, Bias> ark_normalize_row(const ark_affine& affine, const Row& row,
                                                           const Weight& weight, const Bias& bias) {
  return {affine, row, weight, bias};
}
