// Words that threads meet at: ordered loads and stores, atomics, fences, and waits.

#pragma once

#include "copies.h"

namespace {

Place use_word(const void* word, uint32_t bytes, bool is_write, const char* what) {
  check_alignment(word, bytes, what);
  const Place place = check_access(word, bytes, is_write, PLAIN, what);
  if (place.space != SHARED && place.space != GLOBAL)
    fault(BOUNDS, "%s by %s: %s is neither global nor shared memory", what,
          describe(*self->current).c, describe_place(word).c);
  note_access(place, word, bytes, is_write, true, what);
  return place;
}

inline uint64_t read_word(const void* word, uint32_t bytes) {
  if (bytes == sizeof(uint32_t)) return *static_cast<const volatile uint32_t*>(word);
  return *static_cast<const volatile uint64_t*>(word);
}
inline void write_word(void* word, uint64_t value, uint32_t bytes) {
  if (bytes == sizeof(uint32_t)) *static_cast<volatile uint32_t*>(word) = uint32_t(value);
  else *static_cast<volatile uint64_t*>(word) = value;
}

// A load sees a word: learn what was released to it, or keep that for a fence to come.
void acquire_word(const void* word, uint32_t order) {
  if (!RACE) return;
  Fiber& f = *self->current;
  Clock*& mine = order & EMU_ACQUIRE ? f.known : f.loaded;
  learn(mine, clock_of_word(word));
  if (order & EMU_SYSTEM) learn(mine, self->from_host);
}

// A store or an update of a word: leave what this thread releases. An update goes on with what
// others have released there.
void release_word(const void* word, uint32_t order, bool is_update) {
  if (!RACE) return;
  Fiber& f = *self->current;
  Clock* done = order & EMU_RELEASE ? release(f) : hold(f.fenced);
  Clock*& released = clock_of_word(word);
  if (!is_update) put(released, hold(done));
  else learn(released, done);
  if (order & EMU_SYSTEM) learn(self->to_host, done);
  drop(done);
}

inline bool is_set(const uint32_t* flag) { return read_word(flag, sizeof(*flag)) != 0; }

void use_flag(const uint32_t* flag, const char* what) {
  if (flag == nullptr)
    fault(BOUNDS, "%s by %s: the flag to watch is a null pointer", what,
          describe(*self->current).c);
  use_word(flag, sizeof(*flag), false, what);
}

int wait_for_word(WaitKind kind, const uint64_t* word, int64_t want, const uint32_t* abort,
                  uint64_t limit_ns, uint32_t order, const char* what) {
  use_word(word, sizeof(*word), false, what);
  use_flag(abort, what);
  const uint64_t left = NEVER - self->now_ns;
  const uint64_t until = limit_ns < left ? self->now_ns + limit_ns : NEVER;
  const int outcome = block({kind, 0, until, word, want, abort, 0});
  if (outcome == 1) {
    // What was plainly written in the meantime is a race that shows now.
    use_word(word, sizeof(*word), false, what);
    acquire_word(word, order);
  }
  return outcome;
}

}  // namespace

extern "C" {

void emu_check(const void* p, uint32_t bytes, uint32_t space) {
  const Place place = find_place(p);
  const Fiber& f = *self->current;
  if (place.space != GLOBAL)
    fault(BOUNDS, "%s of %s, which is not global memory, by %s",
          space == EMU_GLOBAL ? "gpu_global" : "a read-only load", describe_place(p).c,
          describe(f).c);
  if (space == EMU_GLOBAL) return;
  check_alignment(p, bytes, "a read-only load");
  check_access(p, bytes, false, PLAIN, "loads");
  if (self->buffers[place.index].is_writable)
    fault(BOUNDS, "a read-only load of %s by %s: the buffer is writable, so caches may be stale; "
          "use a plain load",
          describe_place(p).c, describe(f).c);
}

uint64_t emu_load(const void* word, uint32_t bytes, uint32_t order) {
  may_yield();
  use_word(word, bytes, false, "loads an atomic word of");
  acquire_word(word, order);
  return read_word(word, bytes);
}

void emu_store(void* word, uint64_t value, uint32_t bytes, uint32_t order) {
  use_word(word, bytes, true, "stores an atomic word of");
  release_word(word, order, false);
  write_word(word, value, bytes);
  may_yield();
}

uint64_t emu_update(void* word, uint64_t value, uint64_t expected, uint32_t bytes, uint32_t op,
                    uint32_t order) {
  may_yield();
  const Place place = use_word(word, bytes, true, "updates an atomic word of");
  if (place.space != GLOBAL)
    fault(BOUNDS, "an atomic update by %s of %s, which is not global memory",
          describe(*self->current).c, describe_place(word).c);
  const uint64_t before = read_word(word, bytes);
  acquire_word(word, order);
  const bool is_stored = op != EMU_COMPARE_EXCHANGE || before == expected;
  if (is_stored) {
    release_word(word, order, true);
    write_word(word, op == EMU_ADD ? before + value : value, bytes);
  }
  may_yield();
  return before;
}

void emu_fence() {
  if (RACE) {
    Fiber& f = *self->current;
    learn(f.known, f.loaded);
    put(f.fenced, release(f));
  }
  may_yield();
}

int emu_wait(const uint64_t* word, int64_t want, const uint32_t* abort, uint64_t limit_ns,
             uint32_t order) {
  return wait_for_word(FOR_WORD, word, want, abort, limit_ns, order, "gpu_wait");
}
int emu_wait_host(const uint64_t* word, int64_t want, const uint32_t* abort) {
  constexpr uint32_t order = EMU_ACQUIRE | EMU_SYSTEM;
  return wait_for_word(FOR_HOST, word, want, abort, NEVER, order, "gpu_wait_host");
}

bool emu_mbarrier_wait(uint64_t* word, uint32_t parity, const uint32_t* quit) {
  if (parity > 1)
    fault(MBARRIER, "gpu_mbarrier_wait by %s: a parity of %u; 0 and 1 work",
          describe(*self->current).c, parity);
  use_mbarrier(word, "gpu_mbarrier_wait");
  use_flag(quit, "gpu_mbarrier_wait");
  if (block({FOR_MBARRIER, parity, 0, word, 0, quit, 0}) == 0) return false;
  if (RACE) learn(self->current->known, find_mbarrier(word)->complete);
  return true;
}

void emu_nanosleep(uint32_t ns) {
  block({FOR_TIME, 0, self->now_ns + ns, nullptr, 0, nullptr, 0});
}
uint64_t emu_clock_ns() {
  may_yield();
  return self->now_ns;
}

}  // extern "C"
