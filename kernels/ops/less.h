// Whether `input` is less than `other`.
template <class T>
ARK_FN bool ark_less(T a, T b) {
  return a < b;
}
