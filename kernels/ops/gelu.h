// Values of `approximate`.
struct ark_approximate_none {};
struct ark_approximate_tanh {};

ARK_FN float ark_gelu(float a, ark_approximate_none) { return ark_gelu_erf(a); }

// a / 2 * (1 + tanh(t)) = a / (1 + exp(-2 t)) with t = sqrt(2/pi) * (a + 0.044715 * a^3). Relative
// to the result, which falls like exp(2 t), the error grows with t: up to 4 + 3 |2 t| ulp.
ARK_FN float ark_gelu(float a, ark_approximate_tanh) {
  // sqrt(8/pi), and that times 0.044715.
  const float first = 1.59576912160573f, third = 0.07135481627260f;
  const float x = a < -150.0f ? -150.0f : a;
  return ark_gate(x, x * (first + third * (x * x)));
}
