// Race mode: who wrote and who read each piece of memory last, and whether the next one may.

#pragma once

#include "clocks.h"

namespace {

// Lanes of one warp that read at one time.
struct Readers {
  uint32_t agent, time, lanes;
  bool is_atomic;
};

// Four aligned bytes. `write.who` SPLIT: the bytes differ, write.time says which block of four
// cells has them. `read.who` MANY: read.time says which list of readers.
struct Cell {
  Stamp write, read;
};
constexpr uint32_t SPLIT = 0x7fffffff, MANY = 0x7ffffffe;
constexpr uint32_t CELL_BYTES = 4;

struct Shadow {
  Cell* cells;
};

struct FourCells {
  Cell cell[CELL_BYTES];
};

struct Pools {
  List<FourCells> splits;
  List<uint32_t> free_splits;
  List<List<Readers>> readers;
  List<uint32_t> free_readers;
};
inline Pools& pools() { return *self->pools; }

Shadow* make_shadow(uint64_t bytes) {
  Shadow* s = zeroed<Shadow>(1);
  s->cells = zeroed<Cell>(bytes / CELL_BYTES + 1);
  return s;
}
void free_shadow(Shadow*& s) {
  if (s != nullptr) free(s->cells);
  free(s);
  s = nullptr;
}
void free_pools() {
  if (self->pools == nullptr) return;
  for (List<Readers>& r : pools().readers) r.release();
  pools().splits.release();
  pools().free_splits.release();
  pools().readers.release();
  pools().free_readers.release();
  free(self->pools);
}

// One access, by a lane or by a copy that a lane issued.
struct Access {
  Stamp stamp;
  const Clock* known;
  bool is_write, is_atomic;
  const char* what;
};

// What a warp's or unit's lane was doing at a time.
Text describe_stamp(Stamp s) {
  const uint32_t agent = agent_of(s.who), lane = lane_of_who(s.who);
  if (agent >= self->warp_count) {
    const Unit& unit = self->units[agent - self->warp_count];
    const Fiber& f = self->fibers[unit.fiber];
    return text("an asynchronous copy issued by CTA %u warp %u lane %u %s", f.cta,
                f.thread / WARP, f.lane, describe_task(unit.in_task, unit.method, unit.task).c);
  }
  Fiber& f = lane_of(self->warps[agent], lane);
  TaskNote note = {0, 0, NONE};
  for (const TaskNote& each : f.notes)
    if (each.time <= s.time) note = each;
  return text("CTA %u warp %u lane %u (thread %u) %s", f.cta, f.thread / WARP, f.lane, f.thread,
              describe_task(note.task != NONE, note.method, note.task).c);
}

[[noreturn]] void report_race(const Access& a, const char* at, Stamp other, bool other_writes) {
  const bool is_copy = agent_of(a.stamp.who) >= self->warp_count;
  fault(RACING, "race at %s:\n  %s%s %s\n  unordered with an earlier %s%s by %s",
        describe_place(at).c, is_copy ? "an asynchronous copy issued by " : "",
        describe(*self->current).c, a.what, other.who & ATOMIC ? "atomic " : "",
        other_writes ? "write" : "read", describe_stamp(other).c);
}

inline bool may_follow(const Access& a, Stamp before) {
  if (before.who == 0 || ((before.who ^ a.stamp.who) & ~ATOMIC) == 0) return true;
  return (a.is_atomic && (before.who & ATOMIC)) || knows(a.known, before);
}

void check_readers(const Access& a, const char* at, const List<Readers>& list) {
  for (uint32_t i = 0; i < list.count; ++i) {
    const Readers& r = list[i];
    if (time_of(a.known, r.agent) >= r.time) continue;
    for (uint32_t lane = 0; lane < WARP; ++lane) {
      const Stamp s = {who_is(r.agent, lane) | (r.is_atomic ? ATOMIC : 0), r.time};
      if ((r.lanes >> lane & 1) && !may_follow(a, s)) report_race(a, at, s, false);
    }
  }
}

void add_reader(List<Readers>& list, Stamp s) {
  const bool is_atomic = (s.who & ATOMIC) != 0;
  const uint32_t agent = agent_of(s.who), lane = 1u << lane_of_who(s.who);
  for (Readers& r : list)
    if (r.agent == agent && r.time == s.time && r.is_atomic == is_atomic) {
      r.lanes |= lane;
      return;
    }
  list.push({agent, s.time, lane, is_atomic});
}

uint32_t take_readers() {
  if (pools().free_readers.count) return pools().free_readers[--pools().free_readers.count];
  pools().readers.push({});
  return pools().readers.count - 1;
}
inline void forget_readers(Cell& c) {
  if (c.read.who == MANY) {
    pools().readers[c.read.time].count = 0;
    pools().free_readers.push(c.read.time);
  }
  c.read = {0, 0};
}

// Whether a read makes an earlier one redundant: whoever is ordered after it is after both.
inline bool replaces(const Access& a, Stamp before) {
  if (before.who == 0) return true;
  if (a.is_atomic && !(before.who & ATOMIC)) return false;
  return ((before.who ^ a.stamp.who) & ~ATOMIC) == 0 || knows(a.known, before);
}

void note_read(const Access& a, Cell& c) {
  if (c.read.who == MANY) {
    List<Readers>& list = pools().readers[c.read.time];
    // Those that all of us come after are dropped.
    for (uint32_t i = list.count; i-- > 0;)
      if (time_of(a.known, list[i].agent) >= list[i].time && (!a.is_atomic || list[i].is_atomic))
        list.remove(i);
    add_reader(list, a.stamp);
  } else if (replaces(a, c.read)) {
    c.read = a.stamp;
  } else {
    const uint32_t many = take_readers();
    add_reader(pools().readers[many], c.read);
    add_reader(pools().readers[many], a.stamp);
    c.read = {MANY, many};
  }
}

void touch_cell(const Access& a, Cell& c, const char* at) {
  if (!may_follow(a, c.write)) report_race(a, at, c.write, true);
  if (!a.is_write) return note_read(a, c);
  if (c.read.who == MANY) check_readers(a, at, pools().readers[c.read.time]);
  else if (!may_follow(a, c.read)) report_race(a, at, c.read, false);
  forget_readers(c);
  c.write = a.stamp;
}

void split_cell(Cell& c) {
  uint32_t at;
  if (pools().free_splits.count) {
    at = pools().free_splits[--pools().free_splits.count];
  } else {
    pools().splits.push({});
    at = pools().splits.count - 1;
  }
  for (uint32_t i = 0; i < CELL_BYTES; ++i) {
    Cell& part = pools().splits[at].cell[i];
    part = c;
    if (c.read.who != MANY) continue;
    const uint32_t many = take_readers();
    const List<Readers> all = pools().readers[c.read.time];
    for (uint32_t k = 0; k < all.count; ++k) pools().readers[many].push(all[k]);
    part.read = {MANY, many};
  }
  forget_readers(c);
  c.write = {SPLIT, at};
}

void merge_cell(Cell& c) {
  const uint32_t at = c.write.time;
  for (uint32_t i = 0; i < CELL_BYTES; ++i) forget_readers(pools().splits[at].cell[i]);
  const Cell first = pools().splits[at].cell[0];
  pools().free_splits.push(at);
  c = first;
}

// Bytes [begin, end) of one cell, which lies at `at`.
void touch_part(const Access& a, Cell& c, char* at, uint32_t begin, uint32_t end) {
  const bool is_whole = end - begin == CELL_BYTES;
  if (c.write.who != SPLIT) {
    if (is_whole) return touch_cell(a, c, at);
    split_cell(c);
  }
  for (uint32_t i = begin; i < end; ++i)
    touch_cell(a, pools().splits[c.write.time].cell[i], at + i);
  if (is_whole && a.is_write) merge_cell(c);
}

// Check and note an access to `bytes` at `offset` of memory that begins at `base`.
void touch(const Access& a, Shadow* shadow, char* base, uint64_t offset, uint64_t bytes) {
  const uint64_t end = offset + bytes;
  while (offset < end) {
    const uint64_t cell = offset / CELL_BYTES, start = cell * CELL_BYTES;
    const uint64_t stop = end < start + CELL_BYTES ? end : start + CELL_BYTES;
    touch_part(a, shadow->cells[cell], base + start, uint32_t(offset - start),
               uint32_t(stop - start));
    offset = stop;
  }
}

}  // namespace
