// Draw an index with the probabilities that logits give. All that decides is a comparison, one
// rounded operation or integer arithmetic, so that every device draws the same.

// Logits of one row as keys.
template <class Team>
struct ark_sampler {
  const Team& team;
  uint32_t* keys;
  uint32_t* weights;
  int64_t n;
  uint32_t top;
  float temperature;

  // How far a logit is below the largest one, in units of ln 2 over the temperature.
  ARK_FN int64_t distance(uint32_t key) const {
    const float d = (ark_order_value(key) - ark_order_value(top)) / temperature;
    const float near = d > -ARK_SAMPLE_RANGE ? d : -ARK_SAMPLE_RANGE;
    return (int64_t(near * 67108864.0f) * ARK_LOG2_E) >> 26;  // 2^26
  }

  // The largest key from `low` on whose measure reaches `wanted`; `low` if none does. The
  // measure falls as keys grow.
  template <class Measure>
  ARK_FN uint32_t search(uint32_t low, int64_t wanted, const Measure& measure) const {
    uint32_t high = top;
    while (low < high) {
      const uint32_t middle = low + (high - low) / 2 + 1;
      if (measure(middle) >= wanted)
        low = middle;
      else
        high = middle - 1;
    }
    return low;
  }

  // The key of the k-th largest logit.
  ARK_FN uint32_t top_k(uint32_t low, int64_t k) const {
    return search(low, k, [&](uint32_t key) {
      const auto row = [&](int64_t i) { return int64_t(keys[i] >= key); };
      return ark_sum<int64_t>(team, row, n);
    });
  }

  // The largest key such that logits from it on have the share `p` of those from `low` on.
  ARK_FN uint32_t top_p(uint32_t low, float p) const {
    team.each(n, [&](int64_t i) {
      weights[i] = keys[i] >= low ? ark_fixed_exp2(distance(keys[i])) : 0;
    });
    const auto mass = [&](uint32_t key) {
      const auto row = [&](int64_t i) { return keys[i] >= key ? int64_t(weights[i]) : 0; };
      return ark_sum<int64_t>(team, row, n);
    };
    constexpr int bits = 24;  // of p
    const int64_t total = mass(low), share = p > 0 ? int64_t(p * float(1 << bits)) : 0;
    const int64_t rest = total & ((1 << bits) - 1);
    const int64_t wanted = (total >> bits) * share + ((rest * share) >> bits);
    return search(low, wanted < 1 ? 1 : wanted, mass);
  }

  // The index from `low` on whose logit and noise are largest; the first of equals.
  ARK_FN int64_t draw(uint32_t low, uint32_t seed, uint32_t row, uint32_t position) const {
    int64_t best = -(int64_t(1) << 62), found = n;
    for (int64_t c = team.rank(); 4 * c < n; c += Team::size) {
      const ark_random noise = ark_philox({{uint32_t(c), row, position, 0}}, seed, 0);
      for (int lane = 0; lane < 4; ++lane) {
        const int64_t i = 4 * c + lane;
        if (i >= n || keys[i] < low) continue;
        const int64_t logit = distance(keys[i]);
        if (logit + ark_gumbel_limit(noise.word[lane]) < best) continue;
        const int64_t score = logit + ark_gumbel(noise.word[lane]);
        if (score > best) {
          best = score;
          found = i;
        }
      }
    }
    const int64_t most = team.combine(best, [](int64_t a, int64_t b) { return a > b ? a : b; });
    return team.combine(best == most ? found : n,
                        [](int64_t a, int64_t b) { return a < b ? a : b; });
  }
};

template <class Team, class T, class Position, class Temperature, class TopK, class TopP,
          class Seed>
ARK_FN void ark_sample(const Team& team, const ark_call& call, const ark_tile<const T, 2>& logits,
                       const Position& position, const Temperature& temperature, const TopK& top_k,
                       const TopP& top_p, const Seed& seed, const ark_tile<int32_t, 1>& out) {
  const int64_t n = logits.size(1), step = logits.stride(1);
  uint32_t* keys = reinterpret_cast<uint32_t*>(call.scratch);
  for (int64_t row = 0; row < out.size(0); ++row) {
    const T* data = logits.data + row * logits.stride(0);
    team.each(n, [&](int64_t i) { keys[i] = ark_order_key(ark_load<T>(data[i * step])); });
    team.sync();
    const auto key = [&](int64_t i) { return keys[i]; };
    const uint32_t top = ark_max<uint32_t>(team, key, n);
    const float heat = ark_of_row(temperature, row);
    int64_t token = 0;
    if (!(heat > 0) || top >= ARK_KEY_INFINITY || top < ARK_KEY_LOWEST) {
      token = ark_find(team, key, n, [&](uint32_t x) { return x == top; });
    } else {
      const ark_sampler<Team> sampler{team, keys, keys + n, n, top, heat};
      const int64_t k = ark_of_row(top_k, row);
      const float p = ark_of_row(top_p, row);
      uint32_t low = ARK_KEY_LOWEST;
      if (k > 0 && k < n) low = sampler.top_k(low, k);
      if (p < 1) low = sampler.top_p(low, p);
      token = sampler.draw(low, uint32_t(ark_of_row(seed, row)), uint32_t(out.start(0) + row),
                           uint32_t(ark_of_row(position, row)));
    }
    if (team.rank() == 0) out.at(row) = int32_t(token);
    team.sync();
  }
}
