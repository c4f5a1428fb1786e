// Publish whether the run ends after this turn.
template <class T>
ARK_FN void ark_stop_when(const ark_call& call) {
  const T flag = *ark_operand<const T>(call, 0);
  *ark_operand<T>(call, 1) = flag;
  ark_decide(call, flag != T(0));
}
