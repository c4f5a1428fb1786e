// Subtract `other` from `input`, broadcasting as NumPy does.
template <class T>
ARK_FN T ark_sub(T a, T b) {
  return T(a - b);
}
