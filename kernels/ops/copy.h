// Copy a tensor into memory of its own.
template <class T>
ARK_FN T ark_copy(T a) {
  return a;
}
