// The functions the host calls; one thread at a time.

// Signals that workers leave to the host's threads: all but those that a fault of their own raises.
ARK_COLD void ark_host_signals(sigset_t* set) {
  sigfillset(set);
  constexpr int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT};
  for (const int signal : own) sigdelset(set, signal);
}

// Start the workers; 0, or the error of the thread that could not be made.
extern "C" __attribute__((visibility("default"))) int ark_kernel_start(ark_config* config) {
  sigset_t blocked, before;
  ark_host_signals(&blocked);
  pthread_sigmask(SIG_SETMASK, &blocked, &before);
  int error = 0;
  for (uint32_t w = 0; w < config->worker_count && error == 0; ++w) {
    ark_start* start = static_cast<ark_start*>(__builtin_malloc(sizeof(ark_start)));
    *start = {config, w};
    pthread_t thread;
    error = pthread_create(&thread, nullptr, ark_work, start);
    if (error == 0) {
      ark_table<uint64_t>(config->threads)[w] = uint64_t(thread);
      continue;
    }
    __builtin_free(start);
    ark_abort(*config, ARK_HOST_ABORT);
    for (uint32_t k = 0; k < w; ++k)
      pthread_join(pthread_t(ark_table<uint64_t>(config->threads)[k]), nullptr);
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return error;
}

// Tell the participants of command `sequence`, whose row is filled in.
extern "C" __attribute__((visibility("default"))) void ark_kernel_post(ark_config* config,
                                                                       uint64_t sequence) {
  const ark_command& command = ark_table<ark_command>(config->commands)[sequence % ARK_COMMAND_RING];
  const ark_queue* queues =
      ark_table<const ark_queue>(config->queues) + command.method * config->worker_count;
  for (uint32_t w = 0; w < config->worker_count; ++w) {
    if (queues[w].count == 0) continue;
    ark_mailbox& mailbox = ark_table<ark_mailbox>(config->mailboxes)[w];
    mailbox.ring[mailbox.posted % ARK_COMMAND_RING] = sequence;
    __atomic_store_n(&mailbox.posted, mailbox.posted + 1, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&mailbox.wake, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&mailbox.sleeps, __ATOMIC_SEQ_CST)) ark_wake(&mailbox.wake);
  }
}

// Wait until command `sequence` is complete: 1, or 0 after limit_ns, or -1 if the kernel ended.
extern "C" __attribute__((visibility("default"))) int ark_kernel_wait(ark_config* config,
                                                                      uint64_t sequence,
                                                                      int64_t limit_ns) {
  ark_control& control = *ark_table<ark_control>(config->control);
  const int64_t began = ark_now_ns();
  constexpr int64_t spin_ns = 15000;
  int64_t now = began;
  for (uint32_t spins = 0;; ++spins) {
    if (ark_acquire(control.completed) >= sequence) return 1;
    if (ark_relaxed(control.abort) != ARK_RUNNING) return -1;
    ark_pause();
    if (spins % 16 != 15) continue;
    now = ark_now_ns();
    if (now - began >= limit_ns) return 0;
    if (now - began < spin_ns) continue;
    __atomic_store_n(&control.host_sleeps, 1, __ATOMIC_SEQ_CST);
    const uint32_t seen = __atomic_load_n(&control.completed_signal, __ATOMIC_SEQ_CST);
    if (ark_acquire(control.completed) < sequence && ark_relaxed(control.abort) == ARK_RUNNING)
      ark_sleep_on(&control.completed_signal, seen, limit_ns - (now - began));
    ark_note(control.host_sleeps, 0);
  }
}

// Ask the workers to leave, wait for them up to limit_ns; 1 if all left, 0 if some did not.
extern "C" __attribute__((visibility("default"))) int ark_kernel_stop(ark_config* config,
                                                                      int64_t limit_ns) {
  ark_control& control = *ark_table<ark_control>(config->control);
  ark_release(control.stop, 1);
  ark_wake_all(*config);
  const int64_t deadline = ark_now_ns() + limit_ns;
  while (ark_acquire(control.exited) < config->worker_count) {
    if (ark_now_ns() > deadline) return 0;
    const timespec nap = {0, 20000};
    nanosleep(&nap, nullptr);
  }
  for (uint32_t w = 0; w < config->worker_count; ++w)
    pthread_join(pthread_t(ark_table<uint64_t>(config->threads)[w]), nullptr);
  return 1;
}

// End the kernel from the host at once.
extern "C" __attribute__((visibility("default"))) void ark_kernel_abort(ark_config* config) {
  ark_abort(*config, ARK_HOST_ABORT);
}

// One reading of the trace clock.
extern "C" __attribute__((visibility("default"))) uint64_t ark_kernel_ticks() { return ark_ticks(); }
