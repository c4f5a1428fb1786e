// Attention with grouped heads on a GPU: softmax(q k^T * scale) v over blocks of keys, in one
// pass. Tensor cores are in kernels/device/attention_tensor.h; here are CUDA cores, for all other
// types and sizes, and the operators.

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

// The query heads of a tile, in groups that share a key head: `per_key` of them, but given `Group`
// `before` of the first key head's are not in the tile, and of the last one's some may not be.
template <class Group>
struct ark_attention_groups {
  int heads, groups, per_key, before;

  template <class T>
  ARK_FN ark_attention_groups(const ark_tile<const T, 4>& q, const ark_tile<const T, 4>& k,
                              const Group& given, int64_t skipped)
      : heads(int(q.size(2))), groups(int(k.size(2))), per_key(0), before(0) {
    if constexpr (ark_is_given<Group>) {
      per_key = int(given);
      before = int(uint32_t(q.start(2) + skipped) % uint32_t(per_key));
    } else {
      per_key = int(uint32_t(heads) / uint32_t(groups));
    }
  }
  ARK_FN int first(int group) const {
    const int from = group * per_key - before;
    return !ark_is_given<Group> || from > 0 ? from : 0;
  }
  ARK_FN int count(int group) const {
    if constexpr (!ark_is_given<Group>) return per_key;
    const int end = (group + 1) * per_key - before;
    return (end < heads ? end : heads) - first(group);
  }
};

// The rows of a tile that are computed together: `count` from `first` on, of one batch index and
// group; none where a group has fewer heads than others.
struct ark_attention_piece {
  int b, group, first, count;
};

template <int ROWS>
ARK_FN int ark_attention_pieces(int count) {
  return (count + ROWS - 1) / ROWS;
}
template <int ROWS, class Group>
ARK_FN ark_attention_piece ark_attention_nth(int n, const ark_attention_groups<Group>& all,
                                             int times) {
  const uint32_t pieces = uint32_t(ark_attention_pieces<ROWS>(times * all.per_key));
  const uint32_t outer = uint32_t(n) / pieces;
  const int group = int(outer % uint32_t(all.groups));
  const int first = int(uint32_t(n) - outer * pieces) * ROWS;
  const int left = times * all.count(group) - first;
  return {int(outer / uint32_t(all.groups)), group, first, left < ROWS ? left : ROWS};
}

// finish(b, head, time, top, total, sum) for all rows of a tile that begins at time `start`,
// with key blocks `block`, `block + step`, ... See `cuda` in kernels/ops/attention.py: ROWS rows
// at a time, by tensor cores if sizes DEPTH and WIDTH are given. If not, WIDTH elements at a time.
template <int ROWS, int DEPTH, int WIDTH, class T, class Length, class Scale, class Group,
          class Finish>
ARK_FN void ark_attention_tile(const ark_call& call, const ark_tile<const T, 4>& q,
                               const ark_tile<const T, 4>& k, const ark_tile<const T, 4>& v,
                               const Length& length, int start, int times, bool causal,
                               const Scale& scale, const Group& per_key, int64_t skipped,
                               int block, int step, const Finish& finish) {
  const ark_attention_groups<Group> all(q, k, per_key, skipped);
  float factor = ARK_LOG2_OF_E;
  if constexpr (ark_is_given<Scale>)
    factor *= scale;
  else
    factor = ark_divide(factor, ark_sqrt(float(q.size(3))));
  const int count = int(q.size(0)) * all.groups * ark_attention_pieces<ROWS>(times * all.per_key);
#pragma unroll 1
  for (int n = 0; n < count; ++n) {
    const ark_attention_piece piece = ark_attention_nth<ROWS>(n, all, times);
    if (ark_is_given<Group> && piece.count <= 0) continue;
    const int heads = all.count(piece.group);
    const int64_t keys = ark_attention_length(length, piece.b, k.size(1));
    if (keys < 0 || keys > k.size(1)) {
      ark_fail(call, keys, k.size(1));
      return;
    }
    const ark_attention_operands<T> from(call, q, k, v, piece.b, piece.group,
                                         all.first(piece.group), start);
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
    const ark_attention_piece again = ark_attention_nth<ROWS>(ark_attention_anew(n), all, times);
    ark_attention_meet<parts, ROWS>(
        call.scratch, again.count, int(v.size(3)),
        [&](int row, float top, float total, const auto& sum) {
          const uint32_t at = uint32_t(again.first + row);
          const uint32_t width = uint32_t(all.count(again.group));
          finish(again.b, all.first(again.group) + int(at % width), int(at / width), top, total,
                 sum);
        });
    gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
  }
}

template <int ROWS, int DEPTH, int WIDTH, class T, class Length, class Scale, class Group>
ARK_FN void ark_attention(const ark_team&, const ark_call& call, const ark_tile<const T, 4>& q,
                          const ark_tile<const T, 4>& k, const ark_tile<const T, 4>& v,
                          const Length& length, const ark_tile<T, 4>& out, bool causal,
                          const Scale& scale, const Group& per_key, int64_t skipped) {
  const auto finish = [&](int b, int head, int time, float, float total, const auto& sum) {
    // Nothing seen: zeros.
    const float factor = total == 0 ? 0.0f : ark_divide(1.0f, total);
    T* const to = ark_operand<T>(call, ark_is_given<Length> ? 4 : 3) + b * out.stride(0) +
                  time * out.stride(1) + head * out.stride(2);
#pragma unroll 1
    for (int d = int(gpu_lane()); d < int(out.size(3)); d += int(GPU_WARP))
      to[d * out.stride(3)] = ark_store<T>(sum(d) * factor);
  };
  ark_attention_tile<ROWS, DEPTH, WIDTH>(call, q, k, v, length, int(out.start(1)),
                                         int(out.size(1)), causal, scale, per_key, skipped, 0, 1,
                                         finish);
}

// One of `splits` parts of the keys: for each row its sums over values, its largest score and
// its total, to be merged.
template <int ROWS, int DEPTH, int WIDTH, class T, class Length, class Scale, class Group>
ARK_FN void ark_attention(const ark_team&, const ark_call& call, const ark_tile<const T, 4>& q,
                          const ark_tile<const T, 4>& k, const ark_tile<const T, 4>& v,
                          const Length& length, const ark_tile<float, 5>& out, bool causal,
                          const Scale& scale, const Group& per_key, int64_t skipped,
                          int64_t splits) {
#pragma unroll 1
  for (int part = 0; part < int(out.size(0)); ++part) {
    const auto finish = [&](int b, int head, int time, float top, float total, const auto& sum) {
      float* const to = ark_operand<float>(call, ark_is_given<Length> ? 4 : 3) +
                        part * out.stride(0) + b * out.stride(1) + time * out.stride(2) +
                        head * out.stride(3);
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
                                           int(out.size(2)), causal, scale, per_key, skipped,
                                           int(out.start(0)) + part, int(splits), finish);
  }
}
