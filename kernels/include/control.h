// What task bodies tell the kernel: decisions to end a run, and data they can't work on.

// A pending failure counts once no earlier turn can still end the run.
ARK_COLD bool ark_check_failure(const ark_config& config, uint32_t method) {
  const ark_failure& failure = *ark_table<ark_failure>(config.failure);
  if (__atomic_load_n(&failure.state, __ATOMIC_SEQ_CST) != 2 || failure.method != method) return false;
  const ark_method_state& state = ark_table<ark_method_state>(config.method_states)[method];
  const bool has_stop = ark_table<const ark_method>(config.methods)[method].has_stop;
  const bool is_reached = !has_stop || __atomic_load_n(&state.decided, __ATOMIC_SEQ_CST) >= failure.turn;
  if (!is_reached || failure.turn > ark_relaxed(state.last_turn)) return false;
  ark_abort(config, ARK_TASK_FAILED);
  return true;
}

// Report a bad value: the run ends, unless it turns out to have ended before this turn.
ARK_COLD void ark_fail(const ark_call& call, int64_t value, int64_t limit) {
  ark_worker& worker = *call.worker;
  ark_failure& failure = *ark_table<ark_failure>(worker.config->failure);
  uint32_t expected = 0;
  if (__atomic_compare_exchange_n(&failure.state, &expected, 1, false, __ATOMIC_SEQ_CST,
                                  __ATOMIC_SEQ_CST)) {
    failure.method = worker.method;
    failure.task = call.task->id;
    failure.worker = worker.index;
    failure.turn = worker.turn;
    failure.iteration = worker.turn - worker.first_turn;
    failure.value = value;
    failure.limit = limit;
    __atomic_store_n(&failure.state, 2, __ATOMIC_SEQ_CST);
  }
  // A turn's first iteration of a command has no decision before it.
  if (worker.turn == worker.first_turn) {
    ark_abort(*worker.config, ARK_TASK_FAILED);
    worker.has_failed = 1;
  } else {
    worker.has_failed = ark_check_failure(*worker.config, worker.method);
  }
}

// Publish the decision of this turn.
ARK_FN void ark_decide(const ark_call& call, bool wants_stop) {
  const ark_worker& worker = *call.worker;
  ark_method_state& state =
      ark_table<ark_method_state>(worker.config->method_states)[worker.method];
  if (wants_stop) ark_note(state.last_turn, worker.turn);
  __atomic_store_n(&state.decided, worker.turn + 1, __ATOMIC_SEQ_CST);
  if (__builtin_expect(ark_relaxed(ark_table<ark_failure>(worker.config->failure)->state) != 0, 0))
    ark_check_failure(*worker.config, worker.method);
}
