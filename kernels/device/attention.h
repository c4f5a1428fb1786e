// What the ways to compute attention share. Each warp keeps the softmax of some query rows over
// some keys; in the end the warps' results meet in scratch memory. Scores are in units of ln 2, so
// that weights are powers of 2.

// Keys in a block. kernels/ops/attention.py knows it.
constexpr int ARK_ATTENTION_KEYS = 64;
constexpr float ARK_LOG2_OF_E = 1.44269504088896341f, ARK_LN2 = 0.693147180559945309f;

// 2^x for x <= 0 within 2 ulp; 0 below the range of normal numbers. NaN stays NaN.
ARK_FN float ark_attention_power(float x) {
  const float above = x < -127.0f ? -127.0f : x;
  const float shifted = above + ARK_ROUNDER, f = above - (shifted - ARK_ROUNDER);
  float p = 1.326472731307149e-3f;
  p = p * f + 9.671512991189957e-3f;
  p = p * f + 5.550733581185341e-2f;
  p = p * f + 2.4022242426872253e-1f;
  p = p * f + 6.931470036506653e-1f;
  p = p * f + 1.0f;
  return p * ark_from_bits((ark_bits(shifted) << 23) + 0x3f800000u);
}

// What weights are relative to: the largest score, or 0 where all are minus infinity.
ARK_FN float ark_attention_base(float top) { return top == -ARK_INFINITY ? 0.0f : top; }
ARK_FN float ark_attention_larger(float a, float b) { return a > b ? a : b; }

// Query rows of one batch index and one group of heads: rows `first` to `first + count` of a tile
// that begins at time `start`, counted over times and, faster, heads. Of `keys` that are valid,
// time t sees `later` less than t + 1 if `causal`.
struct ark_attention_rows {
  int heads, start, first, count, keys, later;
  bool causal;

  ARK_FN int time(int row) const { return int(uint32_t(first + row) / uint32_t(heads)); }
  ARK_FN int head(int row) const { return int(uint32_t(first + row) % uint32_t(heads)); }
  // Keys that a row sees; none past the last row. Later times see more.
  ARK_FN int seen(int row) const {
    const int end = causal ? start + time(row) + 1 - later : keys;
    return row >= count || end < 0 ? 0 : end;
  }
};

// Some blocks of the keys below `most`: `first`, `first + step`, ...
struct ark_attention_blocks {
  int first, step, most;

  ARK_FN int count() const {
    const int all = (most + ARK_ATTENTION_KEYS - 1) / ARK_ATTENTION_KEYS;
    return all > first ? (all - first + step - 1) / step : 0;
  }
  // The first of `keys` keys that are number `unit` of these blocks; keys divide a block.
  template <int KEYS>
  ARK_FN int place(int unit) const {
    constexpr int units = ARK_ATTENTION_KEYS / KEYS;
    return (first + unit / units * step) * ARK_ATTENTION_KEYS + unit % units * KEYS;
  }
};

// Where the operands of one batch index and group begin, its queries at `head`; their strides.
template <class T>
struct ark_attention_operands {
  const T *query, *key, *value;
  int64_t query_time, query_head, query_step, key_row, key_step, value_row, value_step;
  int depth, width;

  // Addresses come from memory each time: the sums need the registers in between.
  ARK_FN ark_attention_operands(const ark_call& call, const ark_tile<const T, 4>& q,
                                const ark_tile<const T, 4>& k, const ark_tile<const T, 4>& v,
                                int b, int group, int head, int start)
      : query(ark_operand<const T>(call, 0) + b * q.stride(0) + start * q.stride(1) +
              head * q.stride(2)),
        key(ark_operand<const T>(call, 1) + b * k.stride(0) + group * k.stride(2)),
        value(ark_operand<const T>(call, 2) + b * v.stride(0) + group * v.stride(2)),
        query_time(q.stride(1)),
        query_head(q.stride(2)),
        query_step(q.stride(3)),
        key_row(k.stride(1)),
        key_step(k.stride(3)),
        value_row(v.stride(1)),
        value_step(v.stride(3)),
        depth(int(q.size(3))),
        width(int(v.size(3))) {}

  ARK_FN const T* query_at(const ark_attention_rows& rows, int row) const {
    return query + rows.time(row) * query_time + rows.head(row) * query_head;
  }
};

// --- what warps leave in scratch memory ---------------------------------------------------------

// A row: its sums over values, then the largest score and the total of the weights.
ARK_FN int ark_attention_top(int width) { return (width + 3) / 4 * 4; }
ARK_FN int ark_attention_line(int width) { return ark_attention_top(width) + 4; }

// Put together what PARTS groups of warps have of `count` rows, a warp per row: each left a line
// for each of SLOTS rows. finish(row, top, total, sum), where sum(d) is that of one column.
template <int PARTS, int SLOTS, class Finish>
ARK_FN void ark_attention_meet(const float* lines, int count, int width, const Finish& finish) {
  const int line = ark_attention_line(width), step = SLOTS * line;
#pragma unroll 1
  for (int row = int(gpu_warp()); row < count; row += int(ARK_WARPS)) {
    const float* const mine = lines + row * line;
    const float* const ends = mine + ark_attention_top(width);
    float top = -ARK_INFINITY, total = 0, weights[PARTS];
#pragma unroll
    for (int p = 0; p < PARTS; ++p) top = ark_attention_larger(ends[p * step], top);
#pragma unroll
    for (int p = 0; p < PARTS; ++p) {
      weights[p] = ark_attention_power(ends[p * step] - ark_attention_base(top));
      total += weights[p] * ends[p * step + 1];
    }
    finish(row, top, total, [&](int d) {
      float sum = 0;
#pragma unroll
      for (int p = 0; p < PARTS; ++p) sum += weights[p] * mine[p * step + d];
      return sum;
    });
  }
}

// A number that is the same in all lanes, known to come from here: what follows from it is found
// anew, where the compiler would keep it in registers that sums need.
ARK_FN int ark_attention_anew(int value) { return gpu_shuffle(value, 0); }
ARK_FN int ark_attention_thread() { return gpu_shuffle(int(gpu_thread()), int(gpu_lane())); }

// 16 bytes, or zeros.
template <class T>
ARK_FN gpu_vec4 ark_attention_read(const T* from, bool is_there) {
  return is_there ? *reinterpret_cast<const gpu_vec4*>(from) : gpu_vec4{0, 0, 0, 0};
}

// --- one row, in the lanes that have some of its scores -----------------------------------------

struct ark_attention_row {
  int seen;  // keys
  float top = -ARK_INFINITY;
  float total = 0;  // of the weights that this lane had

  // Turn products with KEYS keys, which are `first` + offset(i), into weights; returns the factor
  // that brings sums up to date. Lanes that differ in the bits from FIRST on, before LAST, share
  // the row.
  template <int FIRST, int LAST, int KEYS, class Offset>
  ARK_FN float weigh(float (&x)[KEYS], float scale, int first, const Offset& offset) {
    const float before = top;
    const int left = seen - first;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < KEYS; ++i) x[i] *= scale;
    if (offset(KEYS - 1) >= left) {
#pragma unroll
      for (int i = 0; i < KEYS; ++i)
        if (offset(i) >= left) x[i] = -ARK_INFINITY;
    }
#pragma unroll
    for (int i = 0; i < KEYS; ++i) top = ark_attention_larger(x[i], top);
#pragma unroll
    for (int bit = FIRST; bit < LAST; bit *= 2)
      top = ark_attention_larger(gpu_shuffle_xor(top, bit), top);
    const float base = ark_attention_base(top), factor = ark_attention_power(before - base);
#pragma unroll
    for (int i = 0; i < KEYS; ++i) {
      x[i] = ark_attention_power(x[i] - base);
      sum += x[i];
    }
    total = total * factor + sum;
    return factor;
  }

  // Leave the largest score and the whole total behind the row's sums; one lane does it.
  template <int FIRST, int LAST>
  ARK_FN void leave(float* line, int width, bool is_writer) const {
    float sum = total;
#pragma unroll
    for (int bit = FIRST; bit < LAST; bit *= 2) sum += gpu_shuffle_xor(sum, bit);
    if (!is_writer) return;
    line[ark_attention_top(width)] = top;
    line[ark_attention_top(width) + 1] = sum;
  }
};
