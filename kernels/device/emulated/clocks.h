// Vector clocks of race mode: what is known to have happened before.
//
// Agents are warps and units (asynchronous copies). A warp's time grows when it synchronizes and
// when a lane releases; an access is stamped with its lane and that lane's time. A clock knows,
// per agent, a time up to which it knows all lanes, and beside that single lanes further on.
// Clocks never change once made, so lanes share them; outside race mode all of this is empty.

#pragma once

#include "fault.h"

namespace {

// An agent's lane at a time; agent and lane in one number, 0 is nobody.
struct Stamp {
  uint32_t who, time;
};
constexpr uint32_t ATOMIC = 0x80000000;  // bit of Stamp::who: by an atomic instruction

inline uint32_t who_is(uint32_t agent, uint32_t lane) { return agent * WARP + lane + 1; }
inline uint32_t agent_of(uint32_t who) { return ((who & ~ATOMIC) - 1) / WARP; }
inline uint32_t lane_of_who(uint32_t who) { return ((who & ~ATOMIC) - 1) % WARP; }

struct Clock {
  uint32_t holders, agents, stamps;
  uint32_t* time;  // per agent
  Stamp* stamp;    // sorted by who; each later than its agent's time
};

Clock* make_clock(uint32_t agents, uint32_t stamps) {
  const uint64_t bytes = sizeof(Clock) + agents * sizeof(uint32_t) + stamps * sizeof(Stamp);
  Clock* c = static_cast<Clock*>(malloc(bytes));
  if (c == nullptr) abort();
  c->holders = 1;
  c->agents = agents;
  c->stamps = stamps;
  c->stamp = reinterpret_cast<Stamp*>(c + 1);
  c->time = reinterpret_cast<uint32_t*>(c->stamp + stamps);
  return c;
}

inline Clock* hold(Clock* c) {
  if (c != nullptr) ++c->holders;
  return c;
}
inline void drop(Clock*& c) {
  if (c != nullptr && --c->holders == 0) free(c);
  c = nullptr;
}
// Put `value` into `place`, taking over its holder.
inline void put(Clock*& place, Clock* value) {
  drop(place);
  place = value;
}

inline uint32_t time_of(const Clock* c, uint32_t agent) {
  return c != nullptr && agent < c->agents ? c->time[agent] : 0;
}
uint32_t stamp_of(const Clock* c, uint32_t who) {
  if (c == nullptr) return 0;
  uint32_t low = 0, high = c->stamps;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (c->stamp[middle].who < who) low = middle + 1;
    else high = middle;
  }
  return low < c->stamps && c->stamp[low].who == who ? c->stamp[low].time : 0;
}
inline bool knows(const Clock* c, Stamp s) {
  const uint32_t who = s.who & ~ATOMIC;
  return time_of(c, agent_of(who)) >= s.time || stamp_of(c, who) >= s.time;
}

bool covers(const Clock* a, const Clock* b) {
  for (uint32_t i = 0; i < b->agents; ++i)
    if (b->time[i] > time_of(a, i)) return false;
  for (uint32_t i = 0; i < b->stamps; ++i)
    if (!knows(a, b->stamp[i])) return false;
  return true;
}

// Append a stamp unless the clock's agents know it already.
inline void add_stamp(Clock* c, Stamp s) {
  if (time_of(c, agent_of(s.who)) < s.time) c->stamp[c->stamps++] = s;
}

// The least clock that knows what either knows; the caller holds it.
Clock* join(Clock* a, Clock* b) {
  if (b == nullptr || a == b) return hold(a);
  if (a == nullptr || covers(b, a)) return hold(b);
  if (covers(a, b)) return hold(a);
  const uint32_t agents = a->agents > b->agents ? a->agents : b->agents;
  Clock* c = make_clock(agents, a->stamps + b->stamps);
  for (uint32_t i = 0; i < agents; ++i) {
    const uint32_t x = time_of(a, i), y = time_of(b, i);
    c->time[i] = x > y ? x : y;
  }
  c->stamps = 0;
  for (uint32_t i = 0, k = 0; i < a->stamps || k < b->stamps;) {
    if (k == b->stamps || (i < a->stamps && a->stamp[i].who < b->stamp[k].who)) {
      add_stamp(c, a->stamp[i++]);
    } else if (i == a->stamps || b->stamp[k].who < a->stamp[i].who) {
      add_stamp(c, b->stamp[k++]);
    } else {
      add_stamp(c, a->stamp[i].time > b->stamp[k].time ? a->stamp[i] : b->stamp[k]);
      ++i, ++k;
    }
  }
  return c;
}
inline void learn(Clock*& mine, Clock* other) {
  if (other != nullptr && mine != other) put(mine, join(mine, other));
}

// A clock that knows `c` and all lanes of an agent up to a time.
Clock* with_agent(Clock* c, uint32_t agent, uint32_t time) {
  const uint32_t known = c != nullptr ? c->agents : 0;
  const uint32_t agents = agent < known ? known : agent + 1;
  const uint32_t stamps = c != nullptr ? c->stamps : 0;
  Clock* made = make_clock(agents, stamps);
  for (uint32_t i = 0; i < agents; ++i) made->time[i] = time_of(c, i);
  if (made->time[agent] < time) made->time[agent] = time;
  made->stamps = 0;
  for (uint32_t i = 0; i < stamps; ++i) add_stamp(made, c->stamp[i]);
  return made;
}

// A clock that knows `c` and one lane up to a time.
Clock* with_lane(Clock* c, Stamp s) {
  Clock* lane = make_clock(0, 1);
  lane->stamp[0] = s;
  Clock* made = join(c, lane);
  drop(lane);
  return made;
}

// --- what fibers do with them -------------------------------------------------------------------

inline Stamp stamp_of(const Fiber& f) { return {who_is(f.warp, f.lane), f.time}; }

// What a lane has done so far, for others to learn; the caller holds it.
Clock* release(Fiber& f) {
  if (!RACE) return nullptr;
  Clock* c = with_lane(f.known, stamp_of(f));
  f.time = ++warp_of(f).time;
  return c;
}

// What all lanes of a warp have done so far; the caller holds it.
Clock* release_warp(Warp& w) {
  if (!RACE) return nullptr;
  Clock* all = hold(lane_of(w, 0).known);
  for (uint32_t i = 1; i < WARP; ++i) learn(all, lane_of(w, i).known);
  Clock* c = with_agent(all, lane_of(w, 0).warp, w.time);
  drop(all);
  ++w.time;
  for (uint32_t i = 0; i < WARP; ++i) lane_of(w, i).time = w.time;
  return c;
}

void teach_warp(Warp& w, Clock* c) {
  if (!RACE) return;
  for (uint32_t i = 0; i < WARP; ++i) learn(lane_of(w, i).known, c);
}

inline void learn_unit(Clock*& mine, uint32_t unit, uint32_t time) {
  const uint32_t agent = self->units[unit].agent;
  if (RACE && time_of(mine, agent) < time) put(mine, with_agent(mine, agent, time));
}

// The clock of a word that threads meet at.
Clock*& clock_of_word(const void* address);

void grow_words() {
  List<Word> old = self->words;
  self->word_count = 0;
  const uint32_t size = old.count ? 2 * old.count : 256;
  self->words = {zeroed<Word>(size), size, size};
  for (Word& w : old)
    if (w.address != nullptr) clock_of_word(w.address) = w.clock;
  old.release();
}

Clock*& clock_of_word(const void* address) {
  if (2 * (self->word_count + 1) > self->words.count) grow_words();
  const uint32_t mask = self->words.count - 1;
  uint32_t i = uint32_t((uintptr_t(address) >> 2) * 0x9e3779b1u) & mask;
  while (self->words[i].address != nullptr && self->words[i].address != address) i = (i + 1) & mask;
  if (self->words[i].address == nullptr) {
    self->words[i].address = address;
    ++self->word_count;
  }
  return self->words[i].clock;
}

}  // namespace
