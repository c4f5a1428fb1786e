// Waits of a worker for other workers' signals and decisions, each with a limit.

// The counter index that status lines show for a decision, and for a command before this one.
constexpr uint32_t ARK_DECISION = 0xffffffff;
constexpr uint32_t ARK_COMPLETION = 0xfffffffe;

GPU_FN ark_status* ark_my_status() {
  return ark_table<ark_status>(ark_kernel_launch.statuses) + gpu_block();
}

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

GPU_FN void ark_note_wait(ark_status* status, uint32_t counter, int64_t want) {
  gpu_store_relaxed(&status->counter, counter);
  gpu_store_relaxed(&status->want, want);
  gpu_store_relaxed(&status->phase, counter == ARK_COMPLETION ? ARK_JOINING : ARK_WAITING);
}

// Wait for a word and say meanwhile for what; false if the kernel ends. A wait is over its limit
// when no worker came to another task for so long: that is looked at once per limit.
GPU_PART bool ark_wait_slowly(uint32_t counter, const uint64_t* word, int64_t want) {
  ark_status* status = ark_my_status();
  const uint32_t* abort = &ark_table<ark_control>(ark_kernel_launch.control)->abort;
  ark_note_wait(status, counter, want);
  uint64_t progress = 0;
  int outcome;
  while ((outcome = gpu_wait(word, want, abort, ark_kernel_launch.timeout_ns)) < 0) {
    const uint64_t now = ark_progress();
    if (now == progress) break;
    progress = now;
  }
  if (outcome > 0) {
    gpu_store_relaxed(&status->phase, ARK_COMPUTING);
    return true;
  }
  if (outcome < 0) {
    gpu_store_relaxed(&status->is_stalled, 1);
    ark_abort(ARK_STALLED);
  }
  // Lanes wait at the same time, and wrote over each other's words: the first that ends tells.
  if (gpu_exchange(&status->is_told, 1u) == 0) {
    ark_note_wait(status, counter, want);
    gpu_store_relaxed(&status->have, int64_t(gpu_load_relaxed(word)));
  }
  return false;
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

GPU_FN ark_method_state* ark_state_of(const ark_worker& worker) {
  return ark_table<ark_method_state>(ark_kernel_launch.method_states) + worker.method;
}

// Hold turn u until the decision of turn u - depth is known: ARK_GO, or ARK_OVER if the run is
// over, or ARK_QUIT if the kernel ends.
template <bool IS_LEADER>
GPU_FN uint32_t ark_gate(const ark_worker& worker, int64_t turn) {
  const int64_t awaited = turn - int64_t(worker.depth);
  if (!worker.has_stop || awaited < worker.first_turn) return ARK_GO;
  const ark_method_state* state = ark_state_of(worker);
  const uint64_t* decided = reinterpret_cast<const uint64_t*>(&state->decided);
  if (!(IS_LEADER ? ark_wait_for(ARK_DECISION, decided, awaited + 1)
                  : ark_wait_silently(decided, awaited + 1)))
    return ARK_QUIT;
  return gpu_load_relaxed(&state->last_turn) > awaited ? ARK_GO : ARK_OVER;
}

// Whether the run has ended before this turn, which began before that was known.
GPU_FN bool ark_is_over(const ark_worker& worker) {
  return worker.has_stop && worker.depth > 1 &&
         worker.turn > gpu_load_relaxed(&ark_state_of(worker)->last_turn);
}

// A task of this worker met data that it can't work on: end the kernel, unless the run turns out
// to have ended before this turn; whether it ends.
GPU_PART bool ark_check_failure() {
  ark_worker& worker = ark_here().worker;
  ark_failure* failure = ark_table<ark_failure>(ark_kernel_launch.failures) + worker.index;
  if (gpu_load_acquire(&failure->state) != ARK_FAILURE_FULL) return false;
  if (worker.has_stop && failure->turn > worker.first_turn) {
    const ark_method_state* state = ark_state_of(worker);
    const uint64_t* decided = reinterpret_cast<const uint64_t*>(&state->decided);
    if (!ark_wait_for(ARK_DECISION, decided, failure->turn)) return true;
    if (gpu_load_relaxed(&state->last_turn) < failure->turn) {
      gpu_store_relaxed(&failure->state, ARK_NO_FAILURE);
      gpu_store_relaxed(&worker.has_failed, 0);
      return false;
    }
  }
  ark_abort(ARK_TASK_FAILED);
  return true;
}
