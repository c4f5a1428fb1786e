// Attention on tensor cores, for 16-bit floats and sizes that are multiples of 16: few rows straight
// from global memory, many by way of shared memory.

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
      to[i] = ark_attention_read(row + at + 32 * i,
                                 is_there && (DEPTH % 32 == 0 || 32 * i + at < DEPTH));
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
      const bool is_there = row < most;
      const T* const line = from.value + (is_there ? row * from.value_row : 0) + at;
#pragma unroll
      for (int j = 0; j < width_parts; ++j)
        value[j][i] = ark_attention_read(
            line + 64 * j, is_there && (WIDTH % 64 == 0 || 64 * j + at < WIDTH));
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

  // Products with keys first and first + 8 into weights.
  ARK_FN static void weigh(ark_attention_row (&states)[2], float (&scores)[4],
                           float (&sums)[4 * width_parts][4], float scale, int first) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float x[2] = {scores[e], scores[2 + e]};
      const float factor =
          states[e].template weigh<4, 32>(x, scale, first, [](int i) { return 8 * i; });
      scores[e] = x[0];
      scores[2 + e] = x[1];
#pragma unroll
      for (int j = 0; j < 8 * width_parts; ++j) sums[j / 2][j % 2 * 2 + e] *= factor;
    }
  }

  // Leave the warp's 8 lines.
  ARK_FN void leave(float* lines, const ark_attention_row (&states)[2],
                    const float (&sums)[4 * width_parts][4]) const {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float* const line = lines + (2 * t + e) * ark_attention_line(WIDTH);
      states[e].template leave<4, 32>(line, WIDTH, g == 0);
#pragma unroll
      for (int i = 0; i < 8 * width_parts; ++i) {
        const int d = i / 8 * 64 + 8 * g + i % 8;
        if (WIDTH % 64 == 0 || d < WIDTH) line[d] = sums[i / 2][i % 2 * 2 + e];
      }
    }
  }
};

// At most 8 rows; warps take 16 keys in turn. What comes next is under way meanwhile.
template <class T, int DEPTH, int WIDTH>
ARK_FN void ark_attention_few(float* scratch, const ark_attention_operands<T>& from,
                              const ark_attention_rows& rows, const ark_attention_blocks& blocks,
                              float scale) {
  typedef ark_attention_registers<T, DEPTH, WIDTH> registers;
  const int thread = ark_attention_thread(), warp = thread >> 5, lane = thread & 31;
  const int units = blocks.count() * (ARK_ATTENTION_KEYS / 16), most = blocks.most;
  const auto place = [&](int unit) { return unit < units ? blocks.place<16>(unit) : most; };
  registers held;
  held.lane = lane;
  held.query = reinterpret_cast<gpu_vec4*>(
                   scratch + int(ARK_WARPS) * 8 * ark_attention_line(WIDTH)) +
               warp * registers::depth_parts * int(GPU_WARP);
  ark_attention_row states[2] = {{rows.seen(lane % 4 * 2)}, {rows.seen(lane % 4 * 2 + 1)}};
  float sums[4 * registers::width_parts][4] = {};
  held.read_queries(from, rows);
  held.read_keys(from, place(warp), most);
  held.read_values(from, place(warp), most);
#pragma unroll 1
  for (int unit = warp; unit < units; unit += int(ARK_WARPS)) {
    const int first = place(unit) + lane / 4, next = place(unit + int(ARK_WARPS));
    float scores[4] = {};
    held.multiply_keys(scores);
    held.read_keys(from, next, most);
    held.weigh(states, scores, sums, scale, first);
    held.multiply_values(sums, scores);
    held.read_values(from, next, most);
  }
  held.leave(scratch + warp * 8 * ark_attention_line(WIDTH), states, sums);
}

// The first power of 2 from n on: so wide are rows of n elements in shared memory.
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
// null for zeros. A thread has the same chunk of 8 elements in all its rows; where WIDTH is no
// power of 2 some threads have none.
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
#pragma unroll
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

  // Products with the keys from `first` on into weights.
  ARK_FN static void weigh(int lane, ark_attention_row (&states)[2], float (&scores)[tiles][4],
                           float (&sums)[WIDTH / 8][4], float scale, int first) {
    float factors[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float x[2 * tiles];
#pragma unroll
      for (int j = 0; j < 2 * tiles; ++j) x[j] = scores[j / 2][2 * h + j % 2];
      factors[h] = states[h].template weigh<1, 4>(x, scale, first + lane % 4 * 2,
                                                  [](int j) { return j / 2 * 8 + j % 2; });
#pragma unroll
      for (int j = 0; j < 2 * tiles; ++j) scores[j / 2][2 * h + j % 2] = x[j];
    }
    // Most keys change no row's largest score.
    if (gpu_ballot(factors[0] != 1 || factors[1] != 1) != 0) {
#pragma unroll
      for (int j = 0; j < WIDTH / 2; ++j) sums[j / 4][j % 4] *= factors[j % 4 / 2];
    }
  }

  // Leave the warp's 16 lines.
  ARK_FN static void leave(float* lines, const ark_attention_row (&states)[2],
                           const float (&sums)[WIDTH / 8][4]) {
    const int thread = ark_attention_thread(), warp = thread >> 5, column = thread % 4 * 2;
    const int row = warp / row_warps * ROWS + warp % row_warps * 16 + thread / 4 % 8;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float* const line = lines + (row + 8 * h) * ark_attention_line(WIDTH);
      states[h].template leave<1, 4>(line, WIDTH, column == 0);
#pragma unroll
      for (int j = 0; j < WIDTH / 4; ++j)
        line[j / 2 * 8 + column + j % 2] = sums[j / 2][2 * h + j % 2];
    }
  }
};

template <class T, int ROWS, int DEPTH, int WIDTH>
ARK_FN void ark_attention_many(float* scratch, const ark_attention_operands<T>& from,
                               const ark_attention_rows& rows, const ark_attention_blocks& blocks,
                               float scale) {
  typedef ark_attention_tiles<T, ROWS, DEPTH, WIDTH> tiles;
  const int thread = ark_attention_thread(), warp = thread >> 5, lane = thread & 31;
  const int row0 = warp % tiles::row_warps * 16, key0 = warp / tiles::row_warps * tiles::keys;
  char* const stages = reinterpret_cast<char*>(scratch);
  char* const queries = stages + 2 * tiles::stage_bytes;
  const int last = row0 + 15 < rows.count ? row0 + 15 : rows.count - 1;
  const int seen = row0 < rows.count ? rows.seen(last) : 0;  // by any of the warp's rows
  ark_attention_row states[2] = {{rows.seen(row0 + lane / 4)}, {rows.seen(row0 + lane / 4 + 8)}};
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
      tiles::weigh(lane, states, scores, sums, scale, first);
      tiles::multiply_values(lane, sums, scores, block + tiles::key_bytes, k0);
    }
  }
  gpu_copy_wait<0>();
  gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
  tiles::leave(scratch, states, sums);
}
