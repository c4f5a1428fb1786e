// What signals cost with nothing around them: counters between CTAs, words between GPU and host.

constexpr uint32_t ARK_HOP_THREADS = GPU_WARP;

// Wait as tasks do, or by looking all the time; false if that takes too long.
template <bool PAUSES>
GPU_FN bool ark_hop_wait(uint32_t index, uint64_t want) {
  const uint64_t limit_ns = ark_bench_config.limit_ns;
  uint64_t* const word = ark_bench_word(index);
#if !defined(ARK_EMULATED)
  if constexpr (!PAUSES) {
    const uint64_t began = gpu_clock_ns();
    constexpr uint32_t looks_per_clock = 1024;
#pragma unroll 1
    for (uint32_t looks = 1; gpu_load_acquire(word) < want; ++looks)
      if (looks % looks_per_clock == 0 && gpu_clock_ns() - began > limit_ns) return false;
    return true;
  }
#endif
  const uint32_t* never = gpu_global_pointer<const uint32_t>(ark_bench_config.never);
  return gpu_wait(word, int64_t(want), never, limit_ns) > 0;
}

// How many rounds the CTA's thread was through.
GPU_FN void ark_hop_leave(uint64_t rounds) {
  gpu_global_pointer<uint32_t>(ark_bench_config.sums)[gpu_block()] = uint32_t(rounds);
}

// Two CTAs in turn: a round is two signals, each after the other one.
template <bool PAUSES>
GPU_FN void ark_ping_pong() {
  ark_bench_begin();
  if (gpu_thread() == 0) {
    const uint32_t own = gpu_block(), other = 1 - own;
    uint64_t round = 0;
#pragma unroll 1
    for (; round < ark_bench_config.rounds; ++round) {
      if (own == 0) gpu_add_release(ark_bench_word(own), 1);
      if (!ark_hop_wait<PAUSES>(other, round + 1)) break;
      if (own == 1) gpu_add_release(ark_bench_word(own), 1);
    }
    ark_hop_leave(round);
  }
  ark_bench_end(ARK_HOP_THREADS);
}
GPU_KERNEL(ark_ping, ARK_HOP_THREADS) { ark_ping_pong<true>(); }
GPU_KERNEL(ark_ping_restless, ARK_HOP_THREADS) { ark_ping_pong<false>(); }

// One CTA signals all, all signal one: a round is these two phases.
GPU_KERNEL(ark_fan, ARK_HOP_THREADS) {
  ark_bench_begin();
  if (gpu_thread() == 0) {
    const bool is_first = gpu_block() == 0;
    uint64_t round = 0;
#pragma unroll 1
    for (; round < ark_bench_config.rounds; ++round) {
      if (is_first) gpu_add_release(ark_bench_word(0), 1);
      if (!ark_hop_wait<true>(0, round + 1)) break;
      gpu_add_release(ark_bench_word(1), 1);
      if (is_first && !ark_hop_wait<true>(1, (round + 1) * gpu_grid())) break;
    }
    ark_hop_leave(round);
  }
  ark_bench_end(ARK_HOP_THREADS);
}

// Answer the host's words, one after the other, without a pause between two looks.
GPU_KERNEL(ark_echo, ARK_HOP_THREADS) {
  if (gpu_thread() != 0) return;
  uint64_t* const asked = ark_bench_word(0);
  uint64_t* const answered = ark_bench_word(1);
#pragma unroll 1
  for (uint64_t round = 0; round < ark_bench_config.rounds; ++round) {
#if defined(ARK_EMULATED)
    const uint32_t* never = gpu_global_pointer<const uint32_t>(ark_bench_config.never);
    gpu_wait_host(asked, int64_t(round + 1), never);
#else
#pragma unroll 1
    while (int64_t(gpu_load_acquire_system(asked)) < int64_t(round + 1)) {
    }
#endif
    gpu_store_release_system(answered, round + 1);
  }
}

GPU_KERNEL(ark_empty, ARK_HOP_THREADS) {}
