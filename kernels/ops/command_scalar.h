// Store a scalar of the command, in its first iteration, if the command carries it.
ARK_FN void ark_command_scalar(const ark_call& call) {
  const ark_worker& worker = *call.worker;
  const ark_command* command = ark_command_of(worker);
  const int64_t slot = ark_param(call.params), size_bytes = ark_param(call.params + 1);
  if (worker.turn != worker.first_turn || !(command->given >> slot & 1)) return;
  const uint64_t bits = command->scalars[slot];
  // Little endian: the value's bytes come first.
  for (int64_t i = 0; i < size_bytes; ++i)
    ark_operand<uint8_t>(call, 0)[i] = uint8_t(bits >> (8 * i));
}
