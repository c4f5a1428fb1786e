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

template <class T>
ARK_FN T* ark_operand(const ark_call& call, int operand) {
#if defined(ARK_GPU)
  return gpu_global(static_cast<T*>(call.operands[operand]));
#else
  return static_cast<T*>(call.operands[operand]);
#endif
}
