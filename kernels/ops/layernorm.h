// Mean and 1 / sqrt(variance + eps) of a row given by index; two passes, for precision.
template <class Row>
ARK_FN ark_affine ark_layernorm_prologue(const Row& row, int64_t n, float eps) {
  const float mean = ark_sum<float>(row, n) / float(n);
  const auto squares = [&](int64_t i) {
    const float x = row(i) - mean;
    return x * x;
  };
  const float variance = ark_sum<float>(squares, n) / float(n);
  return {mean, 1.0f / ark_sqrt(variance + eps)};
}

// (x - mean) / sqrt(variance + eps) over one row of n fp32 values, in place.
ARK_FN void ark_layernorm(float* x, int64_t n, float eps) {
  const ark_affine affine = ark_layernorm_prologue(ark_row<float>{x, 1}, n, eps);
  ARK_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) x[i] = (x[i] - affine.shift) * affine.scale;
}
