// Attention with grouped heads on a CPU: softmax(q k^T * scale) v over blocks of keys, in one pass
// (online softmax: Milakov and Gimelshein 2018; in blocks: Dao et al. 2022). The query rows that
// share a key head pass a block together. The order of a row's sums depends on its keys alone, not
// on the rows beside it.

#include "include/attention.h"

// Keys in a block, and query rows that share the reading of it. kernels/ops/attention.py knows
// both.
static_assert(ARK_ATTENTION_KEYS == 64);
constexpr int64_t ARK_ATTENTION_ROWS = 192;
// Up to this many rows, scores are dot products with the keys as they lie; more are worth turning
// a block of keys around.
constexpr int64_t ARK_ATTENTION_FEW = 4;
constexpr uint32_t ARK_MINUS_INFINITY = 0xff800000;

// Some query rows of one batch index and one group of heads: rows `first` to `first + count` of a
// tile that begins at time `start`, counted over times and, faster, the `heads` from `head0` on.
// Of `keys` that are valid, time t sees `later` less than t + 1 if `causal`.
struct ark_attention_rows {
  int64_t batch, group, head0, heads, start, first, count, keys, later;
  bool causal, is_few;

  ARK_FN int64_t time(int64_t r) const { return (first + r) / heads; }
  ARK_FN int64_t head(int64_t r) const { return head0 + (first + r) % heads; }

  // Keys that row r sees; later rows see no less.
  ARK_FN int64_t seen(int64_t r) const {
    const int64_t end = start + time(r) + 1 - later;
    return !causal ? keys : end < 0 ? 0 : end;
  }
};

// What a worker keeps in scratch memory: rows, their scores in a block, and for each row the sums
// of exp(score - largest) times the value, and without it in lanes, and the largest score so far.
// Of a block the keys, as they lie or turned around, and values.
struct ark_attention_memory {
  int64_t depth, width;  // 32-bit units of a row, in whole vectors
  float *scores, *totals, *tops, *factors, *sums, *queries, *keys, *values, *staged;
  int64_t seen[ARK_ATTENTION_ROWS];

  ARK_FN ark_attention_memory(float* scratch, int64_t units, int64_t columns)
      : depth(ark_attention_whole(units)), width(ark_attention_whole(columns)) {
    const int64_t chunks = (units + ARK_ATTENTION_KEYS - 1) / ARK_ATTENTION_KEYS;
    const uint64_t at = reinterpret_cast<uint64_t>(scratch);
    scores = scratch + (-at / sizeof(float)) % ARK_ATTENTION_UNIT;
    totals = scores + ARK_ATTENTION_ROWS * ARK_ATTENTION_KEYS;
    tops = totals + ARK_ATTENTION_ROWS * ARK_ATTENTION_UNIT;
    factors = tops + ARK_ATTENTION_ROWS;
    sums = factors + ARK_ATTENTION_ROWS;
    queries = sums + ARK_ATTENTION_ROWS * width;
    keys = queries + chunks * ARK_ATTENTION_ROWS * ARK_ATTENTION_KEYS;
    values = keys + ARK_ATTENTION_KEYS * depth;
    staged = values + ARK_ATTENTION_KEYS * width;
  }

  // Unit `unit` of a row of queries; ARK_ATTENTION_KEYS of them lie side by side.
  ARK_FN float* query(int64_t row, int64_t unit) const {
    return queries + (unit / ARK_ATTENTION_KEYS * ARK_ATTENTION_ROWS + row) * ARK_ATTENTION_KEYS +
           unit % ARK_ATTENTION_KEYS;
  }
  ARK_FN float* score(int64_t row) const { return scores + row * ARK_ATTENTION_KEYS; }
  ARK_FN float total(int64_t row) const {
    float sum = 0;
    for (int i = 0; i < ARK_ATTENTION_LANES; ++i) sum += totals[row * ARK_ATTENTION_UNIT + i];
    return sum;
  }
};

// Keys turned around: unit u of key j is keys[u * ARK_ATTENTION_KEYS + j].
template <class Units, class T>
ARK_PART void ark_attention_turned(const ark_attention_memory& m,
                                   const ark_attention_lines<T>& from, int64_t n, int64_t depth) {
  const bool is_plain = from.template is_plain<Units>(depth);
  for (int64_t j = 0; j < n; j += ARK_ATTENTION_LANES) {
    const T* first = from.data + j * from.row_stride;
    const char* source = reinterpret_cast<const char*>(first);
    int64_t bytes = from.row_stride * int64_t(sizeof(T));
    if (!is_plain || j + ARK_ATTENTION_LANES > n) {
      for (int64_t i = 0; i < ARK_ATTENTION_LANES && j + i < n; ++i)
        ark_attention_copy<Units>(m.staged + i * m.depth, first + i * from.row_stride, depth,
                                  from.stride);
      source = reinterpret_cast<const char*>(m.staged);
      bytes = m.depth * int64_t(sizeof(float));
    }
    for (int64_t u = 0; u < m.depth; u += ARK_ATTENTION_LANES) {
      ark_attention_vector x[ARK_ATTENTION_LANES];
      ARK_UNROLL
      for (int i = 0; i < ARK_ATTENTION_LANES; ++i)
        x[i] = ark_attention_read(source + i * bytes + u * int64_t(sizeof(float)));
      ark_attention_turn(x);
      ARK_UNROLL
      for (int i = 0; i < ARK_ATTENTION_LANES; ++i)
        ark_attention_write(m.keys + (u + i) * ARK_ATTENTION_KEYS + j, x[i]);
    }
  }
}

// Scores of few rows: dot products with keys that lie `bytes` apart; `ahead` bytes behind them lie
// those that come next.
template <class Units>
ARK_PART void ark_attention_dots(const ark_attention_memory& m, int64_t rows, const char* keys,
                                 int64_t bytes, int64_t n, int64_t ahead) {
  for (int64_t j = 0; j < n; j += ARK_ATTENTION_LANES, keys += ARK_ATTENTION_LANES * bytes) {
    if (ahead != 0)
      for (int i = 0; i < ARK_ATTENTION_LANES; ++i)
        ark_attention_ask(keys + i * bytes + ahead, m.depth * int64_t(sizeof(float)));
    for (int64_t r = 0; r < rows; ++r) {
      ark_attention_vector x[ARK_ATTENTION_LANES] = {};
      for (int64_t u = 0; u < m.depth; u += ARK_ATTENTION_LANES) {
        const ark_attention_vector query = ark_attention_read(m.query(r, u));
        const char* key = keys + u * int64_t(sizeof(float));
        ARK_UNROLL
        for (int i = 0; i < ARK_ATTENTION_LANES; ++i)
          Units::add(x[i], query, ark_attention_read(key + i * bytes));
      }
      ark_attention_fold(x);
      ark_attention_write(m.score(r) + j, x[0]);
    }
  }
}

// Keys of a block that row r sees, of which `before` come before it.
ARK_FN int64_t ark_attention_seen(const ark_attention_memory& m, int64_t r, int64_t before) {
  const int64_t left = m.seen[r] - before;
  return left < ARK_ATTENTION_KEYS ? left : ARK_ATTENTION_KEYS;
}

// Scale scores of rows from `first` on, and find the largest ones so far and what they make of the
// sums so far: their factors.
ARK_FN void ark_attention_tops(const ark_attention_memory& m, int64_t first, int64_t count,
                               int64_t before, float scale) {
  const float nothing = ark_from_bits(ARK_MINUS_INFINITY);
  for (int64_t r = first; r < count; ++r) {
    const int64_t n = ark_attention_seen(m, r, before);
    float* scores = m.score(r);
    ark_attention_vector top = ark_attention_every(m.tops[r]);
    for (int64_t j = 0; j < n; j += ARK_ATTENTION_LANES) {
      ark_attention_vector x = ark_attention_read(scores + j) * scale;
      if (j + ARK_ATTENTION_LANES > n)
        x = ark_attention_first(x, n - j, nothing, ark_attention_all{});
      ark_attention_write(scores + j, x);
      top = ark_attention_larger(x, top);
    }
    m.factors[r] = m.tops[r];
    m.tops[r] = ark_attention_largest(top);
  }
  for (int64_t r = first / ARK_ATTENTION_LANES * ARK_ATTENTION_LANES; r < count;
       r += ARK_ATTENTION_LANES) {
    const ark_attention_vector top = ark_attention_base(ark_attention_read(m.tops + r));
    ark_attention_write(m.factors + r, ark_attention_exp(ark_attention_read(m.factors + r) - top));
  }
}

// Put weights in the place of scores, and add them up.
ARK_PART void ark_attention_weights(const ark_attention_memory& m, int64_t first, int64_t count,
                                    int64_t before, float scale) {
  ark_attention_tops(m, first, count, before, scale);
  for (int64_t r = first; r < count; ++r) {
    const int64_t n = ark_attention_seen(m, r, before);
    float* scores = m.score(r);
    const ark_attention_vector top = ark_attention_base(ark_attention_every(m.tops[r]));
    float* totals = m.totals + r * ARK_ATTENTION_UNIT;
    ark_attention_vector total = ark_attention_read(totals) * m.factors[r];
    for (int64_t j = 0; j < n; j += ARK_ATTENTION_LANES) {
      const ark_attention_vector weight = ark_attention_exp(ark_attention_read(scores + j) - top);
      ark_attention_write(scores + j, weight);
      total += weight;
    }
    ark_attention_write(totals, total);
  }
}

// Scores of many rows with keys that are turned around.
template <class Units>
ARK_FN void ark_attention_scores(const ark_attention_memory& m, int64_t first, int64_t count,
                                 int64_t units, int64_t before) {
  ark_attention_pieces(first, count, [&](auto piece, int64_t r) {
    const int64_t keys = ark_attention_seen(m, r + piece.rows - 1, before);
    for (int64_t u = 0; u < units; u += ARK_ATTENTION_KEYS) {
      const int64_t left = units - u;
      const int64_t depth = left < ARK_ATTENTION_KEYS ? left : ARK_ATTENTION_KEYS;
      const float* block = m.keys + u * ARK_ATTENTION_KEYS;
      ark_attention_multiply<Units, piece.rows, float>(
          {m.score(r), ARK_ATTENTION_KEYS, m.query(r, u), block, ARK_ATTENTION_KEYS, depth, keys,
           nullptr, u == 0});
    }
  });
}

// sums = sums * factor + weights * values.
template <class T>
ARK_FN void ark_attention_values(const ark_attention_memory& m, int64_t first, int64_t count,
                                 const T* values, int64_t stride, int64_t before,
                                 int64_t ahead) {
  ark_attention_pieces(first, count, [&](auto piece, int64_t r) {
    const int64_t whole = ark_attention_seen(m, r, before);
    float* sums = m.sums + r * m.width;
    ark_attention_multiply<ark_attention_floats, piece.rows, T>(
        {sums, m.width, m.score(r), values, stride, whole, m.width, m.factors + r, false, ahead});
    // A row has no part in what it doesn't see, not even as 0 times NaN.
    for (int64_t i = 1; i < piece.rows; ++i) {
      const int64_t rest = ark_attention_seen(m, r + i, before) - whole;
      if (rest > 0)
        ark_attention_multiply<ark_attention_floats, 1, T>(
            {sums + i * m.width, m.width, m.score(r + i) + whole, values + whole * stride, stride,
             rest, m.width, nullptr, false});
    }
  });
}

// Take a block of keys, before which `before` come, into the sums of the rows from `first` on; the
// next one lies `ahead` keys behind it, if that is not 0.
template <class T>
ARK_FN void ark_attention_block(const ark_attention_memory& m, int64_t first, int64_t count,
                                const ark_attention_lines<T>& keys,
                                const ark_attention_lines<T>& values, int64_t n, int64_t depth,
                                int64_t width, int64_t before, float scale, bool is_few,
                                int64_t ahead) {
  typedef ark_attention_units<T> Units;
  if (is_few) {
    const char* data = reinterpret_cast<const char*>(keys.data);
    int64_t bytes = keys.row_stride * int64_t(sizeof(T)), ahead_bytes = ahead * bytes;
    if (n < ARK_ATTENTION_KEYS || !keys.template is_plain<Units>(depth)) {
      ark_attention_rows_of<Units>(m.keys, m.depth, keys, n, depth);
      data = reinterpret_cast<const char*>(m.keys);
      bytes = m.depth * int64_t(sizeof(float));
      ahead_bytes = 0;
    }
    ark_attention_dots<Units>(m, count, data, bytes, n, ahead_bytes);
  } else {
    ark_attention_turned<Units>(m, keys, n, depth);
    ark_attention_scores<Units>(m, first, count, (depth + Units::elements - 1) / Units::elements,
                                before);
  }
  ark_attention_weights(m, first, count, before, scale);
  if constexpr (ark_attention_widens<T>)
    if (is_few && values.is_whole(width, 1)) {
      ark_attention_values(m, first, count, values.data, values.row_stride, before,
                           ahead * values.row_stride);
      return;
    }
  ark_attention_rows_of<ark_attention_floats>(m.values, m.width, values, n, width);
  ark_attention_values(m, first, count, m.values, m.width, before, 0);
}

// --- rows ---------------------------------------------------------------------------------------

// Key blocks `block`, `block + step`, ... that the last row sees into the sums of some rows.
template <class T>
ARK_PART void ark_attention_sums(ark_attention_memory& m, const ark_attention_rows& rows,
                                 const ark_tile<const T, 4>& q, const ark_tile<const T, 4>& k,
                                 const ark_tile<const T, 4>& v, float scale, int64_t block,
                                 int64_t step) {
  typedef ark_attention_units<T> Units;
  constexpr int64_t chunk = ARK_ATTENTION_KEYS * Units::elements;
  const int64_t depth = q.size(3), width = v.size(3);
  for (int64_t r = 0; r < rows.count; ++r) {
    const T* query = &q.at(rows.batch, rows.start + rows.time(r), rows.head(r), 0);
    for (int64_t d = 0; d < depth; d += chunk)
      ark_attention_copy<Units>(m.query(r, d / Units::elements), query + d * q.stride(3),
                                depth - d < chunk ? depth - d : chunk, q.stride(3));
    m.seen[r] = rows.seen(r);
    m.tops[r] = ark_from_bits(ARK_MINUS_INFINITY);
  }
  for (int64_t i = 0; i < rows.count * m.width; ++i) m.sums[i] = 0;
  for (int64_t i = 0; i < rows.count * ARK_ATTENTION_UNIT; ++i) m.totals[i] = 0;
  const int64_t most = m.seen[rows.count - 1];
  int64_t first = 0;
  for (; block * ARK_ATTENTION_KEYS < most; block += step) {
    const int64_t before = block * ARK_ATTENTION_KEYS, left = most - before;
    while (m.seen[first] <= before) ++first;
    const ark_attention_lines<T> keys{&k.at(rows.batch, before, rows.group, 0), k.stride(1),
                                      k.stride(3)};
    const ark_attention_lines<T> values{&v.at(rows.batch, before, rows.group, 0), v.stride(1),
                                        v.stride(3)};
    ark_attention_block(m, first, rows.count, keys, values,
                        left < ARK_ATTENTION_KEYS ? left : ARK_ATTENTION_KEYS, depth, width, before,
                        scale, rows.is_few, step * ARK_ATTENTION_KEYS);
  }
}

template <class Length>
ARK_FN int64_t ark_attention_length(const Length& length, int64_t row, int64_t most) {
  if constexpr (ark_is_given<Length>)
    return ark_of_row(length, row);
  else
    return most;
}

// The query heads of a tile that share a key head: `count` from `first` on. Given `per_key`, of
// the first key head `before` are not in the tile.
struct ark_attention_heads {
  int64_t first, count;
};

template <class Group>
ARK_FN ark_attention_heads ark_attention_group(int64_t group, int64_t groups, int64_t heads,
                                               const Group& per_key, int64_t before) {
  if constexpr (ark_is_given<Group>) {
    const int64_t from = group * per_key - before, to = from + per_key;
    const int64_t first = from > 0 ? from : 0;
    return {first, (to < heads ? to : heads) - first};
  } else {
    return {group * (heads / groups), heads / groups};
  }
}

// Call finish(rows, memory) for all rows of a tile that begins at time `start`, with the sums
// over key blocks `block`, `block + step`, ... Heads are those of `ark_attention_group`, where
// `skipped` are missing from the tensor.
template <class T, class Length, class Scale, class Group, class Finish>
ARK_FN void ark_attention_tile(const ark_call& call, const ark_tile<const T, 4>& q,
                               const ark_tile<const T, 4>& k, const ark_tile<const T, 4>& v,
                               const Length& length, int64_t start, int64_t times, bool causal,
                               const Scale& scale, const Group& per_key, int64_t skipped,
                               int64_t block, int64_t step, const Finish& finish) {
  constexpr int64_t elements = ark_attention_units<T>::elements;
  const int64_t depth = q.size(3);
  int64_t before = 0;
  if constexpr (ark_is_given<Group>) before = (q.start(2) + skipped) % per_key;
  ark_attention_memory memory(call.scratch, (depth + elements - 1) / elements, v.size(3));
  float factor = 0;
  if constexpr (ark_is_given<Scale>)
    factor = scale;
  else
    factor = 1.0f / ark_sqrt(float(depth));
  int64_t group = ark_quotient(q.size(2), k.size(2));
  if constexpr (ark_is_given<Group>) group = per_key;
  // All times', so that it is the same however they are cut.
  const bool is_few = q.size(1) * group <= ARK_ATTENTION_FEW;
  for (int64_t b = 0; b < q.size(0); ++b) {
    const int64_t keys = ark_attention_length(length, b, k.size(1));
    if (keys < 0 || keys > k.size(1)) {
      ark_fail(call, keys, k.size(1));
      return;
    }
    for (int64_t g = 0; g < k.size(2); ++g) {
      const ark_attention_heads heads =
          ark_attention_group(g, k.size(2), q.size(2), per_key, before);
      for (int64_t row = 0; row < times * heads.count; row += ARK_ATTENTION_ROWS) {
        const int64_t left = times * heads.count - row;
        const int64_t count = left < ARK_ATTENTION_ROWS ? left : ARK_ATTENTION_ROWS;
        const ark_attention_rows rows{b,     g,    heads.first,      heads.count, start, row,
                                      count, keys, q.size(1) - keys, causal, is_few};
        ark_attention_sums(memory, rows, q, k, v, factor, block, step);
        finish(rows, memory);
      }
    }
  }
}

template <class Team, class T, class Length, class Scale, class Group>
ARK_FN void ark_attention(const Team&, const ark_call& call, const ark_tile<const T, 4>& q,
                          const ark_tile<const T, 4>& k, const ark_tile<const T, 4>& v,
                          const Length& length, const ark_tile<T, 4>& out, bool causal,
                          const Scale& scale, const Group& per_key, int64_t skipped) {
  const int64_t width = out.size(3), stride = out.stride(3);
  const auto finish = [&](const ark_attention_rows& rows, const ark_attention_memory& m) {
    for (int64_t r = 0; r < rows.count; ++r) {
      const float total = m.total(r);
      const float factor = total == 0 ? 0.0f : 1.0f / total;  // nothing seen: zeros
      T* to = &out.at(rows.batch, rows.time(r), rows.head(r), 0);
      float* sums = m.sums + r * m.width;
      for (int64_t d = 0; d < width; ++d) sums[d] *= factor;
      if (stride == 1)
        ark_narrow(to, sums, width);
      else
        for (int64_t d = 0; d < width; ++d) to[d * stride] = ark_store<T>(sums[d]);
    }
  };
  ark_attention_tile(call, q, k, v, length, out.start(1), out.size(1), causal, scale, per_key,
                     skipped, 0, 1, finish);
}

// One of `splits` parts of the keys: for each row its sums over values, its largest score and
// its total, to be merged.
template <class Team, class T, class Length, class Scale, class Group>
ARK_FN void ark_attention(const Team&, const ark_call& call, const ark_tile<const T, 4>& q,
                          const ark_tile<const T, 4>& k, const ark_tile<const T, 4>& v,
                          const Length& length, const ark_tile<float, 5>& out, bool causal,
                          const Scale& scale, const Group& per_key, int64_t skipped,
                          int64_t splits) {
  const int64_t width = v.size(3), stride = out.stride(4);
  for (int64_t part = 0; part < out.size(0); ++part) {
    const auto finish = [&](const ark_attention_rows& rows, const ark_attention_memory& m) {
      for (int64_t r = 0; r < rows.count; ++r) {
        float* to = &out.at(part, rows.batch, rows.time(r), rows.head(r), 0);
        const float* sums = m.sums + r * m.width;
        for (int64_t d = 0; d < width; ++d) to[d * stride] = sums[d];
        to[width * stride] = m.tops[r];
        to[(width + 1) * stride] = m.total(r);
      }
    };
    ark_attention_tile(call, q, k, v, length, out.start(2), out.size(2), causal, scale, per_key,
                       skipped, out.start(0) + part, splits, finish);
  }
}
