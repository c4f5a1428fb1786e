// exp(x - max) / sum over one row of n fp32 values, in place.
ARK_FN void ark_softmax(float* x, int64_t n) {
  const ark_row<float> row{x, 1};
  const float top = ark_max<float>(row, n);
  ARK_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) x[i] = ark_exp(x[i] - top);
  const float scale = 1.0f / ark_sum<float>(row, n);
  ARK_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) x[i] *= scale;
}
