// A handshake computes nothing: its worker waits for flags before it and raises flags after it.
ARK_FN void ark_handshake(const ark_call& call) {
#if !defined(ARK_GPU)
  // Tests break ranks here.
  const uint64_t hook = call.worker->config->hook;
  if (__builtin_expect(hook != 0, 0))
    reinterpret_cast<void (*)(uint32_t, uint32_t)>(hook)(call.worker->method, call.task->id);
#endif
}
