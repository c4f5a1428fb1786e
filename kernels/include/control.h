// What task bodies tell the kernel: decisions to end a run, and data they can't work on.

ARK_FN const ark_command* ark_command_of(const ark_worker& worker) { return worker.command; }

// Take the failure record; returns whether it holds a failure.
ARK_COLD bool ark_lock_failure(ark_failure& failure) {
  constexpr uint32_t empty = 0, locked = 1, full = 2;
  for (;;) {
    uint32_t state = __atomic_load_n(&failure.state, __ATOMIC_SEQ_CST);
    if (state != locked && __atomic_compare_exchange_n(&failure.state, &state, locked, false,
                                                       __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
      return state == full;
    static_assert(empty == 0, "what ark_complete resets it to");
    sched_yield();
  }
}

ARK_COLD void ark_unlock_failure(ark_failure& failure, bool is_full) {
  __atomic_store_n(&failure.state, is_full ? 2 : 0, __ATOMIC_SEQ_CST);
}

// A pending failure counts once no earlier turn can still end the run.
ARK_COLD bool ark_check_failure(const ark_config& config, uint32_t method) {
  ark_failure& failure = *ark_table<ark_failure>(config.failure);
  const bool is_full = ark_lock_failure(failure);
  const int64_t turn = failure.turn;
  ark_unlock_failure(failure, is_full);
  if (!is_full) return false;
  const ark_method_state& state = ark_table<ark_method_state>(config.method_states)[method];
  const bool has_stop = ark_table<const ark_method>(config.methods)[method].has_stop;
  const bool is_reached = !has_stop || __atomic_load_n(&state.decided, __ATOMIC_SEQ_CST) >= turn;
  if (!is_reached || turn > ark_relaxed(state.last_turn)) return false;
  ark_abort(config, ARK_TASK_FAILED);
  return true;
}

// Report a bad value: the run ends, unless it turns out to have ended before this turn.
ARK_COLD void ark_fail(const ark_call& call, int64_t value, int64_t limit) {
  ark_worker& worker = *call.worker;
  ark_failure& failure = *ark_table<ark_failure>(worker.config->failure);
  // The earliest turn's failure is the one to tell: a later turn may turn out not to count.
  if (!ark_lock_failure(failure) || worker.turn < failure.turn) {
    failure.method = worker.method;
    failure.task = call.task->id;
    failure.worker = worker.index;
    failure.turn = worker.turn;
    failure.iteration = worker.turn - worker.first_turn;
    failure.value = value;
    failure.limit = limit;
  }
  ark_unlock_failure(failure, true);
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
  const ark_failure& failure = *ark_table<ark_failure>(worker.config->failure);
  // Sequentially consistent with ark_fail: one of the two sees what the other wrote.
  if (__builtin_expect(__atomic_load_n(&failure.state, __ATOMIC_SEQ_CST) != 0, 0))
    ark_check_failure(*worker.config, worker.method);
}
