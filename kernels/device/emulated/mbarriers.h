// mbarriers: phases that end when all arrivals and all announced bytes have come.

#pragma once

#include "fibers.h"

namespace {

Mbarrier* find_mbarrier(const uint64_t* word) {
  for (Mbarrier& b : self->mbarriers)
    if (b.word == word) return &b;
  return nullptr;
}

// The number an mbarrier's word holds, so that stray writes show.
inline uint64_t mark_of(const Mbarrier& b) {
  return 0x6d62617272696572u ^ (uint64_t(b.cta) << 32) ^ uint64_t(&b - self->mbarriers.data);
}

// The mbarrier at an address, ready for use.
Mbarrier& use_mbarrier(const uint64_t* word, const char* what) {
  const Fiber& f = *self->current;
  check_alignment(word, sizeof(uint64_t), what);
  const Place place = check_access(word, sizeof(uint64_t), true, PLAIN, what);
  Mbarrier* b = find_mbarrier(word);
  if (b == nullptr)
    fault(MBARRIER, "mbarrier before init: %s calls %s on %s, which no gpu_mbarrier_init has seen",
          describe(f).c, what, describe_place(word).c);
  if (*word != mark_of(*b))
    fault(MBARRIER, "mbarrier overwritten: %s calls %s on %s, whose 8 bytes something else has "
          "written to since its init",
          describe(f).c, what, describe_place(word).c);
  if (!b->is_fenced)
    fault(MBARRIER, "mbarrier before its fence: %s calls %s on %s, and thread %u, which "
          "initialized it, has not called gpu_mbarrier_fence",
          describe(f).c, what, describe_place(word).c, self->fibers[b->initializer].thread);
  note_access(place, word, sizeof(uint64_t), true, true, what);
  return *b;
}

void end_phase_if_complete(Mbarrier& b) {
  if (b.pending != 0 || b.missing != 0) return;
  ++b.phase;
  b.pending = b.count;
  b.expected = b.issued = 0;
  if (RACE) {
    put(b.complete, b.coming);
    b.coming = nullptr;
  }
}

void arrive(Mbarrier& b, const char* who) {
  if (b.pending == 0) {
    note_fault(MBARRIER, "mbarrier overrun: %s arrives at %s, whose phase %u has all its %u "
               "arrivals and lacks %lld bytes; wait for the phase before the next one begins",
               who, describe_place(b.word).c, b.phase, b.count, (long long)b.missing);
    return;
  }
  --b.pending;
  end_phase_if_complete(b);
}

inline bool is_complete(const Mbarrier& b, uint32_t parity) { return (b.phase & 1) != parity; }

}  // namespace

extern "C" {

void emu_mbarrier_init(uint64_t* word, uint32_t count) {
  const Fiber& f = *self->current;
  check_alignment(word, sizeof(uint64_t), "gpu_mbarrier_init");
  const Place place = check_access(word, sizeof(uint64_t), true, PLAIN, "initializes");
  if (place.space != SHARED)
    fault(MBARRIER, "gpu_mbarrier_init by %s: %s is not shared memory", describe(f).c,
          describe_place(word).c);
  if (find_mbarrier(word) != nullptr)
    fault(MBARRIER, "gpu_mbarrier_init by %s: %s is an mbarrier already", describe(f).c,
          describe_place(word).c);
  if (count == 0 || count >= 1u << 20)  // PTX: 1 to 2^20 - 1
    fault(MBARRIER, "gpu_mbarrier_init by %s: a count of %u; 1 to %u work", describe(f).c, count,
          (1u << 20) - 1);
  note_access(place, word, sizeof(uint64_t), true, false, "initializes an mbarrier");
  Mbarrier b = {};
  b.word = word;
  b.cta = f.cta;
  b.count = b.pending = count;
  b.initializer = uint32_t(&f - self->fibers);
  *word = mark_of(self->mbarriers.push(b));
}

void emu_mbarrier_fence() {
  const uint32_t me = uint32_t(self->current - self->fibers);
  for (Mbarrier& b : self->mbarriers)
    if (b.initializer == me) b.is_fenced = true;
}

void emu_mbarrier_arrive(uint64_t* word) {
  Mbarrier& b = use_mbarrier(word, "gpu_mbarrier_arrive");
  Clock* done = release(*self->current);
  learn(b.coming, done);
  drop(done);
  arrive(b, describe(*self->current).c);
  if (self->code < 0) leave_for_good();
  may_yield();
}

void emu_mbarrier_expect(uint64_t* word, uint32_t bytes) {
  Mbarrier& b = use_mbarrier(word, "gpu_mbarrier_expect");
  Clock* done = release(*self->current);
  learn(b.coming, done);
  drop(done);
  // Bytes first: the arrival could end the phase.
  if (b.pending != 0) {
    b.expected += bytes;
    b.missing += bytes;
  }
  arrive(b, describe(*self->current).c);
  if (self->code < 0) leave_for_good();
  may_yield();
}

bool emu_mbarrier_test(uint64_t* word, uint32_t parity) {
  Mbarrier& b = use_mbarrier(word, "gpu_mbarrier_test");
  // A caller that polls must let others run.
  switch_to_scheduler();
  if (!is_complete(b, parity)) return false;
  learn(self->current->known, b.complete);
  return true;
}

}  // extern "C"
