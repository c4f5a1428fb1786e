// Values of `how`.
struct ark_how_sum {};
struct ark_how_max {};
struct ark_how_min {};

template <class T>
ARK_FN T ark_combine(ark_how_sum, T a, T b) {
  return T(a + b);
}
template <class T>
ARK_FN T ark_combine(ark_how_max, T a, T b) {
  return (a > b) | (a != a) ? a : b;
}
template <class T>
ARK_FN T ark_combine(ark_how_min, T a, T b) {
  return (a < b) | (a != a) ? a : b;
}

// The last two arguments: how to combine, and the factor of the result.
template <class... A>
struct ark_way;
template <class R, class S>
struct ark_way<R, S> {
  using type = R;
};
template <class A, class B, class C, class... More>
struct ark_way<A, B, C, More...> {
  using type = typename ark_way<B, C, More...>::type;
};

template <class T, class R>
ARK_FN T ark_reduce_parts(T total, R, ark_absent) {
  return total;
}
template <class T, class R>
ARK_FN T ark_reduce_parts(T total, R, float scale) {
  return total * scale;
}
template <class T, class... More>
ARK_FN T ark_reduce_parts(T a, T b, More... more) {
  return ark_reduce_parts(ark_combine(typename ark_way<More...>::type{}, a, b), more...);
}
