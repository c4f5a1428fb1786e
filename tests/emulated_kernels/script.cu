// Threads that follow a script of plain accesses and synchronization, and log what happened: a
// check of race mode against happens-before worked out by other means.

#include "ark_gpu.h"

constexpr uint32_t THREADS = 64;
enum : uint32_t {
  PAUSE,
  READ,
  WRITE,
  ADD,
  LOAD_ADDED,
  STORE,
  STORE_FENCED,
  LOAD_STORED,
  LOAD_FENCED,
  SYNC_WARP,
  SYNC_CTA
};

struct Op {
  uint32_t kind, index;
};
struct Note {
  uint32_t thread, position, is_done, value;
};
struct Config {
  const Op* ops;  // [threads of all CTAs, length]
  uint32_t* cells;
  uint64_t* added;
  uint64_t* stored;
  Note* notes;
  uint64_t* note_count;
  uint64_t length;
};
GPU_CONSTANT Config config;

// Not seen by race mode, and never interrupted: the order of notes is that of execution.
__attribute__((noinline, no_sanitize("thread"))) void note(uint32_t thread, uint32_t position,
                                                           uint32_t is_done, uint64_t value) {
  config.notes[(*config.note_count)++] = {thread, position, is_done, uint32_t(value)};
}

GPU_FN uint64_t follow(Op op, uint64_t name) {
  switch (op.kind) {
    case READ:
      return reinterpret_cast<volatile uint32_t*>(config.cells)[op.index];
    case WRITE:
      reinterpret_cast<volatile uint32_t*>(config.cells)[op.index] = uint32_t(name);
      return 0;
    case ADD:
      return gpu_add(config.added + op.index, 1);
    case LOAD_ADDED:
      return gpu_load_acquire(config.added + op.index);
    case STORE:
      gpu_store_release(config.stored + op.index, name);
      return 0;
    case STORE_FENCED:
      gpu_fence();
      gpu_store_relaxed(config.stored + op.index, name);
      return 0;
    case LOAD_STORED:
      return gpu_load_acquire(config.stored + op.index);
    case LOAD_FENCED: {
      const uint64_t seen = gpu_load_relaxed(config.stored + op.index);
      gpu_fence();
      return seen;
    }
    case SYNC_WARP:
      gpu_sync_warp();
      return 0;
    case SYNC_CTA:
      gpu_barrier(0, THREADS);
      return 0;
    default:
      gpu_nanosleep(100);
      return 0;
  }
}

GPU_KERNEL(script, THREADS) {
  const uint32_t thread = gpu_block() * THREADS + gpu_thread();
  for (uint32_t i = 0; i < config.length; ++i) {
    const uint64_t place = thread * config.length + i;
    note(thread, i, 0, 0);
    note(thread, i, 1, follow(config.ops[place], place + 1));
  }
}
