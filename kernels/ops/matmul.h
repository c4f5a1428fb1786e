// Matrix multiplication in blocks: operands are converted to packed fp32, products
// accumulate in registers, and each finished row of a block goes through the epilogue.

#if defined(__AVX512F__)
#define ARK_VECTOR_BYTES 64
#elif defined(__AVX__)
#define ARK_VECTOR_BYTES 32
#else
#define ARK_VECTOR_BYTES 16
#endif

typedef float ark_vector __attribute__((vector_size(ARK_VECTOR_BYTES), aligned(4)));
constexpr int ARK_VECTOR = ARK_VECTOR_BYTES / 4;
// A micro tile is 6 rows by 2 vectors: 12 accumulators, which fit 16 registers.
constexpr int ARK_MR = 6;
constexpr int ARK_NR = 2 * ARK_VECTOR;
// Block sizes: rows, depth and columns; packed blocks of A and B and the sums stay in L2.
constexpr int64_t ARK_MC = 72;
constexpr int64_t ARK_KC = 256;
constexpr int64_t ARK_NC = 128;
constexpr int64_t ARK_MATMUL_SCRATCH = ARK_MC * ARK_KC + ARK_KC * ARK_NC + ARK_MC * ARK_NC;
static_assert(ARK_MATMUL_SCRATCH == 72 * 256 + 256 * 128 + 72 * 128, "kernels/frames.py knows it");

// Sizes and strides (elements) of one tile: a[m, k] * b[k, n].
struct ark_matmul_shape {
  int64_t m, n, k, a_m, a_k, b_k, b_n;
};

ARK_FN ark_matmul_shape ark_matmul_params(const int64_t* extra) {
  return {extra[0], extra[1], extra[2], extra[3], extra[4], extra[5], extra[6]};
}

// sums[MR][NR] += a[depth][MR] * b[depth][NR], all packed.
ARK_PART void ark_matmul_micro(float* sums, int64_t sums_stride, const float* a, const float* b,
                             int64_t depth) {
  ark_vector c[ARK_MR][2];
  for (int i = 0; i < ARK_MR; ++i)
    for (int v = 0; v < 2; ++v)
      c[i][v] = *reinterpret_cast<const ark_vector*>(sums + i * sums_stride + v * ARK_VECTOR);
  for (int64_t p = 0; p < depth; ++p) {
    const ark_vector b0 = *reinterpret_cast<const ark_vector*>(b + p * ARK_NR);
    const ark_vector b1 = *reinterpret_cast<const ark_vector*>(b + p * ARK_NR + ARK_VECTOR);
    for (int i = 0; i < ARK_MR; ++i) {
      const float x = a[p * ARK_MR + i];
      c[i][0] += x * b0;
      c[i][1] += x * b1;
    }
  }
  for (int i = 0; i < ARK_MR; ++i)
    for (int v = 0; v < 2; ++v)
      *reinterpret_cast<ark_vector*>(sums + i * sums_stride + v * ARK_VECTOR) = c[i][v];
}

// Pack `rows` x `depth` of A, from depth `first`, into panels of MR rows, depth-major, padded
// with zeros.
template <class T, class Prologue>
ARK_PART void ark_matmul_pack_a(float* to, const T* a, int64_t row_stride, int64_t depth_stride,
                              int64_t first, int64_t rows, int64_t depth,
                              const Prologue& prologue) {
  for (int64_t i0 = 0; i0 < rows; i0 += ARK_MR, to += ARK_MR * depth) {
    for (int r = 0; r < ARK_MR; ++r) {
      const int64_t i = i0 + r;
      if (i < rows) {
        const T* row = a + i * row_stride;
        for (int64_t p = 0; p < depth; ++p)
          to[p * ARK_MR + r] = prologue(i, first + p, ark_load<T>(row[p * depth_stride]));
      } else {
        for (int64_t p = 0; p < depth; ++p) to[p * ARK_MR + r] = 0;
      }
    }
  }
}

// Pack `depth` x `columns` of B into panels of NR columns, depth-major, padded with zeros.
template <class T>
ARK_PART void ark_matmul_pack_b(float* to, const T* b, int64_t depth_stride, int64_t column_stride,
                              int64_t depth, int64_t columns) {
  for (int64_t j0 = 0; j0 < columns; j0 += ARK_NR, to += ARK_NR * depth) {
    const int64_t width = columns - j0 < ARK_NR ? columns - j0 : ARK_NR;
    const T* panel = b + j0 * column_stride;
    if (column_stride == 1 && width == ARK_NR) {
      for (int64_t p = 0; p < depth; ++p)
        for (int j = 0; j < ARK_NR; ++j)
          to[p * ARK_NR + j] = ark_load<T>(panel[p * depth_stride + j]);
      continue;
    }
    for (int64_t j = 0; j < ARK_NR; ++j)
      for (int64_t p = 0; p < depth; ++p)
        to[p * ARK_NR + j] =
            j < width ? ark_load<T>(panel[p * depth_stride + j * column_stride]) : 0.0f;
  }
}

ARK_FN float ark_matmul_relu(float x) { return x < 0 ? 0 : x; }

// What happens to an element of A on the way in: nothing,
struct ark_matmul_no_prologue {
  template <class Row>
  ARK_FN void prepare(int64_t, const Row&, int64_t) {}
  ARK_FN float operator()(int64_t, int64_t, float x) const { return x; }
};

// or the normalization of its row, with the norm's weight and bias along it.
template <class Norm, class Weight, class Bias>
struct ark_matmul_norm {
  Norm norm;
  Weight weight;
  Bias bias;
  ark_affine rows[ARK_MC];
  template <class Row>
  ARK_FN void prepare(int64_t i, const Row& row, int64_t n) {
    rows[i] = norm(row, n);
  }
  ARK_FN float operator()(int64_t i, int64_t k, float x) const {
    return ark_normalize(rows[i], x, k, weight, bias);
  }
};

// Few rows: stream B once and keep the sums of the columns in cache.
template <class TA, class TB, class Prologue, class Epilogue>
ARK_FN void ark_matmul_rows(float* sums, float* packed, const TA* a, const TB* b,
                            const ark_matmul_shape& s, Prologue& prologue,
                            const Epilogue& epilogue) {
  for (int64_t i = 0; i < s.m; ++i) {
    const TA* row = a + i * s.a_m;
    prologue.prepare(i, ark_row<TA>{row, s.a_k}, s.k);
    for (int64_t j0 = 0; j0 < s.n; j0 += ARK_NC) {
      const int64_t columns = s.n - j0 < ARK_NC ? s.n - j0 : ARK_NC;
      for (int64_t j = 0; j < columns; ++j) sums[j] = 0;
      for (int64_t p0 = 0; p0 < s.k; p0 += ARK_KC) {
        const int64_t depth = s.k - p0 < ARK_KC ? s.k - p0 : ARK_KC;
        for (int64_t p = 0; p < depth; ++p)
          packed[p] = prologue(i, p0 + p, ark_load<TA>(row[(p0 + p) * s.a_k]));
        const TB* block = b + p0 * s.b_k + j0 * s.b_n;
        if (s.b_n == 1) {
          for (int64_t p = 0; p < depth; ++p) {
            const TB* line = block + p * s.b_k;
            ARK_INDEPENDENT
            for (int64_t j = 0; j < columns; ++j) sums[j] += packed[p] * ark_load<TB>(line[j]);
          }
        } else {
          for (int64_t j = 0; j < columns; ++j) {
            const ark_row<TB> line{block + j * s.b_n, s.b_k};
            const auto product = [&](int64_t p) { return packed[p] * line(p); };
            sums[j] += ark_sum<float>(ark_team{}, product, depth);
          }
        }
      }
      epilogue(i, j0, sums, columns);
    }
  }
}

// Rows that make packing B worth its while.
constexpr int64_t ARK_MATMUL_MIN_ROWS = 4;

template <class TA, class TB, class Prologue, class Epilogue>
ARK_FN void ark_matmul(float* scratch, const TA* a, const TB* b, const ark_matmul_shape& s,
                       Prologue prologue, const Epilogue& epilogue) {
  float* packed_a = scratch;
  float* packed_b = packed_a + ARK_MC * ARK_KC;
  float* sums = packed_b + ARK_KC * ARK_NC;
  if (s.m < ARK_MATMUL_MIN_ROWS) {
    ark_matmul_rows(sums, packed_a, a, b, s, prologue, epilogue);
    return;
  }
  for (int64_t i0 = 0; i0 < s.m; i0 += ARK_MC) {
    const int64_t rows = s.m - i0 < ARK_MC ? s.m - i0 : ARK_MC;
    for (int64_t i = 0; i < rows; ++i)
      prologue.prepare(i, ark_row<TA>{a + (i0 + i) * s.a_m, s.a_k}, s.k);
    for (int64_t j0 = 0; j0 < s.n; j0 += ARK_NC) {
      const int64_t columns = s.n - j0 < ARK_NC ? s.n - j0 : ARK_NC;
      for (int64_t i = 0; i < ARK_MC * ARK_NC; ++i) sums[i] = 0;
      for (int64_t p0 = 0; p0 < s.k; p0 += ARK_KC) {
        const int64_t depth = s.k - p0 < ARK_KC ? s.k - p0 : ARK_KC;
        ark_matmul_pack_a(packed_a, a + i0 * s.a_m + p0 * s.a_k, s.a_m, s.a_k, p0, rows, depth,
                          prologue);
        ark_matmul_pack_b(packed_b, b + p0 * s.b_k + j0 * s.b_n, s.b_k, s.b_n, depth, columns);
        for (int64_t j = 0; j < columns; j += ARK_NR)
          for (int64_t i = 0; i < rows; i += ARK_MR)
            ark_matmul_micro(sums + i * ARK_NC + j, ARK_NC, packed_a + i * depth,
                             packed_b + j * depth, depth);
      }
      for (int64_t i = 0; i < rows; ++i) epilogue(i0 + i, j0, sums + i * ARK_NC, columns);
    }
  }
}
