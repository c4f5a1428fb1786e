// What task bodies tell the kernel: decisions to end a run, and data they can't work on.

GPU_CONSTANT ark_launch ark_kernel_launch;

template <class T>
GPU_FN T* ark_table(uint64_t address) {
  return gpu_global(reinterpret_cast<T*>(address));
}

// Scratch memory of this CTA: shared, and for tasks that need more of it, global.
GPU_FN float* ark_scratch() { return reinterpret_cast<float*>(ark_shared_scratch()); }
GPU_FN float* ark_global_scratch() {
  return ark_table<float>(ark_kernel_launch.scratch) +
         gpu_block() * ark_kernel_launch.scratch_elems;
}

// Set the abort word unless it is set already.
GPU_PART void ark_abort(uint32_t reason) {
  ark_control* control = ark_table<ark_control>(ark_kernel_launch.control);
  gpu_compare_exchange(&control->abort, ARK_RUNNING, reason);
}

GPU_FN bool ark_is_aborted() {
  return gpu_load_relaxed(&ark_table<ark_control>(ark_kernel_launch.control)->abort) !=
         ARK_RUNNING;
}

constexpr uint32_t ARK_NO_FAILURE = 0, ARK_FAILURE_LOCKED = 1, ARK_FAILURE_FULL = 2;

// Report a bad value; any thread may. The first one a worker meets is kept: `ark_check_failure`
// ends the run, unless it turns out to have ended before this turn.
GPU_PART void ark_fail_task(uint32_t task, int64_t value, int64_t limit) {
  ark_worker& worker = ark_here().worker;
  ark_failure* failure = ark_table<ark_failure>(ark_kernel_launch.failures) + worker.index;
  if (gpu_compare_exchange(&failure->state, ARK_NO_FAILURE, ARK_FAILURE_LOCKED) != ARK_NO_FAILURE)
    return;
  failure->method = worker.method;
  failure->task = task;
  failure->worker = worker.index;
  failure->turn = worker.turn;
  failure->iteration = worker.turn - worker.first_turn;
  failure->value = value;
  failure->limit = limit;
  gpu_store_release(&failure->state, ARK_FAILURE_FULL);
  gpu_store_relaxed(&worker.has_failed, 1);
}
// By value: the call is in registers, and stays there.
GPU_FN void ark_fail(const ark_call& call, int64_t value, int64_t limit) {
  ark_fail_task(call.task->id, value, limit);
}

GPU_FN const ark_command* ark_command_of(const ark_worker& worker) {
  return gpu_global(worker.command);
}

// Publish the decision of this turn; one thread calls it.
GPU_FN void ark_decide(const ark_call& call, bool wants_stop) {
  const ark_worker& worker = *call.worker;
  ark_method_state* state =
      ark_table<ark_method_state>(ark_kernel_launch.method_states) + worker.method;
  if (wants_stop) gpu_store_relaxed(&state->last_turn, worker.turn);
  gpu_store_release(&state->decided, worker.turn + 1);
}
