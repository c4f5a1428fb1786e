// What a task body gets.

struct ark_worker;

// Its parameters, its operands' addresses, scratch memory, and its worker.
struct ark_call {
  const int64_t* params;
  void* const* operands;
  float* scratch;
  ark_worker* worker;
  const ark_task* task;
#if defined(ARK_GPU)
  uint32_t slot;  // the task's first one of the weight stream
#endif
};

#if defined(ARK_GPU)
// No store of a task changes what it was called with, which the compiler has to be told. It lies
// in the CTA's memory (device/packet.h), unless some task of the program has too much.
template <class T>
ARK_FN T ark_load_fixed(const T* at) {
  if constexpr (ARK_PACKET_PARAMS > 0)
    return gpu_load_fixed(at);
  else
    return gpu_load_readonly(at);
}
#endif

// One of a task's integers.
ARK_FN int64_t ark_param(const int64_t* at) {
#if defined(ARK_GPU)
  return ark_load_fixed(at);
#else
  return *at;
#endif
}

template <class T>
ARK_FN T* ark_operand(const ark_call& call, int operand) {
#if defined(ARK_GPU)
  const uint64_t* addresses = reinterpret_cast<const uint64_t*>(call.operands);
  return gpu_global_pointer<T>(ark_load_fixed(addresses + operand));
#else
  return static_cast<T*>(call.operands[operand]);
#endif
}
