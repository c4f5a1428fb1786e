// exp(x - max) / sum of a row of n values, by index. The exponentials are kept, maybe where the row
// is. A member of the team works on the same elements throughout, so that nobody waits for a write.
template <class Team, class Row>
ARK_FN auto ark_softmax(const Team& team, const Row& row, float* kept, int64_t n) {
  const float top = ark_max<float>(team, row, n);
  team.each(n, [&](int64_t i) { kept[i] = ark_exp_down(row(i) - top); });
  const float scale = 1.0f / ark_sum<float>(team, ark_row<float>{kept, 1}, n);
  return [=](int64_t i) { return kept[i] * scale; };
}
