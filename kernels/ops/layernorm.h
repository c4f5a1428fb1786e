// (x - mean) / sqrt(variance + eps) over one row of n fp32 values, in place.
struct ark_layernorm_params {
  float eps;
};

ARK_FN void ark_layernorm(float* x, int64_t n, const ark_layernorm_params& params) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  const float mean = sum / float(n);
  float squares = 0;
  for (int64_t i = 0; i < n; ++i) {
    x[i] -= mean;
    squares += x[i] * x[i];
  }
  const float scale = 1.0f / ark_sqrt(squares / float(n) + params.eps);
  for (int64_t i = 0; i < n; ++i) x[i] *= scale;
}
