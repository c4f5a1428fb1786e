// Multiply two tensors, broadcasting as NumPy does.
template <class T>
ARK_FN T ark_mul(T a, T b) {
  return T(a * b);
}
