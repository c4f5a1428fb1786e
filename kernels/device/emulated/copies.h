// Asynchronous copies from global to shared memory: the target is poisoned when a copy is issued
// and filled some time later.

#pragma once

#include "mbarriers.h"

namespace {

constexpr int POISON = 0xff;  // a NaN in every float type
constexpr uint32_t COPY_BYTES = 16;

inline bool is_later(const Copy& a, const Copy& b) {
  return a.due != b.due ? a.due > b.due : a.number > b.number;
}

// A heap: the next copy to land is the first.
void push_copy(const Copy& copy) {
  List<Copy>& heap = self->copies;
  heap.push(copy);
  for (uint32_t i = heap.count - 1; i > 0 && is_later(heap[(i - 1) / 2], heap[i]);) {
    const Copy up = heap[(i - 1) / 2];
    heap[(i - 1) / 2] = heap[i];
    heap[i] = up;
    i = (i - 1) / 2;
  }
}

Copy pop_copy() {
  List<Copy>& heap = self->copies;
  const Copy first = heap[0];
  heap.remove(0);
  for (uint32_t i = 0;;) {
    uint32_t least = i;
    for (uint32_t child = 2 * i + 1; child <= 2 * i + 2; ++child)
      if (child < heap.count && is_later(heap[least], heap[child])) least = child;
    if (least == i) return first;
    const Copy moved = heap[i];
    heap[i] = heap[least];
    heap[least] = moved;
    i = least;
  }
}

// Mostly short, sometimes long, now and then at once.
uint64_t random_delay_ns() {
  constexpr uint64_t usual = 3000, slow = 60000;
  if (one_in(8)) return 0;
  return random_below(one_in(8) ? slow : usual);
}

// --- race mode: every copy is an agent of its own -----------------------------------------------

// A unit for a copy of this fiber: one whose copies it knows to be over, or a new one.
uint32_t take_unit(const Fiber& f) {
  if (!RACE) return NONE;
  uint32_t taken = NONE;
  List<uint32_t>& mine = cta_of(f).units;
  for (uint32_t i = 0; i < mine.count && taken == NONE; ++i) {
    const Unit& unit = self->units[mine[i]];
    if (unit.flying == 0 && time_of(f.known, unit.agent) >= unit.time) taken = mine[i];
  }
  if (taken == NONE) {
    taken = self->units.count;
    self->units.push({self->warp_count + taken, 0, 0, 0, 0, 0, false});
    mine.push(taken);
  }
  Unit& unit = self->units[taken];
  ++unit.time;
  unit.fiber = uint32_t(&f - self->fibers);
  unit.method = f.method;
  unit.task = f.task;
  unit.in_task = f.in_task;
  return taken;
}

void note_copy(const Copy& c, const Place& to, const Place& from) {
  if (!RACE) return;
  const Fiber& f = *self->current;
  const Stamp stamp = {who_is(self->units[c.unit].agent, 0), c.time};
  const Access reads = {stamp, f.known, false, false, "reads its source"};
  const Access writes = {stamp, f.known, true, false, "writes its target"};
  for (uint32_t i = c.first; i < c.bytes; i += c.step) {
    if (c.is_valid && from.shadow != nullptr)
      touch(reads, from.shadow, from.base, uint64_t(c.from + i - from.base), c.chunk);
    touch(writes, to.shadow, to.base, uint64_t(c.to + i - to.base), c.chunk);
  }
}

// --- issue --------------------------------------------------------------------------------------

void check_overlap(const Copy& c) {
  for (const Copy& other : self->copies) {
    if (c.to >= other.to + other.bytes || other.to >= c.to + c.bytes) continue;
    if (other.chunk != other.bytes && c.first != other.first) continue;  // lanes of one fill
    fault(COPY, "overlapping copies: %s copies to %s while a copy of %u bytes to %s is under way",
          describe(*self->current).c, describe_place(c.to).c, other.bytes,
          describe_place(other.to).c);
  }
}

void check_size(uint32_t bytes, const char* what) {
  if (bytes % COPY_BYTES != 0)
    fault(MISALIGNED, "misaligned: %s calls %s with %u bytes, which is no multiple of %u",
          describe(*self->current).c, what, bytes, COPY_BYTES);
}

// Send a copy off; `c` names its target, source and parts.
void issue(Copy c, const char* what) {
  Fiber& f = *self->current;
  check_alignment(c.to, COPY_BYTES, what);
  check_alignment(c.from, COPY_BYTES, what);
  const Place to = check_access(c.to, c.bytes, true, BY_COPY, what);
  if (to.space != SHARED)
    fault(COPY, "%s by %s: the target %s is not shared memory", what, describe(f).c,
          describe_place(c.to).c);
  Place from = {};
  if (c.is_valid) {
    from = check_access(c.from, c.bytes, false, BY_COPY, what);
    if (from.space != GLOBAL)
      fault(COPY, "%s by %s: the source %s is not global memory", what, describe(f).c,
            describe_place(c.from).c);
  }
  check_overlap(c);
  c.fiber = uint32_t(&f - self->fibers);
  c.due = self->now_ns + random_delay_ns();
  c.number = self->copies_made++;
  if (RACE) {
    ++self->units[c.unit].flying;
    c.time = self->units[c.unit].time;
  }
  note_copy(c, to, from);
  for (uint32_t i = c.first; i < c.bytes; i += c.step) memset(c.to + i, POISON, c.chunk);
  push_copy(c);
}

// A lane's cp.async: counted by the lane, in groups.
void issue_by_lane(Copy c, bool is_fill, const char* what) {
  Fiber& f = *self->current;
  if (f.unit == NONE) f.unit = take_unit(f);
  c.unit = f.unit;
  c.mbarrier = NONE;
  c.sequence = f.sequence++;
  issue(c, what);
  f.copies.push({c.sequence, f.group, c.unit, RACE ? self->units[c.unit].time : 0, is_fill, false});
  may_yield();
}

// --- landing ------------------------------------------------------------------------------------

// Make the arrivals of a lane whose copies have all landed.
void arrive_for(Fiber& f) {
  for (uint32_t i = 0; i < f.arrivals.count;) {
    const LaneArrival arrival = f.arrivals[i];
    bool is_due = true;
    for (const LaneCopy& c : f.copies) is_due &= c.has_landed || c.sequence >= arrival.sequence;
    if (!is_due) {
      ++i;
      continue;
    }
    Mbarrier& b = self->mbarriers[arrival.mbarrier];
    for (uint32_t k = f.copies.count; k-- > 0;) {
      if (f.copies[k].sequence >= arrival.sequence || !f.copies[k].is_fill) continue;
      if (RACE) learn_unit(b.coming, f.copies[k].unit, f.copies[k].time);
      f.copies.remove(k);
    }
    f.arrivals.remove_in_order(i);  // a later arrival must not take an earlier one's copies
    arrive(b, "a cp.async arrival");
  }
}

void land(const Copy& c) {
  for (uint32_t i = c.first; i < c.bytes; i += c.step) {
    if (c.is_valid) memcpy(c.to + i, c.from + i, c.chunk);
    else memset(c.to + i, 0, c.chunk);
  }
  Fiber& f = self->fibers[c.fiber];
  if (RACE) --self->units[c.unit].flying;
  if (c.mbarrier == NONE) {
    for (LaneCopy& mine : f.copies)
      if (mine.sequence == c.sequence) mine.has_landed = true;
    arrive_for(f);
    return;
  }
  Mbarrier& b = self->mbarriers[c.mbarrier];
  if (RACE) learn_unit(b.coming, c.unit, c.time);
  --f.bulk_in_flight;
  b.missing -= c.bytes;
  end_phase_if_complete(b);
}

void land_due_copies() {
  while (self->copies.count && self->copies[0].due <= self->now_ns) land(pop_copy());
}

// Whether a lane has at most `groups` of its committed groups under way.
bool has_landed(const Fiber& f, uint32_t groups, bool is_drain) {
  for (uint32_t i = 0; i < f.copies.count; ++i) {
    const LaneCopy& c = f.copies[i];
    if (!c.has_landed && (is_drain || c.group + groups < f.group)) return false;
  }
  return true;
}

void wait_for_copies(uint32_t groups, bool is_drain) {
  Fiber& f = *self->current;
  block({FOR_COPIES, groups, is_drain, nullptr, 0, nullptr, 0});
  for (uint32_t i = f.copies.count; i-- > 0;) {
    const LaneCopy c = f.copies[i];
    if (!c.has_landed || !(is_drain || c.group + groups < f.group)) continue;
    if (RACE) learn_unit(f.known, c.unit, c.time);
    f.copies.remove(i);
  }
  f.unit = NONE;
}

void check_no_copies(const Fiber& f) {
  uint32_t flying = f.bulk_in_flight;
  for (uint32_t i = 0; i < f.copies.count; ++i) flying += !f.copies[i].has_landed;
  if (flying != 0)
    fault(COPY, "exit with copies under way: %s exits and %u of its copies have not landed; wait "
          "for them (and call gpu_fill_drain) first",
          describe(f).c, flying);
}

}  // namespace

extern "C" {

void emu_fill_bulk(void* to, const void* from, uint32_t bytes, uint64_t* full) {
  Fiber& f = *self->current;
  ++f.fills;
  if (f.lane != 0) return;
  check_size(bytes, "gpu_fill");
  Mbarrier& b = use_mbarrier(full, "gpu_fill");
  b.issued += bytes;
  if (b.issued > b.expected)
    fault(MBARRIER, "expect_tx mismatch: %s fills %u bytes, %lld in this phase of %s, which was "
          "told to expect %lld",
          describe(f).c, bytes, (long long)b.issued, describe_place(full).c,
          (long long)b.expected);
  Copy c = {};
  c.to = static_cast<char*>(to);
  c.from = static_cast<const char*>(from);
  c.bytes = c.step = c.chunk = bytes;
  c.is_valid = true;
  c.unit = take_unit(f);
  c.mbarrier = uint32_t(&b - self->mbarriers.data);
  if (bytes == 0) return;
  issue(c, "gpu_fill");
  ++f.bulk_in_flight;
  may_yield();
}

void emu_fill_lanes(void* to, const void* from, uint32_t bytes) {
  Fiber& f = *self->current;
  ++f.fills;
  check_size(bytes, "gpu_fill");
  Copy c = {};
  c.to = static_cast<char*>(to);
  c.from = static_cast<const char*>(from);
  c.bytes = bytes;
  c.first = f.lane * COPY_BYTES;
  c.step = WARP * COPY_BYTES;
  c.chunk = COPY_BYTES;
  c.is_valid = true;
  if (c.first < bytes) issue_by_lane(c, true, "gpu_fill");
}

void emu_fill_arrive(uint64_t* full) {
  Fiber& f = *self->current;
  const Mbarrier& b = use_mbarrier(full, "gpu_fill_end");
  f.arrivals.push({uint32_t(&b - self->mbarriers.data), f.sequence});
  f.unit = NONE;
  arrive_for(f);
  if (self->code < 0) leave_for_good();
  may_yield();
}

void emu_fill_drain() { wait_for_copies(0, true); }

void emu_copy16(void* to, const void* from, bool is_valid) {
  Copy c = {};
  c.to = static_cast<char*>(to);
  c.from = static_cast<const char*>(from);
  c.bytes = c.step = c.chunk = COPY_BYTES;
  c.is_valid = is_valid;
  issue_by_lane(c, false, "gpu_copy16");
}

void emu_copy_commit() {
  ++self->current->group;
  self->current->unit = NONE;
}

void emu_copy_wait(uint32_t groups) { wait_for_copies(groups, false); }

void emu_prefetch(const void* from, uint32_t bytes) {
  check_alignment(from, COPY_BYTES, "gpu_prefetch_l2");
  check_size(bytes, "gpu_prefetch_l2");
  const Place place = check_access(from, bytes, false, BY_COPY, "prefetches");
  if (place.space != GLOBAL)
    fault(COPY, "gpu_prefetch_l2 by %s: %s is not global memory", describe(*self->current).c,
          describe_place(from).c);
}

}  // extern "C"
