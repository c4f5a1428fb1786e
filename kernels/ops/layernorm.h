// Mean and 1 / sqrt(variance + eps) of a row given by index; two passes, for precision.
template <class Team, class Row>
ARK_FN ark_affine ark_layernorm_prologue(const Team& team, const Row& row, int64_t n, float eps) {
  const float mean = ark_sum<float>(team, row, n) / float(n);
  const auto squares = [&](int64_t i) {
    const float x = row(i) - mean;
    return x * x;
  };
  const float variance = ark_sum<float>(team, squares, n) / float(n);
  return {mean, 1.0f / ark_sqrt(variance + eps)};
}

// (x - mean) / sqrt(variance + eps) * weight + bias over one row of n fp32 values, in place.
template <class Team, class Weight, class Bias>
ARK_FN void ark_layernorm(const Team& team, float* x, int64_t n, const Weight& weight,
                          const Bias& bias, float eps) {
  const ark_affine affine = ark_layernorm_prologue(team, ark_row<float>{x, 1}, n, eps);
  ark_normalize_row(team, affine, x, n, weight, bias);
}
