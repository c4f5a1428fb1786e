// Replace negative elements by zero; NaN stays NaN.
template <class T>
ARK_FN T ark_relu(T a) {
  return a < T(0) ? T(0) : a;
}
