// The scheduler: seeded, so that the same seed replays the same order.

#pragma once

#include "groups.h"
#include "words.h"

namespace {

constexpr uint64_t STEP_NS = 20;

// Whether what a fiber polls for has come; sets its outcome.
bool has_come(Fiber& f) {
  Wait& wait = f.wait;
  switch (wait.kind) {
    case FOR_TIME:
      return wait.until <= self->now_ns;
    case FOR_WORD:
    case FOR_HOST:
      if (int64_t(read_word(wait.word, sizeof(*wait.word))) >= wait.want) wait.outcome = 1;
      else if (!is_set(wait.quit)) return false;
      return true;
    case FOR_MBARRIER:
      if (is_complete(*find_mbarrier(wait.word), wait.a)) wait.outcome = 1;
      else if (!is_set(wait.quit)) return false;
      return true;
    case FOR_COPIES:
      return has_landed(f, wait.a, wait.until != 0);
    default:
      return false;
  }
}

uint32_t runnable_lanes(Warp& w) {
  for (uint32_t left = w.polling; left != 0; left &= left - 1) {
    Fiber& f = lane_of(w, uint32_t(__builtin_ctz(left)));
    if (has_come(f)) make_ready(f);
  }
  return w.ready;
}

void run_lane(Fiber& f) {
  ++self->steps;
  self->digest = (self->digest ^ uint64_t(&f - self->fibers)) * 1099511628211u;  // FNV
  self->current = &f;
  emu_switch(&self->scheduler, f.sp);
  self->current = nullptr;
}

// Run the lanes of a warp that can, in a rotated order; now and then only some of them.
void run_warp(Warp& w, uint32_t lanes) {
  if (one_in(8)) {
    const uint32_t some = lanes & uint32_t(random_bits());
    lanes = some != 0 ? some : lanes;
  }
  const uint32_t start = uint32_t(random_below(WARP));
  for (uint32_t i = 0; i < WARP; ++i) {
    const uint32_t lane = (start + i) % WARP;
    if (!(lanes & w.ready & 1u << lane)) continue;
    run_lane(lane_of(w, lane));
    if (self->code < 0) return;
  }
  constexpr uint64_t longest_ns = 20000;
  if (one_in(64)) w.sleeps_until = self->now_ns + random_below(longest_ns);
}

// Find a warp that can run and run it; false if there is none.
bool run_some_warp() {
  const uint32_t start = uint32_t(random_below(self->warp_count));
  for (uint32_t i = 0; i < self->warp_count; ++i) {
    Warp& w = self->warps[(start + i) % self->warp_count];
    if (w.sleeps_until > self->now_ns || (w.ready | w.polling) == 0) continue;
    const uint32_t lanes = runnable_lanes(w);
    if (lanes == 0) continue;
    run_warp(w, lanes);
    return true;
  }
  return false;
}

// The next moment at which something happens by itself.
uint64_t next_event_ns() {
  uint64_t next = self->copies.count ? self->copies[0].due : NEVER;
  for (uint32_t i = 0; i < self->warp_count; ++i) {
    const uint64_t until = self->warps[i].sleeps_until;
    if (until > self->now_ns && until < next) next = until;
  }
  for (uint32_t i = 0; i < fiber_count(); ++i) {
    const Wait& wait = self->fibers[i].wait;
    if (wait.kind == FOR_TIME && wait.until < next) next = wait.until;
  }
  return next;
}

// Every CTA's fibers wait for the host, or together for one of them that does.
bool is_idle() {
  for (uint32_t c = 0; c < self->ctas; ++c) {
    bool has_host = self->cta[c].live == 0;
    for (uint32_t i = 0; i < self->threads; ++i) {
      const WaitKind kind = self->fibers[c * self->threads + i].wait.kind;
      has_host |= kind == FOR_HOST;
      if (kind == FOR_WORD || kind == FOR_MBARRIER || kind == FOR_COPIES) return false;
    }
    if (!has_host) return false;
  }
  return true;
}

// End the wait whose limit comes first; false if no wait has one.
bool time_out() {
  Fiber* first = nullptr;
  for (uint32_t i = 0; i < fiber_count(); ++i) {
    Fiber& f = self->fibers[i];
    if (f.wait.kind != FOR_WORD || f.wait.until == NEVER) continue;
    if (first == nullptr || f.wait.until < first->wait.until) first = &f;
  }
  if (first == nullptr) return false;
  if (first->wait.until > self->now_ns) self->now_ns = first->wait.until;
  first->wait.outcome = -1;
  make_ready(*first);
  return true;
}

// --- what everybody waits for -------------------------------------------------------------------

Text describe_wait(const Fiber& f) {
  const Wait& wait = f.wait;
  const Warp& w = warp_of(f);
  if (wait.kind == IN_WARP)
    return text("%s: have lanes %#x, want 0xffffffff", describe_collective(w.kind, w.a, w.b).c,
                w.arrived);
  if (wait.kind == IN_BARRIER) {
    const CtaBarrier& b = self->cta[f.cta].barriers[wait.a];
    return text("gpu_barrier(%u): have %u threads, want %u", wait.a, b.arrived, b.threads);
  }
  if (wait.kind == FOR_WORD || wait.kind == FOR_HOST)
    return text("%s on %s: have %lld, want %lld",
                wait.kind == FOR_WORD ? "gpu_wait" : "gpu_wait_host", describe_place(wait.word).c,
                (long long)read_word(wait.word, sizeof(uint64_t)), (long long)wait.want);
  if (wait.kind == FOR_MBARRIER) {
    const Mbarrier& b = *find_mbarrier(wait.word);
    return text("gpu_mbarrier_wait(parity %u) on %s: phase %u, have %u of %u arrivals, %lld bytes "
                "missing",
                wait.a, describe_place(wait.word).c, b.phase, b.count - b.pending, b.count,
                (long long)b.missing);
  }
  return wait.kind == FOR_COPIES ? text("its copies to land") : text("nothing: it can run");
}

// One line for lanes of a warp that wait alike.
void say_waits() {
  for (uint32_t i = 0; i < self->warp_count; ++i) {
    Warp& w = self->warps[i];
    for (uint32_t lane = 0; lane < WARP;) {
      const Fiber& f = lane_of(w, lane);
      uint32_t end = lane + 1;
      if (f.wait.kind == GONE) {
        lane = end;
        continue;
      }
      const Text wait = describe_wait(f);
      while (end < WARP && lane_of(w, end).wait.kind != GONE &&
             strcmp(describe_wait(lane_of(w, end)).c, wait.c) == 0)
        ++end;
      say("\n  CTA %u warp %u lanes %u-%u %s: %s", w.cta, f.thread / WARP, lane, end - 1,
          describe_task(f.in_task, f.method, f.task).c, wait.c);
      lane = end;
    }
  }
}

// Everything is still: idle, timed out, or a deadlock. Returns whether to go on.
bool go_on_after_stillness(int* outcome) {
  constexpr uint32_t watchdog = 1;
  *outcome = IDLE;
  if (is_idle()) return false;
  if ((self->flags & watchdog) && time_out()) return true;
  note_fault(DEADLOCK, "deadlock: %u of %u threads wait and none can go on", self->live,
             fiber_count());
  say_waits();
  return false;
}

int run() {
  const uint64_t last_step = self->steps + self->step_limit;
  for (;;) {
    self->now_ns += STEP_NS;
    land_due_copies();
    if (self->code < 0) return self->code;
    if (self->live == 0) return self->code = EXITED;
    if (run_some_warp()) {
      if (self->code >= 0 && self->steps > last_step) {
        note_fault(STEP_LIMIT, "step limit: not done after %llu steps; a livelock?",
                   (unsigned long long)self->step_limit);
        say_waits();
      }
      continue;
    }
    const uint64_t next = next_event_ns();
    int outcome;
    if (next != NEVER) self->now_ns = next > self->now_ns ? next : self->now_ns;
    else if (!go_on_after_stillness(&outcome)) return self->code < 0 ? self->code : outcome;
  }
}

}  // namespace
