// What the lanes of a warp do together, and the barriers of a CTA.

#pragma once

#include "fibers.h"

namespace {

enum {
  IN_LDMATRIX = 100,
  IN_MMA,
  IN_GROUP_PRODUCT,
  IN_GROUP_FENCE,
  IN_GROUP_COMMIT,
  IN_GROUP_WAIT,
  IN_CTA_BARRIER,
  IN_CTA_ARRIVE,
};

const char* collective_name(uint32_t kind) {
  switch (kind) {
    case EMU_SYNC: return "gpu_sync_warp";
    case EMU_SHUFFLE: return "a shuffle";
    case EMU_BALLOT: return "gpu_ballot";
    case EMU_REDUCE: return "gpu_warp_reduce";
    case IN_LDMATRIX: return "gpu_ldmatrix";
    case IN_MMA: return "gpu_mma";
    case IN_GROUP_PRODUCT: return "gpu_wgmma";
    case IN_GROUP_FENCE: return "gpu_wgmma_fence";
    case IN_GROUP_COMMIT: return "gpu_wgmma_commit";
    case IN_GROUP_WAIT: return "gpu_wgmma_wait";
    case IN_CTA_BARRIER: return "gpu_barrier";
    default: return "gpu_barrier_arrive";
  }
}

Text describe_collective(uint32_t kind, uint32_t a, uint32_t b) {
  if (kind < IN_CTA_BARRIER) return text("%s", collective_name(kind));
  return text("%s(%u, %u)", collective_name(kind), a, b);
}

typedef void (*WarpWork)(Warp& w, uint64_t* values);

// Come to a warp's collective with a value. The last lane does `work` on all values and lets the
// others go; returns the values, which stay until the collective after the next. A lane of
// `holds` stays blocked when its warp is complete: `work` has to see to it.
uint64_t* meet(uint32_t kind, uint32_t a, uint32_t b, uint64_t value, WarpWork work,
               bool holds = false) {
  Fiber& f = *self->current;
  Warp& w = warp_of(f);
  if (w.gone != 0)
    fault(COLLECTIVE, "missing lanes: %s comes to %s, but lanes %#x of its warp have exited",
          describe(f).c, describe_collective(kind, a, b).c, w.gone);
  if (w.arrived == 0) {
    w.kind = kind;
    w.a = a;
    w.b = b;
  } else if (w.kind != kind || w.a != a || w.b != b) {
    fault(kind >= IN_CTA_BARRIER || w.kind >= IN_CTA_BARRIER ? BARRIER : COLLECTIVE,
          "missing lanes: %s comes to %s while lanes %#x of its warp wait in %s", describe(f).c,
          describe_collective(kind, a, b).c, w.arrived, describe_collective(w.kind, w.a, w.b).c);
  }
  uint64_t* values = w.values[w.turn];
  values[f.lane] = value;
  w.arrived |= 1u << f.lane;
  if (w.arrived != ~0u) {
    block({IN_WARP, kind, 0, nullptr, 0, nullptr, 0});
    return values;
  }
  w.arrived = 0;
  w.turn ^= 1;
  if (!holds)
    for (uint32_t i = 0; i < WARP; ++i)
      if (i != f.lane) make_ready(lane_of(w, i));
  if (work != nullptr) work(w, values);
  if (!holds) may_yield();
  return values;
}

void sync_warp(Warp& w, uint64_t*) {
  for (uint32_t i = 1; i < WARP; ++i)
    if (lane_of(w, i).fills != lane_of(w, 0).fills)
      fault(COLLECTIVE, "missing lanes: lane %u of CTA %u warp %u called gpu_fill %u times, lane 0 "
            "%u times; all lanes of the producer warp call it",
            i, w.cta, lane_of(w, 0).thread / WARP, lane_of(w, i).fills, lane_of(w, 0).fills);
  Clock* all = release_warp(w);
  teach_warp(w, all);
  drop(all);
}

// --- barriers of a CTA --------------------------------------------------------------------------

void open_barrier(CtaBarrier& barrier) {
  for (uint32_t index : barrier.waiting) {
    Warp& w = self->warps[index];
    teach_warp(w, barrier.clock);
    for (uint32_t i = 0; i < WARP; ++i) make_ready(lane_of(w, i));
  }
  barrier.waiting.count = barrier.came.count = 0;
  barrier.arrived = 0;
  drop(barrier.clock);
}

// A whole warp has come to a barrier.
void come_to_barrier(Warp& w, uint64_t*) {
  CtaBarrier& barrier = self->cta[w.cta].barriers[w.a];
  const uint32_t index = lane_of(w, 0).warp, number = lane_of(w, 0).thread / WARP;
  const bool waits = w.kind == IN_CTA_BARRIER;
  if (barrier.arrived == 0) barrier.threads = w.b;
  if (barrier.threads != w.b)
    fault(BARRIER, "barrier %u of CTA %u: warp %u comes with a count of %u threads, earlier warps "
          "with %u",
          w.a, w.cta, number, w.b, barrier.threads);
  for (uint32_t earlier : barrier.came)
    if (earlier == index)
      fault(BARRIER, "barrier %u of CTA %u: warp %u comes twice to one use; it has %u of %u "
            "threads",
            w.a, w.cta, number, barrier.arrived, barrier.threads);
  Clock* done = release_warp(w);
  learn(barrier.clock, done);
  drop(done);
  barrier.came.push(index);
  barrier.arrived += WARP;
  if (waits) {
    barrier.waiting.push(index);
    for (uint32_t i = 0; i < WARP; ++i) lane_of(w, i).wait.kind = IN_BARRIER;
    for (uint32_t i = 0; i < WARP; ++i) lane_of(w, i).wait.a = w.a;
    w.ready = 0;
  }
  if (barrier.arrived == barrier.threads) open_barrier(barrier);
}

// --- tensor cores -------------------------------------------------------------------------------

struct MatrixLoad {
  uint32_t* r;
  const uint16_t* row;
};
struct MatrixProduct {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};

// PTX ldmatrix: register m of lane l gets elements (l / 4, 2 (l % 4)) and the next one of matrix
// m, whose row i is at the address of lane 8 m + i; transposed, rows and columns change places.
template <bool TRANS>
void load_matrices(Warp& w, uint64_t* values) {
  const uint32_t count = w.a;
  for (uint32_t lane = 0; lane < WARP; ++lane)
    for (uint32_t m = 0; m < count; ++m) {
      uint32_t pair[2];
      for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t outer = lane / 4, inner = 2 * (lane % 4) + i;
        const uint32_t row = TRANS ? inner : outer, column = TRANS ? outer : inner;
        pair[i] = reinterpret_cast<MatrixLoad*>(values[8 * m + row])->row[column];
      }
      reinterpret_cast<MatrixLoad*>(values[lane])->r[m] = pair[0] | pair[1] << 16;
    }
}

float element(uint32_t pair, uint32_t half, bool is_bf16) {
  const uint16_t bits = uint16_t(pair >> (16 * half));
  return is_bf16 ? gpu_bf16_to_float(bits) : gpu_fp16_to_float(bits);
}

// PTX mma.m16n8k16.row.col: with g = lane / 4 and t = lane % 4, register i of A holds row
// g + 8 (i % 2) and columns 2 t + 8 (i / 2) and the next one; register i of B holds rows 2 t + 8 i
// and the next one of column g; c[i] is in row g + 8 (i / 2), column 2 t + i % 2.
void multiply_matrices(Warp& w, uint64_t* values) {
  const bool is_bf16 = w.a;
  float a[16][16], b[16][8];
  for (uint32_t lane = 0; lane < WARP; ++lane) {
    const MatrixProduct& p = *reinterpret_cast<MatrixProduct*>(values[lane]);
    const uint32_t g = lane / 4, t = lane % 4;
    for (uint32_t i = 0; i < 4; ++i)
      for (uint32_t half = 0; half < 2; ++half)
        a[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + half] = element(p.a[i], half, is_bf16);
    for (uint32_t i = 0; i < 2; ++i)
      for (uint32_t half = 0; half < 2; ++half)
        b[2 * t + 8 * i + half][g] = element(p.b[i], half, is_bf16);
  }
  for (uint32_t lane = 0; lane < WARP; ++lane) {
    float* c = reinterpret_cast<MatrixProduct*>(values[lane])->c;
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      double sum = c[i];  // products are exact; one rounding at the end
      for (uint32_t k = 0; k < 16; ++k) sum += double(a[row][k]) * b[k][column];
      c[i] = float(sum);
    }
  }
}

}  // namespace

extern "C" {

void emu_sync_warp() { meet(EMU_SYNC, 0, 0, 0, sync_warp); }

uint64_t emu_shuffle(uint64_t bits, uint32_t lane, uint32_t kind) {
  if (lane >= WARP)
    fault(COLLECTIVE, "%s: %s asks for lane %u; a warp has 32", collective_name(kind),
          describe(*self->current).c, lane);
  const uint64_t* values = meet(kind, 0, 0, bits, nullptr);
  if (kind != EMU_BALLOT) return values[lane];
  uint64_t mask = 0;
  for (uint32_t i = 0; i < WARP; ++i) mask |= values[i] << i;
  return mask;
}

void emu_all_lanes(uint64_t bits, uint64_t* all, uint32_t kind) {
  const uint64_t* values = meet(kind, 0, 0, bits, nullptr);
  memcpy(all, values, WARP * sizeof(uint64_t));
}

void emu_barrier(int id, int threads, bool waits) {
  const Fiber& f = *self->current;
  const bool is_count = threads > 0 && threads % int(WARP) == 0 && threads <= int(self->threads);
  if (id < 0 || id >= int(BARRIERS) || !is_count)
    fault(BARRIER, "barrier(%d, %d) by %s: ids are 0 to 15, counts multiples of 32 up to the CTA's "
          "%u threads",
          id, threads, describe(f).c, self->threads);
  const uint32_t kind = waits ? IN_CTA_BARRIER : IN_CTA_ARRIVE;
  meet(kind, uint32_t(id), uint32_t(threads), 0, come_to_barrier, waits);
  // The last lane of the last warp finds itself ready; all others have been blocked.
  if (f.wait.kind == IN_BARRIER) switch_to_scheduler();
}

void emu_ldmatrix(uint32_t* r, const void* row, uint32_t count, bool trans) {
  constexpr uint32_t row_bytes = 16;
  const Fiber& f = *self->current;
  if (f.lane < 8 * count) {
    check_alignment(row, row_bytes, "gpu_ldmatrix");
    const Place place = check_access(row, row_bytes, false, PLAIN, "loads a matrix row of");
    if (place.space != SHARED)
      fault(BOUNDS, "gpu_ldmatrix by %s: %s is not shared memory", describe(f).c,
            describe_place(row).c);
    note_access(place, row, row_bytes, false, false, "loads a matrix row");
  }
  MatrixLoad load = {r, static_cast<const uint16_t*>(row)};
  WarpWork work = trans ? load_matrices<true> : load_matrices<false>;
  meet(IN_LDMATRIX, count, trans, reinterpret_cast<uint64_t>(&load), work);
}

void emu_mma(float* c, const uint32_t* a, const uint32_t* b, bool is_bf16) {
  MatrixProduct product = {c, a, b};
  meet(IN_MMA, is_bf16, 0, reinterpret_cast<uint64_t>(&product), multiply_matrices);
}

}  // extern "C"
