// A worker walks its queue, one task after the other, by all threads that compute: the first warp
// waits for what a task comes after, thread 0 signals that it is done.

// Wait for all that a task comes after, a lane each; false if the kernel ends.
GPU_FN bool ark_await(const ark_worker& worker, const ark_task& task) {
  const ark_wait* waits = ark_table<const ark_wait>(ark_kernel_launch.waits) + task.waits;
  const ark_counter* counters = ark_table<ark_counter>(ark_kernel_launch.counters);
  bool is_ready = true;
#pragma unroll 1
  for (uint32_t i = gpu_lane(); i < task.wait_count && is_ready; i += GPU_WARP) {
    const gpu_vec4 words = gpu_load_readonly(reinterpret_cast<const gpu_vec4*>(waits + i));
    const ark_wait wait = __builtin_bit_cast(ark_wait, words);
    const int64_t want = worker.turn * int64_t(wait.signals) + wait.need;
    const uint64_t* word = &counters[wait.counter].value;
    is_ready = ark_wait_for(wait.counter, word, want);
    // Other ranks raise flags: what they wrote before is seen through the system's scope.
    if (task.flags & ARK_HANDSHAKE) is_ready &= int64_t(gpu_load_acquire_system(word)) >= want;
  }
  return is_ready;
}

// The clock, for traces.
GPU_FN uint64_t ark_now() { return ark_kernel_launch.traces == 0 ? 0 : gpu_clock_ns(); }

// All lanes of the first warp: go to the next task, wait for what it has to come after, then say
// what to do.
GPU_FN void ark_prepare(ark_shared& shared) {
  ark_worker& worker = shared.worker;
  const bool is_end = worker.next == worker.end, is_leader = gpu_lane() == 0;
  const uint64_t came = ark_now();
  // Looked at before the waits, which look again: it takes no time of its own.
  bool is_ready = !ark_is_aborted();
  if (!is_end) {
    ark_fetch(shared, worker.next);
    if (is_leader) gpu_store_relaxed(&ark_my_status()->task, shared.packet.row.id);
    is_ready &= ark_await(worker, shared.packet.row);
  }
  is_ready = gpu_ballot(is_ready) == GPU_ALL_LANES;
  gpu_sync_warp();  // all have read what the leader writes now
  const uint32_t ahead = worker.next + 1 < worker.end ? worker.next + 1 : worker.first_row;
  if (!is_end) ark_begin_row(shared, ahead);
  gpu_sync_warp();
  if (!is_leader) return;
  if (!is_ready)
    worker.action = ARK_QUIT;
  else if (is_end)
    worker.action = ARK_OVER;
  else  // past an early end, tasks are waited for and signalled but not run
    worker.action = ark_is_over(worker) ? ARK_SKIP : ARK_GO;
  if (!is_end) worker.ahead = ahead;
  worker.next += !is_end;
  worker.came = came;
  worker.began = ark_now();
}

GPU_FN void ark_write_trace(const ark_worker& worker, uint32_t task) {
  ark_trace* traces = ark_table<ark_trace>(ark_kernel_launch.traces);
  uint64_t* count = &ark_table<ark_counter>(ark_kernel_launch.trace_counts)[worker.index].value;
  const uint64_t number = *count;
  traces[worker.index * ark_kernel_launch.trace_rows +
         (number & (ark_kernel_launch.trace_rows - 1))] = {
      worker.came, worker.began, gpu_clock_ns(), worker.turn, task, worker.method};
  gpu_store_release(count, number + 1);
}

GPU_FN void ark_signal(const ark_worker& worker, const ark_task& task) {
  const uint64_t* raises = ark_table<const uint64_t>(ark_kernel_launch.raises);
#pragma unroll 1
  for (uint32_t i = 0; i < task.raise_count; ++i) {
    ark_counter* flag = ark_table<ark_counter>(raises[task.raises + i]);
    gpu_store_release_system(&flag->value, uint64_t(worker.turn + 1));
  }
  if (task.flags & ARK_SILENT) return;
  gpu_add_release(&ark_table<ark_counter>(ark_kernel_launch.counters)[task.counter].value, 1);
}

// A task is done; called by the leader. One that failed has no result: nobody is let go.
GPU_FN void ark_finish(ark_shared& shared) {
  ark_worker& worker = shared.worker;
  const ark_task& task = shared.packet.row;
  worker.slot += task.flags >> ARK_SLOTS_SHIFT;
  const bool is_failure = gpu_load_relaxed(&worker.has_failed) && ark_check_failure();
  if (!is_failure) ark_signal(worker, task);
  if (ark_kernel_launch.traces != 0) ark_write_trace(worker, task.id);
}

// Run one task, or past an early end only take its slots of the weight stream.
GPU_FN void ark_do(ark_shared& shared, bool is_skipped) {
  const ark_call call = ark_call_of(shared);
  if (is_skipped) {
    ark_skip_slots(shared.ring, call.slot, call.task->flags >> ARK_SLOTS_SHIFT);
    return;
  }
  gpu_task_begin(shared.worker.method, call.task->id);
  ark_dispatch(call.task->function, call);
  gpu_task_end();
}

// One turn of the queue, by all consumers; false if the kernel ends. Nothing is kept across a
// task but in shared memory: its function needs the registers.
GPU_FN bool ark_walk(ark_shared& shared) {
#pragma unroll 1
  for (;;) {
    if (gpu_kernel_thread() < GPU_WARP) ark_prepare(shared);
    gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
    const uint32_t action = shared.worker.action;
    if (action == ARK_QUIT || action == ARK_OVER) return action == ARK_OVER;
    ark_do(shared, action == ARK_SKIP);
    gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
    if (gpu_kernel_thread() == 0) ark_finish(shared);
  }
}

// Say whether there is another turn; called by the leader. What tells turns from each other is in
// shared memory, as tasks need the registers.
GPU_FN void ark_enter_turn(ark_shared& shared) {
  ark_worker& worker = shared.worker;
  const int64_t turn = shared.turns[worker.method];
  worker.gate = ARK_OVER;
  if (turn >= worker.end_turn) return;
  gpu_store_relaxed(&ark_my_status()->turn, turn);
  worker.gate = ark_gate<true>(worker, turn);
  if (worker.gate != ARK_GO) return;
  worker.turn = turn;
  shared.turns[worker.method] = turn + 1;
  worker.next = worker.first_row;
  worker.end = worker.first_row + worker.row_count;
}

// The turns of one command, by all consumers; false if the kernel ends.
GPU_FN bool ark_run(ark_shared& shared) {
#pragma unroll 1
  for (;;) {
    if (gpu_kernel_thread() == 0) ark_enter_turn(shared);
    gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
    const uint32_t gate = shared.worker.gate;
    if (gate != ARK_GO) return gate == ARK_OVER;
    if (!ark_walk(shared)) return false;
  }
}
