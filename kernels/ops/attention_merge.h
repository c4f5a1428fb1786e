// Merge what parts of the keys gave for each row: sums over values, the largest score, the total.
template <class Team, class T>
ARK_FN void ark_attention_merge(const Team& team, const ark_call& call,
                                const ark_tile<const float, 5>& parts, const ark_tile<T, 4>& out) {
  const int64_t count = parts.size(0), width = out.size(3), step = parts.stride(0);
  const int64_t stride = parts.stride(4);
  float* weights = call.scratch;
  for (int64_t row = 0; row < ark_quotient(out.count(), width); ++row) {
    const ark_position<4> at(out, row);
    const float* part = &parts.at(0, at.index[0], at.index[1], at.index[2], 0);
    T* to = out.data + at.in(out);
    const float* tops = part + width * stride;
    const float* totals = tops + stride;
    // All members go over the few parts by themselves.
    float top = tops[0], total = 0;
    for (int64_t s = 1; s < count; ++s) {
      const float x = tops[s * step];
      top = x > top || x != x ? x : top;
    }
    // A part that saw nothing has minus infinity and a total of 0.
    team.each(count, [&](int64_t s) {
      weights[s] = totals[s * step] == 0 ? 0.0f : ark_exp(tops[s * step] - top);
    });
    team.sync();
    for (int64_t s = 0; s < count; ++s) total += weights[s] * totals[s * step];
    const float scale = total == 0 ? 0.0f : 1.0f / total;
    team.each(width, [&](int64_t d) {
      float sum = 0;
      for (int64_t s = 0; s < count; ++s) sum += weights[s] * part[s * step + d * stride];
      to[d * out.stride(3)] = ark_store<T>(sum * scale);
    });
    team.sync();
  }
}
