// Attention with grouped heads on a GPU: softmax(q k^T * scale) v over blocks of keys, in one
// pass. Each warp keeps the softmax of some rows over some keys in registers; in the end the
// warps' results meet in scratch memory. Scores are in units of ln 2, so that weights are powers
// of 2.

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

// Where the operands of one batch index and group begin, and their strides.
template <class T>
struct ark_attention_operands {
  const T *query, *key, *value;
  int64_t query_time, query_head, query_step, key_row, key_step, value_row, value_step;
  int depth, width;

  // Addresses come from memory each time: the sums need the registers in between.
  ARK_FN ark_attention_operands(const ark_call& call, const ark_tile<const T, 4>& q,
                                const ark_tile<const T, 4>& k, const ark_tile<const T, 4>& v,
                                int b, int group, int heads, int start)
      : query(ark_operand<const T>(call, 0) + b * q.stride(0) + start * q.stride(1) + group * heads * q.stride(2)),
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

// --- tensor cores -------------------------------------------------------------------------------

template <class T>
ARK_FN void ark_attention_product(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                  uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  if constexpr (ark_is_same<T, ark_bf16>)
    gpu_mma_bf16(sums, a, b);
  else
    gpu_mma_fp16(sums, a, b);
}

// Few rows: each key and value is used by one warp, which reads it from global memory straight
// into the registers that tensor cores take it from. Lane 4g + t reads 16 bytes of keys g and
// g + 8, 8 elements from 8t on of each 32, and of query row g alike, so that the same elements
// meet. Products are 16 keys x 8 rows, of which it has rows 2t and 2t + 1.
//
// Of values it reads keys 2t, 2t + 1, 2t + 8 and 2t + 9, elements 8g to 8g + 7 of each 64: two of
// them are rows g and g + 8 of a tile. Sums are 16 elements x 8 rows.
template <class T, int DEPTH, int WIDTH>
struct ark_attention_registers {
  static constexpr int depth_parts = (DEPTH + 31) / 32, width_parts = (WIDTH + 63) / 64;
  int lane;
  gpu_vec4* query;  // of this warp, in shared memory: lane by lane
  gpu_vec4 key[2][depth_parts], value[width_parts][4];

  ARK_FN void read_row(gpu_vec4 (&to)[depth_parts], const T* row, bool is_there) const {
    const int at = lane % 4 * 8;
#pragma unroll
    for (int i = 0; i < depth_parts; ++i)
      to[i] = ark_attention_read(row + at + 32 * i, is_there && (DEPTH % 32 == 0 || 32 * i + at < DEPTH));
  }

  ARK_FN void read_queries(const ark_attention_operands<T>& from, const ark_attention_rows& rows) {
    const int row = lane / 4;
    gpu_vec4 held[depth_parts];
    read_row(held, from.query_at(rows, row < rows.count ? row : 0), row < rows.count);
#pragma unroll
    for (int i = 0; i < depth_parts; ++i) query[i * int(GPU_WARP) + lane] = held[i];
  }
  // 16 keys from `first` on.
  ARK_FN void read_keys(const ark_attention_operands<T>& from, int first, int most) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = first + lane / 4 + 8 * h;
      read_row(key[h], from.key + (row < most ? row * from.key_row : 0), row < most);
    }
  }
  ARK_FN void read_values(const ark_attention_operands<T>& from, int first, int most) {
    const int at = lane / 4 * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first + lane % 4 * 2 + i / 2 * 8 + i % 2;
      const T* const line = from.value + (row < most ? row * from.value_row : 0) + at;
#pragma unroll
      for (int j = 0; j < width_parts; ++j)
        value[j][i] = ark_attention_read(line + 64 * j, row < most && (WIDTH % 64 == 0 || 64 * j + at < WIDTH));
    }
  }

  ARK_FN void multiply_keys(float (&scores)[4]) const {
#pragma unroll
    for (int i = 0; i < depth_parts; ++i) {
      const gpu_vec4 &a = key[0][i], &b = key[1][i], q = query[i * int(GPU_WARP) + lane];
      const uint32_t first[4] = {a.x, b.x, a.y, b.y}, second[4] = {a.z, b.z, a.w, b.w};
      ark_attention_product<T>(scores, first, q.x, q.y);
      ark_attention_product<T>(scores, second, q.z, q.w);
    }
  }

  // Products' lanes have weights by the key, operands' lanes those of row g: two words change
  // lanes for each, one of keys 2t and one of 2t + 1.
  ARK_FN uint32_t turn(uint32_t pair) const {
    const int from = lane % 4 * 8 + lane / 8;
    const uint32_t even = gpu_shuffle(pair, from), odd = gpu_shuffle(pair, from + 4);
    return lane & 4 ? upper(even, odd) : lower(even, odd);
  }
  // Elements of two words side by side: those in the lower and in the upper halves.
  ARK_FN static uint32_t lower(uint32_t a, uint32_t b) { return (a & 0xffff) | b << 16; }
  ARK_FN static uint32_t upper(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000); }

  // Weights are rounded, but what that takes from them is multiplied too: it costs nothing where
  // memory is waited for.
  ARK_FN void multiply_values(float (&sums)[4 * width_parts][4], const float (&weights)[4]) const {
    uint32_t high[2], low[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float x = weights[2 * h], y = weights[2 * h + 1];
      const uint32_t pair = ark_pack<T>(x, y);
      high[h] = turn(pair);
      low[h] = turn(ark_pack<T>(x - ark_load<T>(__builtin_bit_cast(T, uint16_t(pair))),
                                y - ark_load<T>(__builtin_bit_cast(T, uint16_t(pair >> 16)))));
    }
    const auto add = [&](float (&sum)[4], uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
      const uint32_t tile[4] = {lower(a, b), upper(a, b), lower(c, d), upper(c, d)};
      ark_attention_product<T>(sum, tile, high[0], high[1]);
      ark_attention_product<T>(sum, tile, low[0], low[1]);
    };
#pragma unroll
    for (int j = 0; j < width_parts; ++j) {
      const gpu_vec4 &a = value[j][0], &b = value[j][1], &c = value[j][2], &d = value[j][3];
      add(sums[4 * j], a.x, b.x, c.x, d.x);
      add(sums[4 * j + 1], a.y, b.y, c.y, d.y);
      add(sums[4 * j + 2], a.z, b.z, c.z, d.z);
      add(sums[4 * j + 3], a.w, b.w, c.w, d.w);
    }
  }
};

// At most 8 rows; warps take 16 keys in turn. What comes next is under way meanwhile.
template <class T, int DEPTH, int WIDTH>
ARK_FN void ark_attention_few(float* scratch, const ark_attention_operands<T>& from,
                              const ark_attention_rows& rows, const ark_attention_blocks& blocks,
                              float scale) {
  typedef ark_attention_registers<T, DEPTH, WIDTH> registers;
  constexpr int tiles = 4 * registers::width_parts;
  const int thread = ark_attention_thread(), warp = thread >> 5, lane = thread & 31;
  const int g = lane >> 2, t = lane & 3;
  const int units = blocks.count() * (ARK_ATTENTION_KEYS / 16), most = blocks.most;
  const auto place = [&](int unit) { return unit < units ? blocks.place<16>(unit) : most; };
  registers held;
  held.lane = lane;
  held.query = reinterpret_cast<gpu_vec4*>(
                   scratch + int(ARK_WARPS) * 8 * ark_attention_line(WIDTH)) +
               warp * registers::depth_parts * int(GPU_WARP);
  ark_attention_row states[2] = {{rows.seen(2 * t)}, {rows.seen(2 * t + 1)}};
  float sums[tiles][4] = {};
  held.read_queries(from, rows);
  held.read_keys(from, place(warp), most);
  held.read_values(from, place(warp), most);
#pragma unroll 1
  for (int unit = warp; unit < units; unit += int(ARK_WARPS)) {
    const int first = place(unit) + g, next = place(unit + int(ARK_WARPS));
    float scores[4] = {};
    held.multiply_keys(scores);
    held.read_keys(from, next, most);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float x[2] = {scores[e], scores[2 + e]};
      const float factor =
          states[e].template weigh<4, 32>(x, scale, first, [](int i) { return 8 * i; });
      scores[e] = x[0];
      scores[2 + e] = x[1];
#pragma unroll
      for (int j = 0; j < tiles; ++j) {
        sums[j][e] *= factor;
        sums[j][2 + e] *= factor;
      }
    }
    held.multiply_values(sums, scores);
    held.read_values(from, next, most);
  }
  float* const lines = scratch + (warp * 8 + 2 * t) * ark_attention_line(WIDTH);
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    float* const line = lines + e * ark_attention_line(WIDTH);
    states[e].template leave<4, 32>(line, WIDTH, g == 0);
#pragma unroll
    for (int i = 0; i < 2 * tiles; ++i) {
      const int d = i / 8 * 64 + 8 * g + i % 8;
      if (WIDTH % 64 == 0 || d < WIDTH) line[d] = sums[i / 2][i % 2 * 2 + e];
    }
  }
}

// The power of 2 from n on: so wide are rows of n elements in shared memory.
ARK_FN constexpr int ark_attention_pitch(int n) {
  int pitch = 16;
  while (pitch < n) pitch *= 2;
  return pitch;
}

// Where a lane's row for ldmatrix begins, in a block of PITCH elements per row: row `row`, which is
// `in_8` modulo 8, and its chunk `odd`. Chunk odd + 2 i is at ^ 32 i, row + 8 j at + 16 j PITCH.
template <int PITCH>
ARK_FN int ark_attention_lane(int row, int in_8, int odd) {
  return (row - in_8) * PITCH * 2 + ark_swizzled<PITCH>(in_8, odd);
}

// Start bringing ROWS rows of WIDTH elements into shared memory: at(row) is where a row begins, or
// null for zeros. A thread has the same chunk of 8 elements in all its rows; where WIDTH is no power
// of 2 some threads have none.
template <class T, int WIDTH, int ROWS, class At>
ARK_FN void ark_attention_copy(int thread, char* to, const T* any, const At& at) {
  constexpr int pitch = ark_attention_pitch(WIDTH), per_row = pitch / 8;
  constexpr int step = int(ARK_CONSUMERS) / per_row;
  static_assert(step % 8 == 0, "a thread's rows are swizzled alike");
  const int row = int(uint32_t(thread) / per_row), chunk = int(uint32_t(thread) % per_row);
  if (pitch != WIDTH && chunk >= WIDTH / 8) return;
  char* const place = to + ark_swizzled<pitch>(row, chunk);
#pragma unroll
  for (int i = 0; i < (ROWS + step - 1) / step; ++i) {
    if (ROWS % step != 0 && row + i * step >= ROWS) break;
    const T* const from = at(row + i * step);
    gpu_copy16(place + i * step * pitch * 2, (from == nullptr ? any : from) + chunk * 8,
               from != nullptr);
  }
}

// Many rows: keys and values come through shared memory, one block while another is computed.
// ROWS / 16 warps share the rows; where there are more warps, groups of them share each block.
template <class T, int ROWS, int DEPTH, int WIDTH>
struct ark_attention_tiles {
  static constexpr int row_warps = ROWS / 16, parts = int(ARK_WARPS) / row_warps;
  // A warp's keys of a block, and how many it takes at once: with wide sums there are registers for
  // the scores of few.
  static constexpr int keys = ARK_ATTENTION_KEYS / parts;
  static constexpr int keys_at_once = WIDTH > 64 ? 16 : keys < 32 ? keys : 32;
  static constexpr int tiles = keys_at_once / 8;
  static constexpr int key_pitch = ark_attention_pitch(DEPTH);
  static constexpr int value_pitch = ark_attention_pitch(WIDTH);
  static constexpr int key_bytes = ARK_ATTENTION_KEYS * key_pitch * 2;
  static constexpr int stage_bytes = key_bytes + ARK_ATTENTION_KEYS * value_pitch * 2;
  static_assert(tiles % 2 == 0, "16 keys at a time");

  ARK_FN static void copy_queries(int thread, char* to, const ark_attention_operands<T>& from,
                                  const ark_attention_rows& rows) {
    ark_attention_copy<T, DEPTH, ROWS>(thread, to, from.query, [&](int row) -> const T* {
      return row < rows.count ? from.query_at(rows, row) : nullptr;
    });
  }
  ARK_FN static void copy_block(int thread, char* to, const ark_attention_operands<T>& from,
                                int first, int most) {
    const auto row_of = [&](const T* data, int64_t stride) {
      return [=](int row) -> const T* {
        return first + row < most ? data + (first + row) * stride : nullptr;
      };
    };
    ark_attention_copy<T, DEPTH, ARK_ATTENTION_KEYS>(thread, to, from.key,
                                                     row_of(from.key, from.key_row));
    ark_attention_copy<T, WIDTH, ARK_ATTENTION_KEYS>(thread, to + key_bytes, from.value,
                                                     row_of(from.value, from.value_row));
  }

  ARK_FN static void multiply_keys(int lane, float (&scores)[tiles][4], const char* queries,
                                   int row0, const char* block, int key0) {
    const int in_8 = lane % 8, second = lane / 8 % 2, third = lane / 16;
    const int rows = ark_attention_lane<key_pitch>(row0 + 8 * second + in_8, in_8, third);
    const int keys = ark_attention_lane<key_pitch>(key0 + 8 * third + in_8, in_8, second);
#pragma unroll 4
    for (int i = 0; i < DEPTH / 16; ++i) {
      uint32_t a[4];
      gpu_ldmatrix4(a, queries + (rows ^ 32 * i));
#pragma unroll
      for (int j = 0; j < tiles; j += 2) {
        uint32_t b[4];
        gpu_ldmatrix4(b, block + (keys ^ 32 * i) + j * 16 * key_pitch);
        ark_attention_product<T>(scores[j], a, b[0], b[1]);
        ark_attention_product<T>(scores[j + 1], a, b[2], b[3]);
      }
    }
  }

  ARK_FN static void multiply_values(int lane, float (&sums)[WIDTH / 8][4],
                                     const float (&weights)[tiles][4], const char* block,
                                     int key0) {
    const int in_8 = lane % 8, second = lane / 8 % 2, third = lane / 16;
    const int start = ark_attention_lane<value_pitch>(key0 + 8 * second + in_8, in_8, third);
#pragma unroll
    for (int j = 0; j < tiles; j += 2) {
      const float(&even)[4] = weights[j], (&odd)[4] = weights[j + 1];
      const uint32_t a[4] = {ark_pack<T>(even[0], even[1]), ark_pack<T>(even[2], even[3]),
                             ark_pack<T>(odd[0], odd[1]), ark_pack<T>(odd[2], odd[3])};
#pragma unroll
      for (int d = 0; d < WIDTH / 8; d += 2) {
        uint32_t b[4];
        gpu_ldmatrix4_trans(b, block + (start ^ 16 * d) + j * 16 * value_pitch);
        ark_attention_product<T>(sums[d], a, b[0], b[1]);
        ark_attention_product<T>(sums[d + 1], a, b[2], b[3]);
      }
    }
  }
};

template <class T, int ROWS, int DEPTH, int WIDTH>
ARK_FN void ark_attention_many(float* scratch, const ark_attention_operands<T>& from,
                               const ark_attention_rows& rows, const ark_attention_blocks& blocks,
                               float scale) {
  typedef ark_attention_tiles<T, ROWS, DEPTH, WIDTH> tiles;
  const int thread = ark_attention_thread(), lane = thread & 31, g = lane >> 2, t = lane & 3;
  const int warp = thread >> 5;
  const int row0 = warp % tiles::row_warps * 16, key0 = warp / tiles::row_warps * tiles::keys;
  char* const stages = reinterpret_cast<char*>(scratch);
  char* const queries = stages + 2 * tiles::stage_bytes;
  const int last = row0 + 15 < rows.count ? row0 + 15 : rows.count - 1;
  const int seen = row0 < rows.count ? rows.seen(last) : 0;  // by any of the warp's rows
  ark_attention_row states[2] = {{rows.seen(row0 + g)}, {rows.seen(row0 + g + 8)}};
  float sums[WIDTH / 8][4] = {};
  tiles::copy_queries(thread, queries, from, rows);
  const int count = blocks.count();
  // The first turn only copies.
#pragma unroll 1
  for (int i = -1; i < count; ++i) {
    if (i >= 0) {
      gpu_copy_wait<0>();
      // All see this block, and are done with the one whose place is filled next.
      gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
    }
    if (i + 1 < count) {
      tiles::copy_block(thread, stages + (i + 1) % 2 * tiles::stage_bytes, from,
                        blocks.place<ARK_ATTENTION_KEYS>(i + 1), blocks.most);
    }
    gpu_copy_commit();
    if (i < 0) continue;
    const char* const block = stages + i % 2 * tiles::stage_bytes;
#pragma unroll 1
    for (int k0 = key0; k0 < key0 + tiles::keys; k0 += tiles::keys_at_once) {
      const int first = blocks.place<ARK_ATTENTION_KEYS>(i) + k0;
      if (first >= seen) break;
      float scores[tiles::tiles][4] = {};
      tiles::multiply_keys(lane, scores, queries, row0, block, k0);
      float factors[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float x[2 * tiles::tiles];
#pragma unroll
        for (int j = 0; j < 2 * tiles::tiles; ++j) x[j] = scores[j / 2][2 * h + j % 2];
        factors[h] = states[h].template weigh<1, 4>(
            x, scale, first + 2 * t, [](int j) { return j / 2 * 8 + j % 2; });
#pragma unroll
        for (int j = 0; j < 2 * tiles::tiles; ++j) scores[j / 2][2 * h + j % 2] = x[j];
      }
      // Most keys change no row's largest score.
      if (gpu_ballot(factors[0] != 1 || factors[1] != 1) != 0) {
#pragma unroll
        for (int j = 0; j < WIDTH / 2; ++j) sums[j / 4][j % 4] *= factors[j % 4 / 2];
      }
      tiles::multiply_values(lane, sums, scores, block + tiles::key_bytes, k0);
    }
  }
  gpu_copy_wait<0>();
  gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
  const int again = ark_attention_thread(), column = again % 4 * 2;
  const int slot = (again >> 5) / tiles::row_warps * ROWS + (again >> 5) % tiles::row_warps * 16;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float* const line = scratch + (slot + again / 4 % 8 + 8 * h) * ark_attention_line(WIDTH);
    states[h].template leave<1, 4>(line, WIDTH, column == 0);
#pragma unroll
    for (int j = 0; j < WIDTH / 4; ++j)
      line[j / 2 * 8 + column + j % 2] = sums[j / 2][2 * h + j % 2];
  }
}

// --- CUDA cores ---------------------------------------------------------------------------------

// At most ROWS rows of any floats and sizes: the lanes of a warp share the elements of a key,
// CHUNK side by side; warps take some keys in turn.
template <class T, int ROWS, int CHUNK>
struct ark_attention_plain {
  static constexpr int keys = ROWS > 2 ? 4 : 8, values = ROWS * keys;
  static constexpr int lanes = int(GPU_WARP) / values;  // per row and key
  static constexpr int step = int(GPU_WARP) * CHUNK;
  static_assert(lanes >= 1, "a lane for each row and key");
  float* sums;           // lines of this warp
  const float* queries;  // rows of query_line floats
  int line, query_line, warp, lane;

  // The elements of some keys from column d on.
  ARK_FN static void read(float (&x)[keys][CHUNK], const T* from, int64_t row_stride,
                          int64_t stride, int first, int most, int d) {
    const T* at = from + first * row_stride + d * stride;
#pragma unroll
    for (int i = 0; i < keys; ++i, at += row_stride) {
      if constexpr (CHUNK > 1)
        ark_unpack<T>(ark_attention_read(at, first + i < most), x[i]);
      else
        x[i][0] = first + i < most ? ark_load<T>(*at) : 0.0f;
    }
  }

  // This lane's score: that of row lane / lanes / keys and key lane / lanes % keys.
  ARK_FN float score(const ark_attention_operands<T>& from, int first, int most) const {
    float partial[values] = {};
#pragma unroll 1
    for (int d = lane * CHUNK; d < from.depth; d += step) {
      float x[keys][CHUNK];
      read(x, from.key, from.key_row, from.key_step, first, most, d);
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int e = 0; e < CHUNK; ++e) {
          const float q = queries[r * query_line + d + e];
#pragma unroll
          for (int i = 0; i < keys; ++i)
            partial[r * keys + i] = gpu_fma(q, x[i][e], partial[r * keys + i]);
        }
    }
    return ark_reduce_values<values>(partial);
  }

  // sums = sums * factor + weights * values; each lane has a weight, and a factor for its row.
  ARK_FN void add(const ark_attention_operands<T>& from, int first, int most, float factor,
                  float weight) const {
#pragma unroll 1
    for (int d0 = 0; d0 < from.width; d0 += step) {
      const int d = d0 + lane * CHUNK;
      const bool is_there = d < from.width;
      float x[keys][CHUNK];
      read(x, from.value, from.value_row, from.value_step, first, is_there ? most : 0, d);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        float* const sum = sums + r * line + d;
        const float old = gpu_shuffle(factor, r * keys * lanes);
        float value[CHUNK];
#pragma unroll
        for (int e = 0; e < CHUNK; ++e) value[e] = is_there ? sum[e] * old : 0.0f;
#pragma unroll
        for (int i = 0; i < keys; ++i) {
          const float share = gpu_shuffle(weight, (r * keys + i) * lanes);
#pragma unroll
          for (int e = 0; e < CHUNK; ++e) value[e] = gpu_fma(share, x[i][e], value[e]);
        }
#pragma unroll
        for (int e = 0; e < CHUNK; ++e)
          if (is_there) sum[e] = value[e];
      }
    }
  }

  // Leave the warp's rows.
  ARK_FN void run(const ark_attention_operands<T>& from, const ark_attention_rows& rows,
                  const ark_attention_blocks& blocks, float scale) const {
    constexpr int per_block = ARK_ATTENTION_KEYS / keys;
    const int row = lane / lanes / keys, key = lane / lanes % keys;
    const int units = blocks.count() * per_block;
    ark_attention_row state = {rows.seen(row)};
#pragma unroll 1
    for (int r = 0; r < ROWS; ++r)
#pragma unroll 1
      for (int d = lane * CHUNK; d < from.width; d += step)
#pragma unroll
        for (int e = 0; e < CHUNK; ++e) sums[r * line + d + e] = 0;
#pragma unroll 1
    for (int unit = warp; unit < units; unit += int(ARK_WARPS)) {
      const int first = blocks.place<keys>(unit);
      if (first >= blocks.most) break;
      float x[1] = {score(from, first, blocks.most)};
      const float factor = state.template weigh<lanes, lanes * keys>(
          x, scale, first + key, [](int) { return 0; });
      add(from, first, blocks.most, factor, x[0]);
    }
    state.template leave<lanes, lanes * keys>(sums + row * line, from.width,
                                              lane % (lanes * keys) == 0);
  }
};

template <class T, int ROWS, int CHUNK>
ARK_FN void ark_attention_any(float* scratch, const ark_attention_operands<T>& from,
                              const ark_attention_rows& rows, const ark_attention_blocks& blocks,
                              float scale) {
  const int thread = ark_attention_thread(), warp = thread >> 5, lane = thread & 31;
  const int line = ark_attention_line(from.width), query_line = ark_attention_top(from.depth);
  float* const queries = scratch + int(ARK_WARPS) * ROWS * line;
#pragma unroll 1
  for (int r = 0; r < ROWS; ++r) {
    const T* const row = from.query_at(rows, r < rows.count ? r : 0);
#pragma unroll 1
    for (int d = thread; d < from.depth; d += int(ARK_CONSUMERS))
      queries[r * query_line + d] = r < rows.count ? ark_load<T>(row[d * from.query_step]) : 0.0f;
  }
  gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
  const ark_attention_plain<T, ROWS, CHUNK> plain{scratch + warp * ROWS * line, queries,
                                                  line, query_line, warp, lane};
  plain.run(from, rows, blocks, scale);
}

// --- the operators ------------------------------------------------------------------------------

template <class Length>
ARK_FN int64_t ark_attention_length(const Length& length, int64_t row, int64_t most) {
  if constexpr (ark_is_given<Length>)
    return ark_of_row(length, row);
  else
    return most;
}

// The rows of a tile that are computed together: `count` from `first` on, of one batch index and
// group.
struct ark_attention_piece {
  int b, group, first, count;
};

template <int ROWS>
ARK_FN int ark_attention_pieces(int count) {
  return (count + ROWS - 1) / ROWS;
}
template <int ROWS>
ARK_FN ark_attention_piece ark_attention_nth(int n, int groups, int count) {
  const uint32_t pieces = uint32_t(ark_attention_pieces<ROWS>(count)), outer = uint32_t(n) / pieces;
  const int first = int(uint32_t(n) - outer * pieces) * ROWS, left = count - first;
  return {int(outer / uint32_t(groups)), int(outer % uint32_t(groups)), first,
          left < ROWS ? left : ROWS};
}

// finish(b, head, time, top, total, sum) for all rows of a tile that begins at time `start`,
// with key blocks `block`, `block + step`, ... See `cuda` in kernels/ops/attention.py: ROWS rows
// at a time, by tensor cores if sizes DEPTH and WIDTH are given. If not, WIDTH elements at a time.
template <int ROWS, int DEPTH, int WIDTH, class T, class Length, class Scale, class Finish>
ARK_FN void ark_attention_tile(const ark_call& call, const ark_tile<const T, 4>& q,
                               const ark_tile<const T, 4>& k, const ark_tile<const T, 4>& v,
                               const Length& length, int start, int times, bool causal,
                               const Scale& scale, int block, int step, const Finish& finish) {
  const int heads = int(uint32_t(q.size(2)) / uint32_t(k.size(2)));
  float factor = ARK_LOG2_OF_E;
  if constexpr (ark_is_given<Scale>)
    factor *= scale;
  else
    factor = ark_divide(factor, ark_sqrt(float(q.size(3))));
  const int groups = int(k.size(2)), count = times * heads;
#pragma unroll 1
  for (int n = 0; n < int(q.size(0)) * groups * ark_attention_pieces<ROWS>(count); ++n) {
    const ark_attention_piece piece = ark_attention_nth<ROWS>(n, groups, count);
    const int64_t keys = ark_attention_length(length, piece.b, k.size(1));
    if (keys < 0 || keys > k.size(1)) {
      ark_fail(call, keys, k.size(1));
      return;
    }
    const ark_attention_operands<T> from(call, q, k, v, piece.b, piece.group, heads, start);
    const ark_attention_rows rows = {heads, start, piece.first, piece.count, int(keys),
                                     int(q.size(1) - keys), causal};
    const ark_attention_blocks blocks = {block, step, rows.seen(piece.count - 1)};
    constexpr bool is_few = DEPTH == 0 || ROWS <= 8;
    constexpr int parts = is_few ? int(ARK_WARPS) : int(ARK_WARPS) * 16 / ROWS;
    if constexpr (DEPTH == 0)
      ark_attention_any<T, ROWS, WIDTH>(call.scratch, from, rows, blocks, factor);
    else if constexpr (is_few)
      ark_attention_few<T, DEPTH, WIDTH>(call.scratch, from, rows, blocks, factor);
    else
      ark_attention_many<T, ROWS, DEPTH, WIDTH>(call.scratch, from, rows, blocks, factor);
    gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
    const ark_attention_piece again = ark_attention_nth<ROWS>(ark_attention_anew(n), groups, count);
    ark_attention_meet<parts, ROWS>(
        call.scratch, again.count, int(v.size(3)),
        [&](int row, float top, float total, const auto& sum) {
          const uint32_t at = uint32_t(again.first + row);
          finish(again.b, again.group * heads + int(at % uint32_t(heads)),
                 int(at / uint32_t(heads)), top, total, sum);
        });
    gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
  }
}

template <int ROWS, int DEPTH, int WIDTH, class T, class Length, class Scale>
ARK_FN void ark_attention(const ark_team&, const ark_call& call, const ark_tile<const T, 4>& q,
                          const ark_tile<const T, 4>& k, const ark_tile<const T, 4>& v,
                          const Length& length, const ark_tile<T, 4>& out, bool causal,
                          const Scale& scale) {
  const auto finish = [&](int b, int head, int time, float, float total, const auto& sum) {
    // Nothing seen: zeros.
    const float factor = total == 0 ? 0.0f : ark_divide(1.0f, total);
    T* const to = ark_operand<T>(call, ark_is_given<Length> ? 4 : 3) + b * out.stride(0) + time * out.stride(1) + head * out.stride(2);
#pragma unroll 1
    for (int d = int(gpu_lane()); d < int(out.size(3)); d += int(GPU_WARP))
      to[d * out.stride(3)] = ark_store<T>(sum(d) * factor);
  };
  ark_attention_tile<ROWS, DEPTH, WIDTH>(call, q, k, v, length, int(out.start(1)),
                                         int(out.size(1)), causal, scale, 0, 1, finish);
}

// One of `splits` parts of the keys: for each row its sums over values, its largest score and
// its total, to be merged.
template <int ROWS, int DEPTH, int WIDTH, class T, class Length, class Scale>
ARK_FN void ark_attention(const ark_team&, const ark_call& call, const ark_tile<const T, 4>& q,
                          const ark_tile<const T, 4>& k, const ark_tile<const T, 4>& v,
                          const Length& length, const ark_tile<float, 5>& out, bool causal,
                          const Scale& scale, int64_t splits) {
#pragma unroll 1
  for (int part = 0; part < int(out.size(0)); ++part) {
    const auto finish = [&](int b, int head, int time, float top, float total, const auto& sum) {
      float* const to = ark_operand<float>(call, ark_is_given<Length> ? 4 : 3) + part * out.stride(0) + b * out.stride(1) +
                        time * out.stride(2) + head * out.stride(3);
      const int64_t step = out.stride(4);
      const int width = int(out.size(4)) - 2;
#pragma unroll 1
      for (int d = int(gpu_lane()); d < width; d += int(GPU_WARP)) to[d * step] = sum(d);
      if (gpu_lane() == 0) {
        to[width * step] = top * ARK_LN2;
        to[(width + 1) * step] = total;
      }
    };
    ark_attention_tile<ROWS, DEPTH, WIDTH>(call, q, k, v, length, int(out.start(2)),
                                           int(out.size(2)), causal, scale,
                                           int(out.start(0)) + part, int(splits), finish);
  }
}
