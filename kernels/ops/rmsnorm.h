// 1 / sqrt(mean of squares + eps) of a row given by index; nothing is shifted.
template <class Team, class Row>
ARK_FN ark_affine ark_rmsnorm_prologue(const Team& team, const Row& row, int64_t n, float eps) {
  const auto squares = [&](int64_t i) {
    const float x = row(i);
    return x * x;
  };
  return {0.0f, 1.0f / ark_sqrt(ark_sum<float>(team, squares, n) / float(n) + eps)};
}

// x / sqrt(mean of squares + eps) * weight of a row of n values, by index.
template <class Team, class Row, class Weight>
ARK_FN auto ark_rmsnorm(const Team& team, const Row& row, float*, int64_t n, const Weight& weight,
                        float eps) {
  return ark_normalize_row(ark_rmsnorm_prologue(team, row, n, eps), row, weight, ark_absent{});
}
