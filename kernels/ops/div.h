// Divide `input` by `other`, broadcasting as NumPy does.
template <class T>
ARK_FN T ark_div(T a, T b) {
  return a / b;
}
