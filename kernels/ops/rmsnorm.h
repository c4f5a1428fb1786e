// 1 / sqrt(mean of squares + eps) of a row given by index; nothing is shifted.
template <class Team, class Row>
ARK_FN ark_affine ark_rmsnorm_prologue(const Team& team, const Row& row, int64_t n, float eps) {
  const auto squares = [&](int64_t i) {
    const float x = row(i);
    return x * x;
  };
  return {0.0f, 1.0f / ark_sqrt(ark_sum<float>(team, squares, n) / float(n) + eps)};
}

// x / sqrt(mean of squares + eps) * weight over one row of n fp32 values, in place.
template <class Team, class Weight>
ARK_FN void ark_rmsnorm(const Team& team, float* x, int64_t n, const Weight& weight, float eps) {
  const ark_affine affine = ark_rmsnorm_prologue(team, ark_row<float>{x, 1}, n, eps);
  ark_normalize_row(team, affine, x, n, weight, ark_absent{});
}
