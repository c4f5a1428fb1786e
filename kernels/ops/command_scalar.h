// Store a scalar of the command, in its first iteration, if the command carries it.
ARK_FN void ark_command_scalar(const ark_call& call) {
  ark_worker* worker = call.worker;
  const int64_t slot = call.params[0], size_bytes = call.params[1];
  if (worker->turn != worker->first_turn || !(worker->command->given >> slot & 1)) return;
  __builtin_memcpy(call.operands[0], &worker->command->scalars[slot], size_bytes);
}
