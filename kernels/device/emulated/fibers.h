// How a running fiber gives up the processor.

#pragma once

#include "memory.h"

namespace {

inline void make_ready(Fiber& f) {
  Warp& w = warp_of(f);
  f.wait.kind = READY;
  w.ready |= 1u << f.lane;
  w.polling &= ~(1u << f.lane);
}

inline void switch_to_scheduler() {
  Fiber& f = *self->current;
  emu_switch(&f.sp, self->scheduler);
}

// Wait as `wait` says; returns its outcome.
int block(const Wait& wait) {
  Fiber& f = *self->current;
  Warp& w = warp_of(f);
  f.wait = wait;
  w.ready &= ~(1u << f.lane);
  if (wait.kind >= FOR_TIME) w.polling |= 1u << f.lane;
  switch_to_scheduler();
  return f.wait.outcome;
}

// A point where others may come in between.
inline void may_yield() {
  constexpr uint32_t yields = 8;
  if (one_in(yields)) switch_to_scheduler();
}

}  // namespace
