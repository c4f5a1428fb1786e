// Draw an index with the probabilities that logits give, by a whole CTA on a GPU. The results are
// those of sample.h bit for bit: the same comparisons and integer arithmetic.
//
// Rows are too long for shared memory. They are read from L2 several times, unless the few largest
// logits are all that matter: those are kept. Thresholds are found 4 bits of the key at a time.

// Bins of a search, and logits that a thread keeps: in scratch memory, one number per thread side
// by side. `cuda` in kernels/ops/sample.py knows both.
constexpr int ARK_SAMPLE_BINS = 16, ARK_SAMPLE_KEPT = 8;

struct ark_sample_memory {
  uint64_t* bins;
  uint64_t* sums;     // of each bin over all threads
  uint32_t* maxima;   // of each thread
  uint32_t* staged;   // keys of the chunk that a thread is at
  uint32_t* keys;     // of the logits that are kept,
  uint32_t* indices;  // and where they are in the row

  ARK_FN explicit ark_sample_memory(float* scratch) {
    constexpr int threads = int(ARK_CONSUMERS);
    bins = reinterpret_cast<uint64_t*>(scratch);
    sums = bins + ARK_SAMPLE_BINS * threads;
    maxima = reinterpret_cast<uint32_t*>(sums + ARK_SAMPLE_BINS);
    staged = maxima + threads;
    keys = staged + ARK_SAMPLE_KEPT * threads;
    indices = keys + ARK_SAMPLE_KEPT * threads;
  }
};

// Logits of one row.
template <class T>
struct ark_sample_row {
  static constexpr int chunk = ark_chunk<T>;
  static constexpr uint32_t step = ARK_CONSUMERS * chunk;
  static_assert(chunk <= ARK_SAMPLE_KEPT, "a short row is kept whole");
  const ark_team& team;
  ark_sample_memory memory;
  const T* data;
  int64_t stride;
  uint32_t n;
  bool is_aligned;
  uint32_t top;
  float temperature;
  int kept;  // logits that this thread keeps; -1 where the row itself is read

  ARK_FN gpu_vec4 read(uint32_t first) const {
    const uint32_t count = first < n ? n - first : 0;
    return ark_read_chunk(data + int64_t(count > 0 ? first : 0) * stride, stride,
                          count < uint32_t(chunk) ? int(count) : chunk, is_aligned);
  }

  // f(i, key) for this thread's logits, in the order of the row; of the row itself those from
  // chunk `passed` of this thread on.
  template <class F>
  ARK_FN void each(const F& f, uint32_t passed = 0) const {
    const uint32_t thread = gpu_thread(), start = thread * chunk + passed * step;
    if (kept >= 0) {
#pragma unroll 1
      for (int slot = 0; slot < kept; ++slot)
        f(memory.indices[slot * int(ARK_CONSUMERS) + int(thread)],
          memory.keys[slot * int(ARK_CONSUMERS) + int(thread)]);
      return;
    }
    gpu_vec4 next = read(start);
#pragma unroll 1
    for (uint32_t first = start; first < n; first += step) {
      float x[chunk];
      ark_unpack<T>(next, x);
      next = read(n - first > step ? first + step : n);
      // By way of shared memory: f is one piece of code, not one per logit.
#pragma unroll
      for (int e = 0; e < chunk; ++e)
        memory.staged[e * int(ARK_CONSUMERS) + int(thread)] = ark_order_key(x[e]);
      const uint32_t left = n - first, count = left < uint32_t(chunk) ? left : uint32_t(chunk);
#pragma unroll 1
      for (uint32_t e = 0; e < count; ++e)
        f(first + e, memory.staged[e * ARK_CONSUMERS + thread]);
    }
  }

  // Find the largest key; returns the first index that has it. Greedy decoding does nothing else,
  // so that more of the row is under way.
  ARK_FN uint32_t find_top() {
    constexpr uint32_t ahead = 4;
    uint32_t best = 0, found = 0, passed = 0;
    const auto look = [&](uint32_t i, uint32_t key) {
      found = key > best ? i : found;
      best = key > best ? key : best;
    };
    const uint32_t whole = is_aligned ? n / (ahead * step) * ahead : 0;
#pragma unroll 1
    for (; passed < whole; passed += ahead) {
      const uint32_t first = gpu_thread() * chunk + passed * step;
      gpu_vec4 parts[ahead];
#pragma unroll
      for (uint32_t u = 0; u < ahead; ++u)
        parts[u] = *reinterpret_cast<const gpu_vec4*>(data + first + u * step);
#pragma unroll
      for (uint32_t u = 0; u < ahead; ++u) {
        float x[chunk];
        ark_unpack<T>(parts[u], x);
#pragma unroll
        for (int e = 0; e < chunk; ++e) look(first + u * step + e, ark_order_key(x[e]));
      }
    }
    each(look, passed);
    memory.maxima[gpu_thread()] = best;
    const uint64_t first = team.combine(uint64_t(best) << 32 | uint32_t(~found),
                                        [](uint64_t a, uint64_t b) { return a > b ? a : b; });
    top = uint32_t(first >> 32);
    return ~uint32_t(first);
  }

  // A key that is at most that of the k-th largest logit: the k-th largest of the threads' maxima.
  ARK_FN uint32_t guess(uint32_t k) const {
    const uint32_t mine = memory.maxima[gpu_thread()];
    uint32_t rank = 0;
#pragma unroll 4
    for (uint32_t t = 0; t < ARK_CONSUMERS; ++t) {
      const uint32_t other = memory.maxima[t];
      rank += other > mine || (other == mine && t < gpu_thread());
    }
    const uint32_t key = rank + 1 == k ? mine : 0;
    return team.combine(key, [](uint32_t a, uint32_t b) { return a > b ? a : b; });
  }

  // Keep the logits from `low` on, if they are few enough for each thread.
  ARK_FN void keep(uint32_t low) {
    int count = 0;
    each([&](uint32_t i, uint32_t key) {
      if (key < low) return;
      if (count < ARK_SAMPLE_KEPT) {
        memory.keys[count * int(ARK_CONSUMERS) + int(gpu_thread())] = key;
        memory.indices[count * int(ARK_CONSUMERS) + int(gpu_thread())] = i;
      }
      ++count;
    });
    const int most = team.combine(count, [](int a, int b) { return a > b ? a : b; });
    if (most <= ARK_SAMPLE_KEPT) kept = count;
  }

  // How far a logit is below the largest one, in units of ln 2 over the temperature.
  ARK_FN int64_t distance(uint32_t key) const {
    const float d = ark_divide(ark_order_value(key) - ark_order_value(top), temperature);
    const float near = d > -ARK_SAMPLE_RANGE ? d : -ARK_SAMPLE_RANGE;
    return (int64_t(near * 67108864.0f) * ARK_LOG2_E) >> 26;  // 2^26
  }

  // Sum up the measures of all logits from `low` to `high` by bins of 2^shift keys.
  template <class Measure>
  ARK_FN void fill_bins(uint32_t low, uint32_t high, int shift, const Measure& measure) const {
    uint64_t* const mine = memory.bins + gpu_thread();
#pragma unroll
    for (int bin = 0; bin < ARK_SAMPLE_BINS; ++bin) mine[bin * int(ARK_CONSUMERS)] = 0;
    each([&](uint32_t, uint32_t key) {
      const uint32_t at = key - low;
      if (key >= low && key <= high) mine[(at >> shift) * ARK_CONSUMERS] += measure(key);
    });
    team.sync();
#pragma unroll 1
    for (int bin = int(gpu_warp()); bin < ARK_SAMPLE_BINS; bin += int(ARK_WARPS)) {
      uint64_t sum = 0;
#pragma unroll
      for (uint32_t t = 0; t < ARK_CONSUMERS; t += GPU_WARP)
        sum += memory.bins[uint32_t(bin) * ARK_CONSUMERS + t + gpu_lane()];
      sum = gpu_warp_reduce(sum, [](uint64_t a, uint64_t b) { return a + b; });
      if (gpu_lane() == 0) memory.sums[bin] = sum;
    }
    team.sync();
  }

  // The largest key from `low` on such that the measures of all logits from it on reach
  // wanted(those from `low` on); `low` if they do not.
  template <class Measure, class Wanted>
  ARK_FN uint32_t search(uint32_t low, const Measure& measure, const Wanted& wanted) const {
    uint32_t high = top;
    uint64_t above = 0, goal = 0;  // the measures beyond `high`, and what to reach
    for (bool is_first = true;; is_first = false) {
      // The exponent, or one more where rounding gives that, leaves 3 or 4 bits for the bin.
      const int exponent = int(ark_bits(float(high - low)) >> 23) - 127;
      const int shift = exponent > 3 ? exponent - 3 : 0;
      fill_bins(low, high, shift, measure);
      if (is_first) {
        uint64_t total = 0;
#pragma unroll 1
        for (int bin = 0; bin < ARK_SAMPLE_BINS; ++bin) total += memory.sums[bin];
        goal = wanted(total);
        if (total < goal) return low;
      }
      uint32_t bin = ARK_SAMPLE_BINS - 1;
#pragma unroll 1
      for (; bin > 0 && above + memory.sums[bin] < goal; --bin) above += memory.sums[bin];
      low += bin << shift;
      const uint32_t last = low + ((1u << shift) - 1);
      high = last < high ? last : high;
      if (shift == 0) return low;
    }
  }

  // The key of the k-th largest logit.
  ARK_FN uint32_t top_k(uint32_t low, uint32_t k) const {
    return search(low, [](uint32_t) { return uint64_t(1); }, [=](uint64_t) { return uint64_t(k); });
  }

  // The largest key such that logits from it on have the share `p` of those from `low` on.
  ARK_FN uint32_t top_p(uint32_t low, float p) const {
    const auto weight = [&](uint32_t key) { return uint64_t(ark_fixed_exp2(distance(key))); };
    return search(low, weight, [=](uint64_t total) {
      constexpr int bits = 24;  // of p
      const uint64_t share = p > 0 ? uint64_t(p * float(1 << bits)) : 0;
      const uint64_t rest = total & ((1 << bits) - 1);
      const uint64_t wanted = (total >> bits) * share + ((rest * share) >> bits);
      return wanted < 1 ? uint64_t(1) : wanted;
    });
  }

  // The index of the logit from `low` on whose sum with noise is largest; the first of equals.
  ARK_FN int64_t draw(uint32_t low, uint32_t seed, uint32_t row, uint32_t position) const {
    int64_t best = -(int64_t(1) << 62), found = n;
    uint32_t block = 0xffffffff;  // none: there are fewer
    ark_random noise = {};
    each([&](uint32_t i, uint32_t key) {
      if (key < low) return;
      if (block != i / 4) noise = ark_philox({{i / 4, row, position, 0}}, seed, 0);
      block = i / 4;
      const uint32_t even = i & 2 ? noise.word[2] : noise.word[0];
      const uint32_t odd = i & 2 ? noise.word[3] : noise.word[1], bits = i & 1 ? odd : even;
      const int64_t logit = distance(key);
      if (logit + ark_gumbel_limit(bits) < best) return;
      const int64_t score = logit + ark_gumbel(bits);
      found = score > best ? i : found;
      best = score > best ? score : best;
    });
    const int64_t most = team.combine(best, [](int64_t a, int64_t b) { return a > b ? a : b; });
    return team.combine(best == most ? found : int64_t(n),
                        [](int64_t a, int64_t b) { return a < b ? a : b; });
  }
};

template <class T, class Position, class Temperature, class TopK, class TopP, class Seed>
ARK_FN void ark_sample(const ark_team& team, const ark_call& call,
                       const ark_tile<const T, 2>& logits, const Position& position,
                       const Temperature& temperature, const TopK& top_k, const TopP& top_p,
                       const Seed& seed, const ark_tile<int32_t, 1>& out) {
  const int64_t n = logits.size(1), step = logits.stride(1);
#pragma unroll 1
  for (int64_t number = 0; number < out.size(0); ++number) {
    const T* data = logits.data + number * logits.stride(0);
    const float heat = ark_of_row(temperature, number);
    ark_sample_row<T> row = {team, ark_sample_memory(call.scratch), data, step, uint32_t(n),
                             ark_is_aligned(data, ark_chunk<T>, step), 0, heat, -1};
    int64_t token = row.find_top();
    if (heat > 0 && row.top < ARK_KEY_INFINITY && row.top >= ARK_KEY_LOWEST) {
      const int64_t k = ark_of_row(top_k, number);
      const float p = ark_of_row(top_p, number);
      const bool has_k = k > 0 && k < n;
      uint32_t low = ARK_KEY_LOWEST;
      const uint32_t guess = has_k && k <= ARK_CONSUMERS ? row.guess(uint32_t(k)) : 0;
      if (guess > low || n <= ARK_CONSUMERS * ARK_SAMPLE_KEPT) row.keep(guess > low ? guess : low);
      if (has_k) low = row.top_k(low, uint32_t(k));
      if (p < 1) low = row.top_p(low, p);
      token = row.draw(low, uint32_t(ark_of_row(seed, number)), uint32_t(out.start(0) + number),
                       uint32_t(ark_of_row(position, number)));
    }
    if (gpu_thread() == 0) out.data[number * out.stride(0)] = int32_t(token);
    team.sync();
  }
}
