// exp(x - max) / sum over one row of n fp32 values, in place. A member of the team works on the
// same elements throughout, so that nobody waits for a write.
template <class Team>
ARK_FN void ark_softmax(const Team& team, float* x, int64_t n) {
  const ark_row<float> row{x, 1};
  const float top = ark_max<float>(team, row, n);
  team.each(n, [&](int64_t i) { x[i] = ark_exp(x[i] - top); });
  const float scale = 1.0f / ark_sum<float>(team, row, n);
  team.each(n, [&](int64_t i) { x[i] *= scale; });
}
