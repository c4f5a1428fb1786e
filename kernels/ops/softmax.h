// exp(x - max) / sum over one row of n fp32 values, in place.
ARK_FN void ark_softmax(float* x, int64_t n, const ark_no_params&) {
  float top = x[0];
  for (int64_t i = 1; i < n; ++i) top = x[i] > top || x[i] != x[i] ? x[i] : top;
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    x[i] = ark_exp(x[i] - top);
    sum += x[i];
  }
  const float scale = 1.0f / sum;
  for (int64_t i = 0; i < n; ++i) x[i] *= scale;
}
