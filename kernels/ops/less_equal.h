// Whether `input` is at most `other`.
template <class T>
ARK_FN bool ark_less_equal(T a, T b) {
  return a <= b;
}
