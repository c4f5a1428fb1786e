// What an emulation consists of: CTAs, warps, fibers, barriers, copies, named memory.

#pragma once

#include "ark_gpu.h"
#include "list.h"

// 1: every access is checked, for races too; the program is compiled with hooks then.
#ifndef EMU_RACE
#define EMU_RACE 0
#endif

namespace {

constexpr bool RACE = EMU_RACE;
constexpr uint32_t WARP = 32;
constexpr uint32_t BARRIERS = 16;  // of a CTA, as PTX has it
constexpr uint32_t NONE = 0xffffffff;
constexpr uint64_t NEVER = ~uint64_t(0);

enum FaultCode : int {
  IDLE = 0,
  EXITED = 1,
  DEADLOCK = -1,
  STEP_LIMIT = -2,
  MISALIGNED = -3,
  RACING = -4,
  BOUNDS = -5,
  UNDECLARED = -6,
  BARRIER = -7,
  MBARRIER = -8,
  COPY = -9,
  COLLECTIVE = -10,
  CRASH = -11,
};

struct Clock;      // clocks.h
struct Shadow;     // shadow.h
struct Pools;      // shadow.h
struct Intervals;  // memory.h

enum WaitKind : uint8_t {
  READY,
  GONE,        // the fiber has returned from the kernel
  IN_WARP,     // a warp's collective
  IN_BARRIER,  // a barrier of the CTA
  // The rest are looked at again and again.
  FOR_TIME,
  FOR_WORD,
  FOR_HOST,
  FOR_MBARRIER,
  FOR_COPIES,
};

struct Wait {
  WaitKind kind;
  uint32_t a;  // collective, barrier or parity; groups that may be under way
  uint64_t until;
  const uint64_t* word;  // counter or mbarrier
  int64_t want;
  const uint32_t* quit;
  int outcome;
};

// A cp.async of a lane that is under way or has landed.
struct LaneCopy {
  uint32_t sequence, group, unit, time;
  bool is_fill, has_landed;
};

// An arrival that follows the copies issued before it.
struct LaneArrival {
  uint32_t mbarrier, sequence;
};

struct TaskNote {
  uint32_t time, method, task;
};

struct Boxes {
  uint32_t method, task;
  Intervals* reads;
  Intervals* writes;
};

struct Fiber {
  void* sp;
  char* stack;
  uint32_t cta, warp, thread, lane;  // warp counts over all CTAs
  Wait wait;
  uint32_t method, task;
  Intervals* reads;
  Intervals* writes;
  bool in_task;
  uint32_t fills;
  // Copies.
  List<LaneCopy> copies;
  List<LaneArrival> arrivals;
  uint32_t sequence, group, bulk_in_flight, unit;
  // Race mode.
  Clock* known;
  Clock* fenced;  // what a fence released, for relaxed stores after it
  Clock* loaded;  // what relaxed loads saw, for a fence after them
  uint32_t time;
  List<TaskNote> notes;
};

// Of a warp group, and so of its warps: rows of what two descriptors say.
struct GroupProduct {
  uint64_t a, b;
  uint32_t columns, group;  // how often was committed before
  bool is_bf16, is_done;
};

struct Warp {
  uint32_t cta, first;   // fiber
  uint32_t ready;        // lanes that can run
  uint32_t polling;      // lanes whose wait has to be looked at
  uint32_t gone;         // lanes that have returned
  uint32_t arrived;      // lanes in the collective under way
  uint32_t kind, a, b;   // which collective that is, and its arguments
  uint32_t turn;         // which half of `values` it fills
  uint64_t values[2][WARP];
  uint64_t sleeps_until;
  uint32_t time;
  // Products of its group that are not waited for.
  List<GroupProduct> products;
  List<float> sums;  // while there are any: of all lanes
  float* targets[WARP];
  uint32_t group;
  bool is_fenced;
};

struct CtaBarrier {
  uint32_t threads, arrived;
  List<uint32_t> waiting;  // warps
  List<uint32_t> came;     // warps
  Clock* clock;
};

struct Mbarrier {
  uint64_t* word;
  uint32_t cta, count, pending, phase;
  int64_t expected, issued, missing;  // bytes of this phase
  bool is_fenced;
  uint32_t initializer;
  Clock* coming;
  Clock* complete;
};

struct Cta {
  char* smem;
  uint32_t live;
  CtaBarrier barriers[BARRIERS];
  List<uint32_t> units;  // race mode: agents that its copies are
  Shadow* shadow;
};

struct Copy {
  uint64_t due, number;
  char* to;
  const char* from;
  uint32_t bytes, first, step, chunk;
  uint32_t fiber, mbarrier, sequence, unit, time;
  bool is_valid;
};

struct Buffer {
  char name[64];
  char* address;
  uint64_t bytes;
  bool is_writable, has_boxes;
  uint32_t itemsize;
  Shadow* shadow;
};

// An agent of race mode that is no warp: copies, one after the other.
struct Unit {
  uint32_t agent, time, flying, fiber, method, task;
  bool in_task;
};

struct Word {
  const void* address;
  Clock* clock;
};

}  // namespace

struct emu {
  void (*kernel)();
  uint32_t ctas, threads, flags;
  uint64_t smem_bytes, seed, random;
  uint64_t now_ns, steps, step_limit, digest, copies_made;
  int code;
  List<char> text;
  void* scheduler;
  Fiber* current;
  Fiber* fibers;
  Warp* warps;
  Cta* cta;
  uint32_t warp_count, live;
  char* stacks;
  uint64_t stack_bytes;
  char* smem_block;
  uint64_t smem_stride;
  const char* module_begin;
  const char* module_end;
  List<Mbarrier> mbarriers;
  List<Copy> copies;
  List<Buffer> buffers;
  List<Boxes> boxes;
  List<Word> words;  // race mode: a hash table
  uint32_t word_count;
  Clock* to_host;    // what was released to words that the host may read
  Clock* from_host;  // what of it the host had seen when it last resumed
  List<Unit> units;
  Pools* pools;
  bool is_started, is_sorted;
};

namespace {

emu* self = nullptr;  // the emulation that runs

inline uint32_t fiber_count() { return self->ctas * self->threads; }
inline Warp& warp_of(const Fiber& f) { return self->warps[f.warp]; }
inline Fiber& lane_of(const Warp& w, uint32_t lane) { return self->fibers[w.first + lane]; }
inline Cta& cta_of(const Fiber& f) { return self->cta[f.cta]; }

// splitmix64
inline uint64_t random_bits() {
  uint64_t x = self->random += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
inline uint64_t random_below(uint64_t n) { return random_bits() % n; }
inline bool one_in(uint32_t n) { return random_below(n) == 0; }

}  // namespace
