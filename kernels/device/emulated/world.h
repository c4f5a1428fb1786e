// The making and the end of an emulated GPU: CTAs, stacks, shared memory.

#pragma once

#include <sys/mman.h>

#include "hooks.h"

namespace {

constexpr uint64_t STACK_BYTES = 128 << 10;  // addresses only: pages come when touched
constexpr uint64_t GUARD_BYTES = 16 << 10;   // at the low end
constexpr uint64_t SMEM_ALIGNMENT = 1024;

char* map_memory(uint64_t bytes) {
  constexpr int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, how, -1, 0);
  if (p == MAP_FAILED) abort();
  return static_cast<char*>(p);
}

void end_fiber() {
  Fiber& f = *self->current;
  Warp& w = warp_of(f);
  check_no_copies(f);
  if (w.products.count != 0)
    fault(COLLECTIVE, "%s exits and products of its warp group are under way", describe(f).c);
  if (w.arrived != 0)
    fault(w.kind >= IN_CTA_BARRIER ? BARRIER : COLLECTIVE,
          "missing lanes: %s exits while lanes %#x of its warp wait in %s", describe(f).c,
          w.arrived, describe_collective(w.kind, w.a, w.b).c);
  f.wait.kind = GONE;
  w.ready &= ~(1u << f.lane);
  w.gone |= 1u << f.lane;
  --cta_of(f).live;
  --self->live;
}

void fiber_main() {
  self->kernel();
  end_fiber();
  for (;;) switch_to_scheduler();
}

void make_fiber(Fiber& f, uint32_t index) {
  f = {};
  f.cta = index / self->threads;
  f.thread = index % self->threads;
  f.lane = index % WARP;
  f.warp = index / WARP;
  f.unit = NONE;
  f.time = 1;
  f.stack = self->stacks + index * self->stack_bytes;
  // Where the kernel allows no more mappings, stacks go without a guard.
  mprotect(f.stack, GUARD_BYTES, PROT_NONE);
  // Tops at different places of a page, or all fibers share the same few lines of the cache.
  constexpr uint32_t step_bytes = 192, span_bytes = 4096;
  const uint64_t top = self->stack_bytes - 64 - index * step_bytes % span_bytes;
  f.sp = first_frame(f.stack + top, fiber_main);
}

void make_world() {
  const uint32_t fibers = fiber_count();
  self->stack_bytes = STACK_BYTES;
  self->stacks = map_memory(fibers * self->stack_bytes);
  self->smem_stride = (self->smem_bytes / SMEM_ALIGNMENT + 2) * SMEM_ALIGNMENT;
  self->smem_block = map_memory(self->ctas * self->smem_stride);
  self->fibers = zeroed<Fiber>(fibers);
  self->cta = zeroed<Cta>(self->ctas);
  self->warp_count = fibers / WARP;
  self->warps = zeroed<Warp>(self->warp_count);
  self->live = fibers;
  self->pools = zeroed<Pools>(1);
  for (uint32_t i = 0; i < fibers; ++i) make_fiber(self->fibers[i], i);
  for (uint32_t i = 0; i < self->warp_count; ++i) {
    Warp& w = self->warps[i];
    w.cta = i * WARP / self->threads;
    w.first = i * WARP;
    w.ready = ~0u;
    w.time = 1;
  }
  for (uint32_t i = 0; i < self->ctas; ++i) {
    Cta& cta = self->cta[i];
    // Page-aligned blocks a multiple of 1024 apart: every CTA's is aligned as on a GPU.
    cta.smem = self->smem_block + i * self->smem_stride;
    memset(cta.smem, POISON, self->smem_bytes);
    cta.live = self->threads;
    if (RACE) cta.shadow = make_shadow(self->smem_bytes);
  }
}

int compare_buffers(const void* a, const void* b) {
  const Buffer* x = static_cast<const Buffer*>(a);
  const Buffer* y = static_cast<const Buffer*>(b);
  return x->address < y->address ? -1 : x->address > y->address;
}

// Complete what was declared, before the kernel goes on.
void settle_declarations() {
  if (self->is_sorted) return;
  self->is_sorted = true;
  List<Buffer>& buffers = self->buffers;
  if (buffers.count) qsort(buffers.data, buffers.count, sizeof(Buffer), compare_buffers);
  for (uint32_t i = 1; i < buffers.count; ++i)
    if (buffers[i - 1].address + buffers[i - 1].bytes > buffers[i].address)
      note_fault(BOUNDS, "buffers '%s' and '%s' overlap", buffers[i - 1].name, buffers[i].name);
  for (Buffer& b : buffers)
    if (RACE && b.shadow == nullptr) b.shadow = make_shadow(b.bytes);
  for (Boxes& box : self->boxes) {
    Intervals* sets[] = {box.reads, box.writes};
    for (Intervals* set : sets) {
      merge_intervals(*set);
      for (const Interval& part : set->list) {
        const Place place = find_place(part.begin);
        if (place.space == GLOBAL) buffers[place.index].has_boxes = true;
      }
    }
  }
}

void free_fiber(Fiber& f) {
  f.copies.release();
  f.arrivals.release();
  f.notes.release();
  drop(f.known);
  drop(f.fenced);
  drop(f.loaded);
}

void free_world() {
  for (uint32_t i = 0; i < fiber_count(); ++i) free_fiber(self->fibers[i]);
  for (uint32_t i = 0; i < self->warp_count; ++i) {
    self->warps[i].products.release();
    self->warps[i].sums.release();
  }
  for (uint32_t i = 0; i < self->ctas; ++i) {
    for (CtaBarrier& barrier : self->cta[i].barriers) {
      barrier.waiting.release();
      barrier.came.release();
      drop(barrier.clock);
    }
    self->cta[i].units.release();
    free_shadow(self->cta[i].shadow);
  }
  for (Mbarrier& b : self->mbarriers) {
    drop(b.coming);
    drop(b.complete);
  }
  for (Buffer& b : self->buffers) free_shadow(b.shadow);
  for (Boxes& box : self->boxes) {
    Intervals* sets[] = {box.reads, box.writes};
    for (Intervals* set : sets) {
      set->list.release();
      free(set);
    }
  }
  for (Word& w : self->words) drop(w.clock);
  drop(self->to_host);
  drop(self->from_host);
  free_pools();
  self->mbarriers.release();
  self->copies.release();
  self->buffers.release();
  self->boxes.release();
  self->words.release();
  self->units.release();
  self->text.release();
  munmap(self->stacks, fiber_count() * self->stack_bytes);
  munmap(self->smem_block, self->ctas * self->smem_stride);
  free(self->fibers);
  free(self->cta);
  free(self->warps);
}

}  // namespace
