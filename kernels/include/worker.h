// A worker of the persistent kernel: takes commands, walks its queue, waits, computes, signals.

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

constexpr int64_t ARK_NEVER = int64_t(1) << 62;

struct ark_worker {
  const ark_config* config;
  const ark_command* command;
  int64_t turn;
  int64_t first_turn;
  uint32_t method;
  uint32_t index;
  uint32_t has_failed;
  ark_status* status;
  float* scratch;
  // Weights that its tasks read, in order; the next one, and how much of it was read ahead.
  const ark_segment* segments;
  uint32_t segment_count;
  uint32_t segment;
  uint32_t ahead;
};

typedef void (*ark_function)(const ark_call& call);
extern const ark_function ark_functions[];

template <class T>
ARK_FN T* ark_table(uint64_t address) {
  return reinterpret_cast<T*>(address);
}
template <class T>
ARK_FN T ark_acquire(const T& word) {
  return __atomic_load_n(&word, __ATOMIC_ACQUIRE);
}
template <class T>
ARK_FN T ark_relaxed(const T& word) {
  return __atomic_load_n(&word, __ATOMIC_RELAXED);
}
template <class T, class U>
ARK_FN void ark_release(T& word, U value) {
  __atomic_store_n(&word, T(value), __ATOMIC_RELEASE);
}
template <class T, class U>
ARK_FN void ark_note(T& word, U value) {
  __atomic_store_n(&word, T(value), __ATOMIC_RELAXED);
}

ARK_FN void ark_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

ARK_COLD int64_t ark_now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t(now.tv_sec) * 1000000000 + now.tv_nsec;
}

// Ticks for traces; the host converts them with two readings of both clocks.
ARK_FN uint64_t ark_ticks() {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#else
  return uint64_t(ark_now_ns());
#endif
}

ARK_COLD void ark_sleep_on(uint32_t* word, uint32_t seen, int64_t limit_ns) {
  const timespec limit = {time_t(limit_ns / 1000000000), long(limit_ns % 1000000000)};
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, &limit, nullptr, 0);
}

ARK_COLD void ark_wake(uint32_t* word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0);
}

// Wake everyone who may sleep: workers, and the host in ark_kernel_wait.
ARK_COLD void ark_wake_all(const ark_config& config) {
  ark_control* control = ark_table<ark_control>(config.control);
  __atomic_fetch_add(&control->completed_signal, 1, __ATOMIC_SEQ_CST);
  ark_wake(&control->completed_signal);
  for (uint32_t w = 0; w < config.worker_count; ++w) {
    ark_mailbox& mailbox = ark_table<ark_mailbox>(config.mailboxes)[w];
    __atomic_fetch_add(&mailbox.wake, 1, __ATOMIC_SEQ_CST);
    ark_wake(&mailbox.wake);
  }
}

ARK_COLD void ark_abort(const ark_config& config, uint32_t reason) {
  uint32_t expected = ARK_RUNNING;
  ark_control* control = ark_table<ark_control>(config.control);
  __atomic_compare_exchange_n(&control->abort, &expected, reason, false, __ATOMIC_SEQ_CST,
                              __ATOMIC_SEQ_CST);
  ark_wake_all(config);
}

// A number that changes when any worker comes to another task.
ARK_COLD uint64_t ark_progress(const ark_config& config) {
  constexpr uint64_t prime = 1099511628211u;  // of the FNV hash
  uint64_t hash = 0;
  for (uint32_t w = 0; w < config.worker_count; ++w) {
    const ark_status& status = ark_table<ark_status>(config.statuses)[w];
    hash = (hash ^ uint64_t(ark_relaxed(status.turn))) * prime;
    hash = (hash ^ ark_relaxed(status.task)) * prime;
    hash = (hash ^ ark_relaxed(status.method)) * prime;
  }
  return hash;
}

// Back off while waiting: pause, then yield, then sleep. Returns false if the kernel ends, or
// if nothing changed for the limit. `changed`, and any worker that comes to another task,
// restart the limit: a long chain of tasks elsewhere is no stall.
struct ark_backoff {
  uint32_t spins = 0;
  int64_t deadline = 0;
  int64_t look_at = 0;
  uint64_t progress = 0;

  bool step(const ark_config& config, bool changed) {
    constexpr uint32_t yields = 1024;
    const uint32_t pauses = config.wait_spins;
    ark_pause();
    if (changed) deadline = 0;
    if (++spins < pauses) return true;
    if (ark_relaxed(ark_table<ark_control>(config.control)->abort) != ARK_RUNNING) return false;
    const int64_t now = ark_now_ns();
    const int64_t limit = int64_t(config.timeout_ns);
    if (deadline == 0) deadline = now + limit;
    if (now >= look_at) {
      // Others' lines are looked at rarely: reading them slows their owners down.
      constexpr int64_t looks = 8;
      const uint64_t seen = ark_progress(config);
      if (seen != progress) deadline = now + limit;
      progress = seen;
      look_at = now + limit / looks;
    }
    if (now > deadline) return false;
    if (spins < pauses + yields) {
      sched_yield();
    } else {
      const timespec nap = {0, 50000};
      nanosleep(&nap, nullptr);
    }
    return true;
  }
};

// Ask memory for some lines of the weights that come next; false if all were asked for.
ARK_FN bool ark_read_ahead(ark_worker& worker) {
  constexpr uint32_t lines = 4, line_bytes = 64;
  if (worker.segment_count == 0) return false;
  const ark_segment& segment = worker.segments[worker.segment];
  if (worker.ahead >= segment.bytes) return false;
  const char* from = ark_table<const char>(segment.source) + worker.ahead;
  for (uint32_t i = 0; i < lines; ++i) __builtin_prefetch(from + i * line_bytes, 0, 2);
  worker.ahead += lines * line_bytes;
  return true;
}

// A task is past that may have had a part of the weights.
ARK_FN void ark_pass_segment(ark_worker& worker, const ark_task& task) {
  if (task.flags >> ARK_SLOTS_SHIFT == 0) return;
  worker.segment = worker.segment + 1 < worker.segment_count ? worker.segment + 1 : 0;
  worker.ahead = 0;
}

ARK_COLD bool ark_wait_slowly(ark_worker& worker, uint32_t counter, const uint64_t& word,
                              int64_t want) {
  ark_status& status = *worker.status;
  ark_note(status.counter, counter);
  ark_note(status.want, want);
  ark_note(status.phase, ARK_WAITING);
  ark_backoff backoff;
  int64_t have = int64_t(ark_acquire(word)), before = have;
  while (have < want) {
    if (ark_read_ahead(worker)) {
      have = int64_t(ark_acquire(word));
      continue;
    }
    if (!backoff.step(*worker.config, have != before)) {
      ark_note(status.have, have);
      if (ark_relaxed(ark_table<ark_control>(worker.config->control)->abort) == ARK_RUNNING)
        ark_note(status.is_stalled, 1);
      ark_abort(*worker.config, ARK_STALLED);
      return false;
    }
    before = have;
    have = int64_t(ark_acquire(word));
  }
  ark_note(status.phase, ARK_COMPUTING);
  return true;
}

ARK_FN bool ark_wait_for(ark_worker& worker, uint32_t counter, const uint64_t& word,
                         int64_t want) {
  if (ARK_LIKELY(int64_t(ark_acquire(word)) >= want)) return true;
  return ark_wait_slowly(worker, counter, word, want);
}

// The counter index that status lines show for a decision.
constexpr uint32_t ARK_DECISION = 0xffffffff;

// Hold turn u until the decision of turn u - depth is known: 1 go on, 0 the run is over,
// -1 the kernel ends.
ARK_FN int ark_gate(ark_worker& worker, const ark_method& method, ark_method_state& state) {
  const int64_t awaited = worker.turn - int64_t(method.depth);
  if (!method.has_stop || awaited < worker.first_turn) return 1;
  const uint64_t& decided = reinterpret_cast<const uint64_t&>(state.decided);
  if (!ark_wait_for(worker, ARK_DECISION, decided, awaited + 1)) return -1;
  return ark_relaxed(state.last_turn) > awaited;
}

// One turn of the queue; false if the kernel ends.
ARK_FN bool ark_walk(ark_worker& worker, const ark_task* task, const ark_task* end,
                     const ark_method& method, const ark_method_state& state) {
  const ark_config& config = *worker.config;
  const ark_control& control = *ark_table<const ark_control>(config.control);
  ark_counter* counters = ark_table<ark_counter>(config.counters);
  const ark_wait* all_waits = ark_table<const ark_wait>(config.waits);
  const int64_t* params = ark_table<const int64_t>(config.params);
  void* const* operands = ark_table<void* const>(config.operands);
  ark_counter* const* raises = ark_table<ark_counter* const>(config.raises);
  ark_trace* traces = ark_table<ark_trace>(config.traces);
  const bool is_shared = method.is_shared_counter;
  for (; task != end; ++task) {
    const uint64_t came = __builtin_expect(traces != nullptr, 0) ? ark_ticks() : 0;
    ark_note(worker.status->task, task->id);
    const ark_wait* wait = all_waits + task->waits;
    for (uint32_t i = 0; i < task->wait_count; ++i, ++wait) {
      const int64_t want = worker.turn * int64_t(wait->signals) + wait->need;
      if (!ark_wait_for(worker, wait->counter, counters[wait->counter].value, want)) return false;
    }
    // A task that failed has no result: what its decision or signal let go must not use it.
    if (__builtin_expect(ark_relaxed(control.abort) != ARK_RUNNING, 0)) return false;
    const uint64_t began = __builtin_expect(traces != nullptr, 0) ? ark_ticks() : 0;
    // Past an early end, tasks are waited for and signalled but not run.
    if (ARK_LIKELY(!method.has_stop || worker.turn <= ark_relaxed(state.last_turn))) {
      const ark_call call = {params + task->params, operands + task->operands, worker.scratch,
                             &worker, task};
      ark_functions[task->function](call);
      if (__builtin_expect(worker.has_failed, 0)) return false;
    }
    ark_pass_segment(worker, *task);
    uint64_t& counter = counters[task->counter].value;
    // Flags have one writer each, and one signal per turn.
    for (uint32_t i = 0; i < task->raise_count; ++i)
      ark_release(raises[task->raises + i]->value, worker.turn + 1);
    if (is_shared)
      __atomic_fetch_add(&counter, 1, __ATOMIC_RELEASE);
    else
      ark_release(counter, counter + 1);
    if (__builtin_expect(traces != nullptr, 0)) {
      uint64_t& count = ark_table<ark_counter>(config.trace_counts)[worker.index].value;
      traces[worker.index * config.trace_rows + (count & (config.trace_rows - 1))] = {
          came, began, ark_ticks(), worker.turn, task->id, worker.method};
      ark_release(count, count + 1);
    }
  }
  return true;
}

// The last participant of a command writes its result and completes it.
ARK_FN void ark_complete(const ark_config& config, ark_command& command, ark_method_state& state,
                         int64_t first_turn, bool is_closed, uint64_t sequence) {
  ark_control& control = *ark_table<ark_control>(config.control);
  ark_failure& failure = *ark_table<ark_failure>(config.failure);
  const int64_t last_turn = ark_relaxed(state.last_turn);
  command.done = is_closed ? 0 : command.iterations;
  if (last_turn < first_turn + command.done) {
    command.done = last_turn - first_turn + 1;
    ark_note(control.closed_epoch, command.epoch + 1);
    ark_note(state.last_turn, ARK_NEVER);
    // What failed in turns that did not count did not fail.
    ark_note(failure.state, 0);
  }
  ark_release(control.completed, sequence);
  __atomic_fetch_add(&control.completed_signal, 1, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&control.host_sleeps, __ATOMIC_SEQ_CST)) ark_wake(&control.completed_signal);
}

// Do one command; false if the kernel ends.
ARK_FN bool ark_run(ark_worker& worker, int64_t* method_turns, uint64_t sequence) {
  const ark_config& config = *worker.config;
  ark_control& control = *ark_table<ark_control>(config.control);
  ark_command& command = ark_table<ark_command>(config.commands)[sequence % ARK_COMMAND_RING];
  // Commands join all workers: the one before must be complete.
  ark_note(worker.status->phase, ARK_JOINING);
  ark_backoff backoff;
  while (ark_acquire(control.completed) + 1 < sequence) {
    // The work of others bounds itself: no limit of our own.
    if (!backoff.step(config, true)) return false;
  }
  worker.command = &command;
  worker.method = command.method;
  ark_note(worker.status->method, command.method);
  ark_note(worker.status->phase, ARK_COMPUTING);
  const ark_method& method = ark_table<const ark_method>(config.methods)[command.method];
  ark_method_state& state = ark_table<ark_method_state>(config.method_states)[command.method];
  const ark_queue& queue =
      ark_table<const ark_queue>(config.queues)[command.method * config.worker_count + worker.index];
  const ark_task* tasks = ark_table<const ark_task>(config.tasks) + queue.first;
  const ark_queue& stream = ark_table<const ark_queue>(
      config.streams)[command.method * config.worker_count + worker.index];
  worker.segments = ark_table<const ark_segment>(config.segments) + stream.first;
  worker.segment_count = stream.count;
  worker.segment = worker.ahead = 0;
  int64_t& turn = method_turns[command.method];
  const bool is_closed = command.epoch < ark_relaxed(control.closed_epoch);
  const int64_t first = worker.first_turn = turn;
  const int64_t end = is_closed ? first : first + command.iterations;
  for (; turn < end; ++turn) {
    worker.turn = turn;
    ark_note(worker.status->turn, turn);
    const int gate = ark_gate(worker, method, state);
    if (gate < 0) return false;
    if (gate == 0) break;
    if (!ark_walk(worker, tasks, tasks + queue.count, method, state)) return false;
  }
  if (__atomic_sub_fetch(&command.remaining, 1, __ATOMIC_ACQ_REL) == 0)
    ark_complete(config, command, state, first, is_closed, sequence);
  ark_note(worker.status->phase, ARK_IDLE);
  return true;
}

// Wait for a command; false if the kernel ends.
ARK_FN bool ark_next(ark_worker& worker, uint64_t taken) {
  const ark_config& config = *worker.config;
  const ark_control& control = *ark_table<ark_control>(config.control);
  ark_mailbox& mailbox = ark_table<ark_mailbox>(config.mailboxes)[worker.index];
  int64_t sleep_at = 0;
  for (uint32_t spins = 0;; ++spins) {
    if (ark_acquire(mailbox.posted) > taken) return true;
    if (ark_relaxed(control.abort) != ARK_RUNNING || ark_acquire(control.stop)) return false;
    ark_pause();
    if (spins % 64 != 63) continue;
    const int64_t now = ark_now_ns();
    if (sleep_at == 0) sleep_at = now + int64_t(config.idle_spin_ns);
    if (now < sleep_at) continue;
    const uint32_t seen = ark_acquire(mailbox.wake);
    __atomic_store_n(&mailbox.sleeps, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&mailbox.posted, __ATOMIC_SEQ_CST) <= taken && !ark_acquire(control.stop) &&
        ark_relaxed(control.abort) == ARK_RUNNING)
      ark_sleep_on(&mailbox.wake, seen, 1000000000);
    ark_note(mailbox.sleeps, 0);
  }
}

ARK_PART void ark_stay_on(int32_t core) {
  if (core < 0) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  sched_setaffinity(0, sizeof(set), &set);
}

// At most this many methods in one program; `emit` checks it.
constexpr uint32_t ARK_MAX_METHODS = 64;

struct ark_start {
  const ark_config* config;
  uint32_t index;
};

// Not cold, nor is all that it calls: GCC would take a program's only task function for cold too.
ARK_PART void* ark_work(void* argument) {
  const ark_start start = *static_cast<ark_start*>(argument);
  __builtin_free(argument);
  const ark_config& config = *start.config;
  ark_stay_on(ark_table<const int32_t>(config.cores)[start.index]);
  ark_worker worker = {};
  worker.config = start.config;
  worker.index = start.index;
  worker.status = ark_table<ark_status>(config.statuses) + start.index;
  worker.scratch = ark_table<float>(config.scratch) + start.index * config.scratch_elems;
  int64_t method_turns[ARK_MAX_METHODS] = {};
  const ark_mailbox& mailbox = ark_table<ark_mailbox>(config.mailboxes)[start.index];
  for (uint64_t taken = 0; ark_next(worker, taken); ++taken)
    if (!ark_run(worker, method_turns, mailbox.ring[taken % ARK_COMMAND_RING])) break;
  ark_control& control = *ark_table<ark_control>(config.control);
  // A kernel that was aborted is asked afterwards what its workers were doing.
  if (ark_relaxed(control.abort) == ARK_RUNNING) ark_note(worker.status->phase, ARK_EXITED);
  __atomic_fetch_add(&control.exited, 1, __ATOMIC_ACQ_REL);
  return nullptr;
}
