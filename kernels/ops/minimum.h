// The smaller of two; NaN wins.
template <class T>
ARK_FN T ark_minimum(T a, T b) {
  // | where || would be a branch.
  return (a < b) | (a != a) ? a : b;
}
