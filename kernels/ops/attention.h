// Attention with grouped heads: softmax(q k^T * scale) v over blocks of keys, in one pass.

// Keys in a block, and query rows that share the reading of it. kernels/ops/attention.py knows
// both.
constexpr int64_t ARK_ATTENTION_KEYS = 64;
constexpr int64_t ARK_ATTENTION_ROWS = 16;
constexpr uint32_t ARK_MINUS_INFINITY = 0xff800000;

// Some query rows of one batch index and one group of heads: rows `first` to `first + count` of a
// tile that begins at time `start`, counted over times and, faster, the `heads` from `head0` on.
// Of `keys` that are valid, time t sees `later` less than t + 1 if `causal`.
struct ark_attention_rows {
  int64_t batch, group, head0, heads, start, first, count, keys, later;
  bool causal;

  ARK_FN int64_t time(int64_t r) const { return (first + r) / heads; }
  ARK_FN int64_t head(int64_t r) const { return head0 + (first + r) % heads; }

  // Keys that row r sees; of a block of `width` keys that begins at `from`.
  ARK_FN int64_t seen(int64_t r) const {
    const int64_t end = start + time(r) + 1 - later;
    return !causal ? keys : end < 0 ? 0 : end;
  }
  ARK_FN int64_t seen(int64_t r, int64_t from, int64_t width) const {
    const int64_t rest = seen(r) - from;
    return rest < 0 ? 0 : rest < width ? rest : width;
  }
};

// What a team keeps in scratch memory: rows as fp32, their scores in a block, and for each row
// the largest score so far, the sum of exp(score - largest), and the same sum over values.
struct ark_attention_memory {
  float *queries, *scores, *sums, *tops, *totals, *factors, *keys, *values;

  ARK_FN ark_attention_memory(float* scratch, int64_t depth, int64_t width) {
    queries = scratch;
    scores = queries + ARK_ATTENTION_ROWS * depth;
    sums = scores + ARK_ATTENTION_ROWS * ARK_ATTENTION_KEYS;
    tops = sums + ARK_ATTENTION_ROWS * width;
    totals = tops + ARK_ATTENTION_ROWS;
    factors = totals + ARK_ATTENTION_ROWS;
    keys = factors + ARK_ATTENTION_ROWS;
    values = keys + ARK_ATTENTION_KEYS * depth;
  }
};

// Fold n values into one: in lanes where one thread works alone.
template <class Team, class Row, class Step>
ARK_FN float ark_attention_fold(const Row& row, int64_t n, float start, const Step& step) {
  if constexpr (Team::size == 1) {
    return ark_fold_lanes<float>(row, n, start, step);
  } else {
    float result = start;
    for (int64_t i = 0; i < n; ++i) result = step(result, row(i));
    return result;
  }
}

template <class Team, class Row>
ARK_FN float ark_attention_sum(const Row& row, int64_t n) {
  return ark_attention_fold<Team>(row, n, 0.0f, [](float a, float b) { return a + b; });
}

// The exponent's base: the largest score, or 0 where all are minus infinity.
ARK_FN float ark_attention_base(float top) {
  return ark_bits(top) == ARK_MINUS_INFINITY ? 0.0f : top;
}

// Read rows [0, n) of a matrix into fp32.
template <class Team, class T>
ARK_FN void ark_attention_load(const Team& team, float* to, const T* from, int64_t n,
                               int64_t columns, int64_t row_stride, int64_t stride) {
  const bool is_plain = stride == 1;
  ark_each_cell(team, n, columns, [&](int64_t i) {
    const T* row = from + i * row_stride;
    float* target = to + i * columns;
    return [=](int64_t j) { target[j] = ark_load<T>(is_plain ? row[j] : row[j * stride]); };
  });
}

// sums[r] = sums[r] * factor + sum over keys of score * value.
template <class Team>
ARK_FN void ark_attention_values(const Team& team, float* sums, float factor, const float* scores,
                                 const float* values, int64_t n, int64_t width) {
  if constexpr (Team::size == 1) {
    team.each(width, [&](int64_t d) { sums[d] *= factor; });
    int64_t j = 0;
    for (; j + 4 <= n; j += 4) {
      const float* v = values + j * width;
      const float a = scores[j], b = scores[j + 1], c = scores[j + 2], e = scores[j + 3];
      team.each(width, [=](int64_t d) {
        sums[d] += (a * v[d] + b * v[width + d]) + (c * v[2 * width + d] + e * v[3 * width + d]);
      });
    }
    for (; j < n; ++j) {
      const float* v = values + j * width;
      const float a = scores[j];
      team.each(width, [=](int64_t d) { sums[d] += a * v[d]; });
    }
  } else {
    team.each(width, [&](int64_t d) {
      float sum = sums[d] * factor;
      for (int64_t j = 0; j < n; ++j) sum += scores[j] * values[j * width + d];
      sums[d] = sum;
    });
  }
}

// Take a block of keys, of which row r sees `seen(r)`, into all rows' sums.
template <class Team, class Seen>
ARK_FN void ark_attention_block(const Team& team, const ark_attention_memory& m, int64_t count,
                                int64_t keys, int64_t depth, int64_t width, const Seen& seen) {
  ark_each_cell(team, count, keys, [&](int64_t r) {
    const float* query = m.queries + r * depth;
    float* scores = m.scores + r * ARK_ATTENTION_KEYS;
    const float* block = m.keys;
    return [=](int64_t j) {
      const auto product = [=](int64_t d) { return query[d] * block[j * depth + d]; };
      scores[j] = ark_attention_sum<Team>(product, depth);
    };
  });
  team.sync();
  team.each(count, [&](int64_t r) {
    const auto larger = [](float a, float b) { return b > a || b != b ? b : a; };
    const ark_row<float> scores{m.scores + r * ARK_ATTENTION_KEYS, 1};
    const float top = ark_attention_fold<Team>(scores, seen(r), m.tops[r], larger);
    m.factors[r] = ark_exp(m.tops[r] - ark_attention_base(top));
    m.tops[r] = top;
  });
  team.sync();
  ark_each_cell(team, count, keys, [&](int64_t r) {
    float* scores = m.scores + r * ARK_ATTENTION_KEYS;
    const float base = ark_attention_base(m.tops[r]);
    return [=](int64_t j) { scores[j] = ark_exp(scores[j] - base); };
  });
  team.sync();
  team.each(count, [&](int64_t r) {
    const ark_row<float> scores{m.scores + r * ARK_ATTENTION_KEYS, 1};
    m.totals[r] = m.totals[r] * m.factors[r] + ark_attention_sum<Team>(scores, seen(r));
  });
  for (int64_t r = 0; r < count; ++r)
    ark_attention_values(team, m.sums + r * width, m.factors[r],
                         m.scores + r * ARK_ATTENTION_KEYS, m.values, seen(r), width);
  team.sync();
}

// Key blocks `block`, `block + step`, ... that the last row sees into the sums of some rows.
template <class Team, class T>
ARK_PART void ark_attention_sums(const Team& team, const ark_attention_memory& m,
                                 const ark_attention_rows& rows, const ark_tile<const T, 4>& q,
                                 const ark_tile<const T, 4>& k, const ark_tile<const T, 4>& v,
                                 float scale, int64_t block, int64_t step) {
  const int64_t depth = q.size(3), width = v.size(3);
  ark_each_cell(team, rows.count, depth, [&](int64_t r) {
    const T* query = &q.at(rows.batch, rows.start + rows.time(r), rows.head(r), 0);
    const int64_t stride = q.stride(3);
    float* to = m.queries + r * depth;
    return [=](int64_t d) { to[d] = ark_load<T>(query[d * stride]) * scale; };
  });
  for (int64_t r = 0; r < rows.count; ++r)
    team.each(width, [&](int64_t d) { m.sums[r * width + d] = 0; });
  team.each(rows.count, [&](int64_t r) {
    m.tops[r] = ark_from_bits(ARK_MINUS_INFINITY);
    m.totals[r] = 0;
  });
  const int64_t most = rows.seen(rows.count - 1);  // later times see more
  for (; block * ARK_ATTENTION_KEYS < most; block += step) {
    const int64_t first = block * ARK_ATTENTION_KEYS, left = most - first;
    const int64_t keys = left < ARK_ATTENTION_KEYS ? left : ARK_ATTENTION_KEYS;
    ark_attention_load(team, m.keys, &k.at(rows.batch, first, rows.group, 0), keys, depth,
                       k.stride(1), k.stride(3));
    ark_attention_load(team, m.values, &v.at(rows.batch, first, rows.group, 0), keys, width,
                       v.stride(1), v.stride(3));
    team.sync();
    ark_attention_block(team, m, rows.count, keys, depth, width,
                        [&](int64_t r) { return rows.seen(r, first, keys); });
  }
  team.sync();
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
template <class Team, class T, class Length, class Scale, class Group, class Finish>
ARK_FN void ark_attention_tile(const Team& team, const ark_call& call,
                               const ark_tile<const T, 4>& q, const ark_tile<const T, 4>& k,
                               const ark_tile<const T, 4>& v, const Length& length,
                               int64_t start, int64_t times, bool causal, const Scale& scale,
                               const Group& per_key, int64_t skipped, int64_t block,
                               int64_t step, const Finish& finish) {
  const int64_t depth = q.size(3);
  int64_t before = 0;
  if constexpr (ark_is_given<Group>) before = (q.start(2) + skipped) % per_key;
  const ark_attention_memory memory(call.scratch, depth, v.size(3));
  float factor = 0;
  if constexpr (ark_is_given<Scale>)
    factor = scale;
  else
    factor = 1.0f / ark_sqrt(float(depth));
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
                                      count, keys, q.size(1) - keys, causal};
        ark_attention_sums(team, memory, rows, q, k, v, factor, block, step);
        finish(rows, memory);
        team.sync();
      }
    }
  }
}

template <class Team, class T, class Length, class Scale, class Group>
ARK_FN void ark_attention(const Team& team, const ark_call& call, const ark_tile<const T, 4>& q,
                          const ark_tile<const T, 4>& k, const ark_tile<const T, 4>& v,
                          const Length& length, const ark_tile<T, 4>& out, bool causal,
                          const Scale& scale, const Group& per_key, int64_t skipped) {
  const int64_t width = out.size(3), stride = out.stride(3);
  const auto finish = [&](const ark_attention_rows& rows, const ark_attention_memory& m) {
    for (int64_t r = 0; r < rows.count; ++r) {
      // Nothing seen: zeros.
      const float factor = m.totals[r] == 0 ? 0.0f : 1.0f / m.totals[r];
      T* to = &out.at(rows.batch, rows.time(r), rows.head(r), 0);
      const float* sums = m.sums + r * width;
      team.each(width, [=](int64_t d) { to[d * stride] = ark_store<T>(sums[d] * factor); });
    }
  };
  ark_attention_tile(team, call, q, k, v, length, out.start(1), out.size(1), causal, scale,
                     per_key, skipped, 0, 1, finish);
}

// One of `splits` parts of the keys: for each row its sums over values, its largest score and
// its total, to be merged.
template <class Team, class T, class Length, class Scale, class Group>
ARK_FN void ark_attention(const Team& team, const ark_call& call, const ark_tile<const T, 4>& q,
                          const ark_tile<const T, 4>& k, const ark_tile<const T, 4>& v,
                          const Length& length, const ark_tile<float, 5>& out, bool causal,
                          const Scale& scale, const Group& per_key, int64_t skipped,
                          int64_t splits) {
  const int64_t width = v.size(3), stride = out.stride(4);
  for (int64_t part = 0; part < out.size(0); ++part) {
    const auto finish = [&](const ark_attention_rows& rows, const ark_attention_memory& m) {
      for (int64_t r = 0; r < rows.count; ++r) {
        float* to = &out.at(part, rows.batch, rows.time(r), rows.head(r), 0);
        const float* sums = m.sums + r * width;
        team.each(width, [=](int64_t d) { to[d * stride] = sums[d]; });
        team.each(1, [&](int64_t) {
          to[width * stride] = m.tops[r];
          to[(width + 1) * stride] = m.totals[r];
        });
      }
    };
    ark_attention_tile(team, call, q, k, v, length, out.start(2), out.size(2), causal, scale,
                       per_key, skipped, out.start(0) + part, splits, finish);
  }
}
