// Whether `input` is greater than `other`.
template <class T>
ARK_FN bool ark_greater(T a, T b) {
  return a > b;
}
