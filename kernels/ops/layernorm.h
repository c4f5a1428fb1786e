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

// (x - mean) / sqrt(variance + eps) * weight + bias of a row of n values, by index.
template <class Team, class Row, class Weight, class Bias>
ARK_FN auto ark_layernorm(const Team& team, const Row& row, float*, int64_t n,
                          const Weight& weight, const Bias& bias, float eps) {
  return ark_normalize_row(ark_layernorm_prologue(team, row, n, eps), row, weight, bias);
}
