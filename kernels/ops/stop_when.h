// Publish whether the run ends after this turn.
template <class T>
ARK_FN void ark_stop_when(const ark_call& call) {
  const T flag = *static_cast<const T*>(call.operands[0]);
  *static_cast<T*>(call.operands[1]) = flag;
  ark_decide(call, flag != T(0));
}
