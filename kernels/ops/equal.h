// Whether elements are equal; NaN equals nothing.
template <class T>
ARK_FN bool ark_equal(T a, T b) {
  return a == b;
}
