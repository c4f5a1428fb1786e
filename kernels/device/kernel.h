// A worker of the persistent kernel is one CTA: it takes commands and runs their turns. Thread 0
// leads; one warp apart streams weights and never looks at counters.

GPU_FN ark_host* ark_host_words() { return ark_table<ark_host>(ark_kernel_launch.host); }

// A command is moved by one warp, a word per lane.
constexpr uint32_t ARK_COMMAND_WORDS = sizeof(ark_command) / 8;
static_assert(ARK_COMMAND_WORDS <= GPU_WARP, "a word per lane");

GPU_FN ark_command* ark_command_at(uint64_t table, uint64_t sequence) {
  return ark_table<ark_command>(table) + sequence % ARK_COMMAND_RING;
}

// Wait for a command that the host posts; false if the kernel ends. By the first warp of the first
// CTA, which copies it for all others.
GPU_FN bool ark_forward(uint64_t sequence) {
  const uint32_t* abort = &ark_table<ark_control>(ark_kernel_launch.control)->abort;
  const uint32_t lane = gpu_lane();
  bool is_here = true;
  if (lane == 0) is_here = gpu_wait_host(&ark_host_words()->posted, int64_t(sequence), abort);
  if (gpu_ballot(is_here) != GPU_ALL_LANES) return false;
  gpu_sync_warp();
  const uint64_t* from = reinterpret_cast<const uint64_t*>(
      ark_command_at(ark_kernel_launch.host_commands, sequence));
  uint64_t* to =
      reinterpret_cast<uint64_t*>(ark_command_at(ark_kernel_launch.commands, sequence));
  if (lane < ARK_COMMAND_WORDS) to[lane] = gpu_load_relaxed_system(from + lane);
  gpu_sync_warp();
  if (lane == 0)
    gpu_store_release(&ark_table<ark_counter>(ark_kernel_launch.forwarded)->value, sequence);
  return true;
}

// Wait until it is there, and the command before it is complete: commands join all workers. False
// if the kernel ends; by the first warp.
GPU_FN bool ark_await_command(uint64_t sequence) {
  const ark_control* control = ark_table<ark_control>(ark_kernel_launch.control);
  const uint64_t* forwarded = &ark_table<ark_counter>(ark_kernel_launch.forwarded)->value;
  bool is_here = gpu_block() != 0 || ark_forward(sequence);
  if (is_here && gpu_lane() == 0) {
    if (gpu_block() != 0)
      is_here = gpu_wait_idle(forwarded, int64_t(sequence), &control->abort);
    // Others bound their own waits.
    is_here =
        is_here && ark_wait_for(ARK_COMPLETION, &control->completed, int64_t(sequence) - 1);
  }
  is_here = gpu_ballot(is_here) == GPU_ALL_LANES;
  gpu_sync_warp();
  return is_here;
}

// The method of the command; it stays known until another one comes.
GPU_FN void ark_choose_method(ark_worker& worker, uint32_t method) {
  if (method == worker.method) return;
  const ark_method about = ark_table<const ark_method>(ark_kernel_launch.methods)[method];
  const ark_queue queue =
      ark_table<const ark_queue>(
          ark_kernel_launch.queues)[method * ark_kernel_launch.worker_count + worker.index];
  worker.method = method;
  worker.has_stop = about.has_stop;
  worker.depth = about.depth;
  worker.first_row = queue.first;
  worker.row_count = queue.count;
}

// Take up a command; called by the leader.
GPU_FN void ark_accept(ark_shared& shared, const ark_command* command) {
  ark_worker& worker = shared.worker;
  const ark_control* control = ark_table<ark_control>(ark_kernel_launch.control);
  const uint32_t method = command->method;
  if (method == ARK_EXIT) return;
  const bool is_closed = command->epoch < gpu_load_relaxed(&control->closed_epoch);
  worker.is_exit = ark_is_aborted();
  worker.command = command;
  ark_choose_method(worker, method);
  worker.first_turn = shared.turns[method];
  worker.end_turn = worker.first_turn + (is_closed ? 0 : command->iterations);
  gpu_store_relaxed(&ark_my_status()->method, method);
  gpu_store_relaxed(&ark_my_status()->phase, ARK_COMPUTING);
}

// Wait for a command and make it known to the CTA, or that the kernel ends, as where the command
// before was not done; by the first warp.
GPU_FN void ark_take(ark_shared& shared, bool is_done) {
  const uint64_t sequence = shared.worker.sequence + 1;
  gpu_sync_warp();  // all have read what the leader writes now
  if (gpu_lane() == 0) {
    shared.worker.sequence = sequence;
    shared.worker.is_exit = 1;
  }
  // The status of a worker that was aborted stays as it was.
  if (is_done && ark_await_command(sequence) && gpu_lane() == 0)
    ark_accept(shared, ark_command_at(ark_kernel_launch.commands, sequence));
}

// The last worker to finish a command completes it, for the host first. The turns done are
// written where they are others than the host asked for.
GPU_FN void ark_complete(const ark_worker& worker) {
  const uint64_t sequence = worker.sequence;
  ark_control* control = ark_table<ark_control>(ark_kernel_launch.control);
  int64_t done = worker.end_turn - worker.first_turn;
  if (worker.has_stop) {
    ark_method_state* state = ark_state_of(worker);
    const int64_t last_turn = gpu_load_relaxed(&state->last_turn);
    if (last_turn < worker.first_turn + done) {
      done = last_turn - worker.first_turn + 1;
      gpu_store_relaxed(&control->closed_epoch, ark_command_of(worker)->epoch + 1);
      gpu_store_relaxed(&state->last_turn, ARK_NEVER);
    }
  }
  ark_command* answer = ark_command_at(ark_kernel_launch.host_commands, sequence);
  if (done != ark_command_of(worker)->iterations) gpu_store_relaxed_system(&answer->done, done);
  gpu_store_release_system(&ark_host_words()->completed, sequence);
  gpu_store_release(&control->completed, sequence);
}

GPU_FN void ark_consume(ark_shared& shared) {
  bool is_done = true;
#pragma unroll 1
  for (;;) {
    if (gpu_kernel_thread() < GPU_WARP) ark_take(shared, is_done);
    gpu_barrier(ARK_COMMAND_BARRIER, ARK_THREADS);
    if (shared.worker.is_exit) return;
    is_done = ark_run(shared);
    const bool is_leader = gpu_kernel_thread() == 0;
    if (is_leader && !is_done) ark_ring_close(shared.ring);
    gpu_barrier(ARK_COMMAND_BARRIER, ARK_THREADS);
    if (!is_leader || !is_done) continue;
    ark_command* command = ark_command_at(ark_kernel_launch.commands, shared.worker.sequence);
    if (gpu_add(&command->remaining, 0xffffffffu) == 1) ark_complete(shared.worker);
    // Last: a release would wait for it.
    gpu_store_relaxed(&ark_my_status()->phase, ARK_IDLE);
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
    gpu_fill_renew();
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
    shared.worker.method = ARK_NONE;
    shared.worker.ahead = ARK_NONE;
    shared.worker.has_failed = 0;
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
  gpu_copy_wait<0>();  // of a row that nobody takes
  // An aborted kernel is asked afterwards what its workers were doing.
  if (gpu_kernel_thread() == 0 && !ark_is_aborted())
    gpu_store_relaxed(&ark_my_status()->phase, ARK_EXITED);
  if (gpu_kernel_thread() == 0 && gpu_block() == 0)
    gpu_store_relaxed_system(&ark_host_words()->exited_ns, gpu_clock_ns());
}
