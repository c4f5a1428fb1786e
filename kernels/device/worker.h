// A worker of the persistent kernel is one CTA: it takes commands, walks its queue, waits,
// computes, signals. Thread 0 leads; one warp apart streams weights and never looks at counters.

// The counter index that status lines show for a decision, and for a command before this one.
constexpr uint32_t ARK_DECISION = 0xffffffff;
constexpr uint32_t ARK_COMPLETION = 0xfffffffe;

GPU_FN ark_status* ark_my_status() {
  return ark_table<ark_status>(ark_kernel_launch.statuses) + gpu_block();
}

GPU_FN ark_host* ark_host_words() { return ark_table<ark_host>(ark_kernel_launch.host); }

// A number that changes when any worker comes to another task.
GPU_PART uint64_t ark_progress() {
  constexpr uint64_t prime = 1099511628211u;  // of the FNV hash
  const ark_status* statuses = ark_table<ark_status>(ark_kernel_launch.statuses);
  uint64_t hash = 0;
#pragma unroll 1
  for (uint32_t w = 0; w < ark_kernel_launch.worker_count; ++w) {
    hash = (hash ^ uint64_t(gpu_load_relaxed(&statuses[w].turn))) * prime;
    hash = (hash ^ gpu_load_relaxed(&statuses[w].task)) * prime;
    hash = (hash ^ gpu_load_relaxed(&statuses[w].method)) * prime;
  }
  return hash;
}

// Wait for a word and say meanwhile for what; false if the kernel ends. A wait is over its limit
// when no worker came to another task for so long.
GPU_PART bool ark_wait_slowly(uint32_t counter, const uint64_t* word, int64_t want) {
  ark_status* status = ark_my_status();
  const uint32_t* abort = &ark_table<ark_control>(ark_kernel_launch.control)->abort;
  gpu_store_relaxed(&status->counter, counter);
  gpu_store_relaxed(&status->want, want);
  gpu_store_relaxed(&status->phase, ARK_WAITING);
  uint64_t progress = ark_progress();
  for (;;) {
    const int outcome = gpu_wait(word, want, abort, ark_kernel_launch.timeout_ns);
    if (outcome > 0) break;
    if (outcome < 0) {
      const uint64_t now = ark_progress();
      if (now != progress) {
        progress = now;
        continue;
      }
      gpu_store_relaxed(&status->is_stalled, 1);
      ark_abort(ARK_STALLED);
    }
    gpu_store_relaxed(&status->have, int64_t(gpu_load_relaxed(word)));
    return false;
  }
  gpu_store_relaxed(&status->phase, ARK_COMPUTING);
  return true;
}

GPU_FN bool ark_wait_for(uint32_t counter, const uint64_t* word, int64_t want) {
  if (int64_t(gpu_load_acquire(word)) >= want) return true;
  return ark_wait_slowly(counter, word, want);
}

// The producer's wait: the leader's words in the status are not its own, nor is a limit.
GPU_FN bool ark_wait_silently(const uint64_t* word, int64_t want) {
  const uint32_t* abort = &ark_table<ark_control>(ark_kernel_launch.control)->abort;
  int outcome = -1;
  while (outcome < 0) outcome = gpu_wait(word, want, abort, ark_kernel_launch.timeout_ns);
  return outcome > 0;
}

// Hold turn u until the decision of turn u - depth is known: ARK_GO, or ARK_OVER if the run is
// over, or ARK_QUIT if the kernel ends.
template <bool IS_LEADER>
GPU_FN uint32_t ark_gate(const ark_worker& worker, int64_t turn) {
  const ark_method* method = ark_table<const ark_method>(ark_kernel_launch.methods) + worker.method;
  const int64_t awaited = turn - int64_t(method->depth);
  if (!method->has_stop || awaited < worker.first_turn) return ARK_GO;
  const ark_method_state* state =
      ark_table<ark_method_state>(ark_kernel_launch.method_states) + worker.method;
  const uint64_t* decided = reinterpret_cast<const uint64_t*>(&state->decided);
  if (!(IS_LEADER ? ark_wait_for(ARK_DECISION, decided, awaited + 1)
                  : ark_wait_silently(decided, awaited + 1)))
    return ARK_QUIT;
  return gpu_load_relaxed(&state->last_turn) > awaited ? ARK_GO : ARK_OVER;
}

// Whether the run has ended before this turn.
GPU_FN bool ark_is_over(const ark_worker& worker) {
  const ark_method* method = ark_table<const ark_method>(ark_kernel_launch.methods) + worker.method;
  const ark_method_state* state =
      ark_table<ark_method_state>(ark_kernel_launch.method_states) + worker.method;
  return method->has_stop && worker.turn > gpu_load_relaxed(&state->last_turn);
}

// Whether this worker met data that it can't work on, in a turn that counts.
GPU_PART bool ark_check_failure() {
  const ark_worker& worker = ark_here().worker;
  ark_failure* failure = ark_table<ark_failure>(ark_kernel_launch.failures) + worker.index;
  if (gpu_load_acquire(&failure->state) != ARK_FAILURE_FULL) return false;
  const ark_method* method = ark_table<const ark_method>(ark_kernel_launch.methods) + worker.method;
  const ark_method_state* state =
      ark_table<ark_method_state>(ark_kernel_launch.method_states) + worker.method;
  if (method->has_stop && failure->turn > worker.first_turn) {
    const uint64_t* decided = reinterpret_cast<const uint64_t*>(&state->decided);
    if (!ark_wait_for(ARK_DECISION, decided, failure->turn)) return true;
    if (gpu_load_relaxed(&state->last_turn) < failure->turn) {
      gpu_store_relaxed(&failure->state, ARK_NO_FAILURE);
      return false;
    }
  }
  ark_abort(ARK_TASK_FAILED);
  return true;
}

GPU_FN const ark_task* ark_current_task(const ark_worker& worker) {
  return ark_table<const ark_task>(ark_kernel_launch.tasks) + worker.task;
}

// All lanes of the first warp: go to the next task, wait for what it has to come after, then say
// what to do.
GPU_FN void ark_prepare(ark_worker& worker) {
  const bool is_traced = ark_kernel_launch.traces != 0, is_end = worker.next == worker.end;
  const ark_task* task = ark_table<const ark_task>(ark_kernel_launch.tasks) + worker.next;
  bool is_ready = true;
  if (!is_end) {
    if (gpu_lane() == 0) {
      gpu_store_relaxed(&ark_my_status()->task, task->id);
      if (is_traced) worker.came = gpu_clock_ns();
    }
    const ark_wait* waits = ark_table<const ark_wait>(ark_kernel_launch.waits) + task->waits;
    const ark_counter* counters = ark_table<ark_counter>(ark_kernel_launch.counters);
#pragma unroll 1
    for (uint32_t i = gpu_lane(); i < task->wait_count && is_ready; i += GPU_WARP) {
      const int64_t want = worker.turn * int64_t(waits[i].signals) + waits[i].need;
      const uint64_t* word = &counters[waits[i].counter].value;
      is_ready = ark_wait_for(waits[i].counter, word, want);
      // Other ranks raise flags: what they wrote before is seen through the system's scope.
      if (task->flags & ARK_HANDSHAKE) is_ready &= int64_t(gpu_load_acquire_system(word)) >= want;
    }
  }
  is_ready = gpu_ballot(is_ready) == GPU_ALL_LANES;
  gpu_sync_warp();  // all have read what the leader writes now
  if (gpu_lane() != 0) return;
  // A task that failed has no result: what its decision or signal let go must not use it.
  if (!is_ready || ark_is_aborted())
    worker.action = ARK_QUIT;
  else if (is_end)
    worker.action = ARK_OVER;
  else  // past an early end, tasks are waited for and signalled but not run
    worker.action = ark_is_over(worker) ? ARK_SKIP : ARK_GO;
  worker.task = worker.next;
  worker.next += !is_end;
  if (is_traced) worker.began = gpu_clock_ns();
}

// Signal that a task is done; called by the leader.
GPU_FN void ark_finish(ark_worker& worker) {
  const ark_task* task = ark_current_task(worker);
  worker.slot += task->flags >> ARK_SLOTS_SHIFT;
  const uint64_t* raises = ark_table<const uint64_t>(ark_kernel_launch.raises);
#pragma unroll 1
  for (uint32_t i = 0; i < task->raise_count; ++i) {
    ark_counter* flag = ark_table<ark_counter>(raises[task->raises + i]);
    gpu_store_release_system(&flag->value, uint64_t(worker.turn + 1));
  }
  gpu_add_release(&ark_table<ark_counter>(ark_kernel_launch.counters)[task->counter].value, 1);
  if (ark_kernel_launch.traces == 0) return;
  ark_trace* traces = ark_table<ark_trace>(ark_kernel_launch.traces);
  uint64_t* count = &ark_table<ark_counter>(ark_kernel_launch.trace_counts)[worker.index].value;
  const uint64_t number = *count;
  traces[worker.index * ark_kernel_launch.trace_rows +
         (number & (ark_kernel_launch.trace_rows - 1))] = {
      worker.came, worker.began, gpu_clock_ns(), worker.turn, task->id, worker.method};
  gpu_store_release(count, number + 1);
}

// Run one task, or past an early end only take its slots of the weight stream.
GPU_FN void ark_do(ark_shared& shared, bool is_skipped) {
  ark_worker& worker = shared.worker;
  const ark_task* task = ark_current_task(worker);
  if (is_skipped) {
    ark_skip_slots(shared.ring, worker.slot, task->flags >> ARK_SLOTS_SHIFT);
    return;
  }
  gpu_task_begin(worker.method, task->id);
  const ark_call call = {
      ark_table<const int64_t>(ark_kernel_launch.params) + task->params,
      ark_table<void* const>(ark_kernel_launch.operands) + task->operands,
      nullptr,
      &worker,
      task,
      worker.slot,
  };
  ark_dispatch(task->function, call);
  gpu_task_end();
}

// One turn of the queue, by all consumers; false if the kernel ends. Nothing is kept across a
// task but in shared memory: its function needs the registers.
GPU_FN bool ark_walk(ark_shared& shared) {
#pragma unroll 1
  for (;;) {
    if (gpu_kernel_thread() < GPU_WARP) ark_prepare(shared.worker);
    gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
    const uint32_t action = shared.worker.action;
    if (action == ARK_QUIT || action == ARK_OVER) return action == ARK_OVER;
    ark_do(shared, action == ARK_SKIP);
    gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
    if (gpu_kernel_thread() == 0) ark_finish(shared.worker);
  }
}

// The last worker to finish a command writes its result and completes it.
GPU_FN void ark_complete(const ark_worker& worker) {
  const uint64_t sequence = worker.sequence;
  ark_control* control = ark_table<ark_control>(ark_kernel_launch.control);
  ark_method_state* state =
      ark_table<ark_method_state>(ark_kernel_launch.method_states) + worker.method;
  ark_command* answer =
      ark_table<ark_command>(ark_kernel_launch.host_commands) + sequence % ARK_COMMAND_RING;
  const int64_t last_turn = gpu_load_relaxed(&state->last_turn);
  int64_t done = worker.end_turn - worker.first_turn;
  if (last_turn < worker.first_turn + done) {
    done = last_turn - worker.first_turn + 1;
    gpu_store_relaxed(&control->closed_epoch, ark_command_of(worker)->epoch + 1);
    gpu_store_relaxed(&state->last_turn, ARK_NEVER);
  }
  gpu_store_relaxed_system(&answer->done, done);
  gpu_store_release(&control->completed, sequence);
  gpu_store_release_system(&ark_table<ark_host>(ark_kernel_launch.host)->completed, sequence);
}

// Wait for a command and make it known to the CTA; called by the leader. The first CTA copies
// commands from the host's memory for all others.
GPU_FN void ark_take(ark_shared& shared) {
  const uint64_t sequence = ++shared.worker.sequence;
  const uint32_t* abort = &ark_table<ark_control>(ark_kernel_launch.control)->abort;
  ark_counter* forwarded = ark_table<ark_counter>(ark_kernel_launch.forwarded);
  ark_command* command =
      ark_table<ark_command>(ark_kernel_launch.commands) + sequence % ARK_COMMAND_RING;
  ark_worker& worker = shared.worker;
  gpu_store_relaxed(&ark_my_status()->phase, ARK_IDLE);
  worker.is_exit = 1;
  if (gpu_block() == 0) {
    const ark_host* host = ark_table<ark_host>(ark_kernel_launch.host);
    if (!gpu_wait_host(&host->posted, int64_t(sequence), abort)) return;
    const uint64_t* from = reinterpret_cast<const uint64_t*>(
        ark_table<ark_command>(ark_kernel_launch.host_commands) + sequence % ARK_COMMAND_RING);
    uint64_t* to = reinterpret_cast<uint64_t*>(command);
#pragma unroll 1
    for (uint32_t i = 0; i < sizeof(ark_command) / 8; ++i)
      to[i] = gpu_load_relaxed_system(from + i);
    gpu_store_release(&forwarded->value, sequence);
  } else if (!gpu_wait_host(&forwarded->value, int64_t(sequence), abort)) {
    return;
  }
  // Commands join all workers: the one before must be complete. Others bound their own waits.
  const ark_control* control = ark_table<ark_control>(ark_kernel_launch.control);
  if (!ark_wait_for(ARK_COMPLETION, &control->completed, int64_t(sequence) - 1)) return;
  if (command->method == ARK_EXIT) return;
  worker.command = command;
  worker.method = command->method;
  worker.first_turn = shared.turns[command->method];
  const bool is_closed = command->epoch < gpu_load_relaxed(&control->closed_epoch);
  worker.end_turn = worker.first_turn + (is_closed ? 0 : command->iterations);
  worker.is_exit = ark_is_aborted();
  gpu_store_relaxed(&ark_my_status()->method, command->method);
  gpu_store_relaxed(&ark_my_status()->phase, ARK_COMPUTING);
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
  if (worker.gate == ARK_GO && ark_check_failure()) worker.gate = ARK_QUIT;
  if (worker.gate != ARK_GO) return;
  worker.turn = turn;
  shared.turns[worker.method] = turn + 1;
  const ark_queue* queue = ark_table<const ark_queue>(ark_kernel_launch.queues) +
                           worker.method * ark_kernel_launch.worker_count + worker.index;
  worker.next = queue->first;
  worker.end = queue->first + queue->count;
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

GPU_FN void ark_consume(ark_shared& shared) {
#pragma unroll 1
  for (;;) {
    if (gpu_kernel_thread() == 0) ark_take(shared);
    gpu_barrier(ARK_COMMAND_BARRIER, ARK_THREADS);
    if (shared.worker.is_exit) return;
    const bool is_done = ark_run(shared);
    const bool is_leader = gpu_kernel_thread() == 0;
    if (is_leader && !is_done) ark_ring_close(shared.ring);
    gpu_barrier(ARK_COMMAND_BARRIER, ARK_THREADS);
    // After an abort the next ark_take sees it.
    if (!is_leader || !is_done || ark_check_failure()) continue;
    ark_command* command = ark_table<ark_command>(ark_kernel_launch.commands) +
                           shared.worker.sequence % ARK_COMMAND_RING;
    if (gpu_add(&command->remaining, 0xffffffffu) == 1) ark_complete(shared.worker);
  }
}

// The warp that streams weights: the same turns, bounded by free slots alone.
GPU_FN void ark_produce(ark_shared& shared) {
  uint32_t slot = 0;
#pragma unroll 1
  for (;;) {
    gpu_barrier(ARK_COMMAND_BARRIER, ARK_THREADS);
    const ark_worker& worker = shared.worker;
    if (worker.is_exit) break;
    const ark_queue* stream = ark_table<const ark_queue>(ark_kernel_launch.streams) +
                              worker.method * ark_kernel_launch.worker_count + worker.index;
    const ark_segment* segments =
        ark_table<const ark_segment>(ark_kernel_launch.segments) + stream->first;
    const int64_t end = stream->count == 0 ? worker.first_turn : worker.end_turn;
#pragma unroll 1
    for (int64_t turn = worker.first_turn; turn < end; ++turn) {
      const uint32_t asked = gpu_lane() == 0 ? ark_gate<false>(worker, turn) : ARK_GO;
      const uint32_t gate = gpu_shuffle(asked, 0);
      // Consumers may be in wait for a slot.
      if (gate == ARK_QUIT && gpu_lane() == 0) ark_ring_close(shared.ring);
      if (gate != ARK_GO) break;
      const ark_produced produced = ark_produce_slots(shared.ring, segments, stream->count, slot);
      slot = produced.slot;
      if (produced.is_closed) break;
    }
    gpu_barrier(ARK_COMMAND_BARRIER, ARK_THREADS);
  }
  ark_drain_slots(shared.ring, slot);
}

GPU_KERNEL(ark_kernel, ARK_LAUNCHED) {
  ark_shared& shared = ark_here();
  if (gpu_kernel_thread() == 0 && gpu_block() == 0)
    gpu_store_relaxed_system(&ark_host_words()->started_ns, gpu_clock_ns());
  if (gpu_kernel_thread() == 0) {
    shared.worker.index = gpu_block();
    shared.worker.sequence = 0;
    shared.worker.slot = 0;
    for (uint32_t m = 0; m < ARK_MAX_METHODS; ++m) shared.turns[m] = 0;
    ark_ring_init(shared.ring);
  }
  gpu_barrier(ARK_START_BARRIER, ARK_LAUNCHED);
  if (gpu_kernel_thread() < ARK_CONSUMERS) {
    gpu_set_max_registers_inc<ARK_CONSUMER_REGISTERS>();
    ark_consume(shared);
  } else {
    gpu_set_max_registers_dec<ARK_PRODUCER_REGISTERS>();
    if (gpu_kernel_thread() < ARK_THREADS) ark_produce(shared);
  }
  // An aborted kernel is asked afterwards what its workers were doing.
  if (gpu_kernel_thread() == 0 && !ark_is_aborted())
    gpu_store_relaxed(&ark_my_status()->phase, ARK_EXITED);
  if (gpu_kernel_thread() == 0 && gpu_block() == 0)
    gpu_store_relaxed_system(&ark_host_words()->exited_ns, gpu_clock_ns());
}
