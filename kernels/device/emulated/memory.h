// Named memory: which buffer an address is in, and whether the running thread may touch it there.

#pragma once

#include <link.h>

#include "shadow.h"

namespace {

enum Space : uint8_t { UNKNOWN, SHARED, GLOBAL, STACK, CONSTANT };

struct Place {
  Space space;
  uint32_t index;  // CTA or buffer
  char* base;
  uint64_t bytes;
  Shadow* shadow;
};

// The last buffer that begins at p or before.
Buffer* buffer_before(const char* p) {
  uint32_t low = 0, high = self->buffers.count;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (self->buffers[middle].address <= p) low = middle + 1;
    else high = middle;
  }
  return low > 0 ? &self->buffers[low - 1] : nullptr;
}

Place find_place(const void* address) {
  char* p = static_cast<char*>(const_cast<void*>(address));
  const uint64_t in_smem = uint64_t(p - self->smem_block);
  if (in_smem < self->ctas * self->smem_stride) {
    Cta& cta = self->cta[in_smem / self->smem_stride];
    if (in_smem % self->smem_stride <= self->smem_bytes)
      return {SHARED, uint32_t(&cta - self->cta), cta.smem, self->smem_bytes, cta.shadow};
  }
  const Buffer* b = buffer_before(p);
  if (b != nullptr && uint64_t(p - b->address) <= b->bytes)
    return {GLOBAL, uint32_t(b - self->buffers.data), b->address, b->bytes, b->shadow};
  if (uint64_t(p - self->stacks) < fiber_count() * self->stack_bytes)
    return {STACK, uint32_t(uint64_t(p - self->stacks) / self->stack_bytes), p, 0, nullptr};
  if (p >= self->module_begin && p < self->module_end)
    return {CONSTANT, 0, p, uint64_t(self->module_end - p), nullptr};
  return {UNKNOWN, 0, p, 0, nullptr};
}

Text describe_stray(const char* p) {
  constexpr uint64_t near_bytes = 1 << 20;
  const Buffer* b = buffer_before(p);
  const uint64_t past = b != nullptr ? uint64_t(p - b->address) - b->bytes : NEVER;
  if (past >= near_bytes) return text("address %p, in no named buffer", p);
  return text("address %p, %llu bytes past the end of '%s'", p, (unsigned long long)past, b->name);
}

Text describe_place(const void* address) {
  const Place place = find_place(address);
  const unsigned long long offset = uint64_t(static_cast<const char*>(address) - place.base);
  if (place.space == SHARED) return text("shared memory + %llu of CTA %u", offset, place.index);
  if (place.space == CONSTANT) return text("constant memory");
  if (place.space == UNKNOWN) return describe_stray(static_cast<const char*>(address));
  if (place.space == STACK) {
    const Fiber& f = self->fibers[place.index];
    return text("the local memory of CTA %u thread %u", f.cta, f.thread);
  }
  const Buffer& b = self->buffers[place.index];
  if (b.itemsize > 1 && offset % b.itemsize == 0)
    return text("'%s'[%llu]", b.name, offset / b.itemsize);
  return text("'%s' + %llu bytes", b.name, offset);
}

// --- the boxes that tasks declare ---------------------------------------------------------------

struct Interval {
  const char* begin;
  const char* end;
};

// Bytes that a task may touch, as disjoint ascending intervals once `is_merged`.
struct Intervals {
  List<Interval> list;
  uint32_t last;
  bool is_merged;
};

int compare_intervals(const void* a, const void* b) {
  const Interval* x = static_cast<const Interval*>(a);
  const Interval* y = static_cast<const Interval*>(b);
  return x->begin < y->begin ? -1 : x->begin > y->begin;
}

void merge_intervals(Intervals& set) {
  if (set.is_merged) return;
  set.is_merged = true;
  set.last = 0;
  List<Interval>& list = set.list;
  if (list.count == 0) return;
  qsort(list.data, list.count, sizeof(Interval), compare_intervals);
  uint32_t kept = 0;
  for (uint32_t i = 1; i < list.count; ++i) {
    if (list[i].begin > list[kept].end) list[++kept] = list[i];
    else if (list[i].end > list[kept].end) list[kept].end = list[i].end;
  }
  list.count = kept + 1;
}

bool contains(Intervals& set, const char* begin, const char* end) {
  List<Interval>& list = set.list;
  if (list.count == 0) return false;
  if (list[set.last].begin <= begin && end <= list[set.last].end) return true;
  uint32_t low = 0, high = list.count;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (list[middle].begin <= begin) low = middle + 1;
    else high = middle;
  }
  if (low == 0 || end > list[low - 1].end) return false;
  set.last = low - 1;
  return true;
}

// Add the bytes of a strided box; strides in elements.
void add_box(Intervals& set, const char* address, uint32_t itemsize, uint32_t dims,
             const int64_t* extents, const int64_t* strides) {
  set.is_merged = false;
  const bool is_row = dims > 0 && strides[dims - 1] == 1;
  const uint32_t outer = is_row ? dims - 1 : dims;
  const uint64_t run = itemsize * uint64_t(is_row ? extents[dims - 1] : 1);
  int64_t index[16] = {};
  for (uint32_t d = 0; d < dims; ++d)
    if (extents[d] <= 0) return;
  for (;;) {
    int64_t offset = 0;
    for (uint32_t d = 0; d < outer; ++d) offset += index[d] * strides[d];
    const char* begin = address + offset * int64_t(itemsize);
    List<Interval>& list = set.list;
    if (list.count && list.last().end == begin) list.last().end = begin + run;
    else list.push({begin, begin + run});
    uint32_t d = outer;
    while (d > 0 && ++index[d - 1] == extents[d - 1]) index[--d] = 0;
    if (d == 0) return;
  }
}

int compare_boxes(const Boxes& b, uint32_t method, uint32_t task) {
  if (b.method != method) return b.method < method ? -1 : 1;
  return b.task < task ? -1 : b.task > task;
}

// The boxes of a task; made where `is_new` asks for it.
Boxes* find_boxes(uint32_t method, uint32_t task, bool is_new) {
  uint32_t low = 0, high = self->boxes.count;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (compare_boxes(self->boxes[middle], method, task) < 0) low = middle + 1;
    else high = middle;
  }
  if (low < self->boxes.count && compare_boxes(self->boxes[low], method, task) == 0)
    return &self->boxes[low];
  if (!is_new) return nullptr;
  self->boxes.insert(low, {method, task, zeroed<Intervals>(1), zeroed<Intervals>(1)});
  return &self->boxes[low];
}

// --- may the running thread touch it? -----------------------------------------------------------

enum Manner : uint8_t { PLAIN, BY_COPY };

void check_boxes(const Fiber& f, const Buffer& b, const char* p, uint64_t bytes, bool is_write,
                 Manner manner, const char* what) {
  // A producer runs ahead of the tasks it fetches for: it may copy what nobody writes.
  if (!f.in_task && manner == BY_COPY && !b.is_writable) return;
  if (f.writes != nullptr) {
    if (contains(*f.writes, p, p + bytes)) return;
    if (!is_write && contains(*f.reads, p, p + bytes)) return;
  }
  fault(UNDECLARED, "undeclared %s: %s %s %llu bytes at %s, which is in none of the task's %s",
        is_write ? "write" : "read", describe(f).c, what, (unsigned long long)bytes,
        describe_place(p).c, is_write ? "write boxes" : "boxes");
}

// Check that `bytes` at p are memory this thread may touch in this way; say where they are.
Place check_access(const void* address, uint64_t bytes, bool is_write, Manner manner,
                   const char* what) {
  const Fiber& f = *self->current;
  const Place place = find_place(address);
  const char* p = static_cast<const char*>(address);
  const unsigned long long size = bytes;
  if (place.space == SHARED && place.index != f.cta)
    fault(BOUNDS, "out of bounds: %s %s %llu bytes at %s", describe(f).c, what, size,
          describe_place(p).c);
  if (place.space == SHARED || place.space == GLOBAL) {
    const uint64_t offset = uint64_t(p - place.base);
    if (offset + bytes > place.bytes)
      fault(BOUNDS, "out of bounds: %s %s %llu bytes at %s, which has %llu bytes", describe(f).c,
            what, size, describe_place(p).c, (unsigned long long)place.bytes);
    if (place.space == SHARED) return place;
    const Buffer& b = self->buffers[place.index];
    if (is_write && !b.is_writable)
      fault(BOUNDS, "write to read-only memory: %s %s %llu bytes at %s", describe(f).c, what, size,
            describe_place(p).c);
    if (b.has_boxes) check_boxes(f, b, p, bytes, is_write, manner, what);
    return place;
  }
  const bool is_own = place.space == STACK && &self->fibers[place.index] == &f;
  if (!is_own && !(place.space == CONSTANT && !is_write))
    fault(BOUNDS, "out of bounds: %s %s %llu bytes at %s", describe(f).c, what, size,
          describe_place(p).c);
  return place;
}

void check_alignment(const void* p, uint64_t alignment, const char* what) {
  if (uintptr_t(p) % alignment != 0)
    fault(MISALIGNED, "misaligned: %s %s at %s, which is no multiple of %llu bytes",
          describe(*self->current).c, what, describe_place(p).c, (unsigned long long)alignment);
}

// Note an access of the running thread in race mode.
inline void note_access(const Place& place, const void* p, uint64_t bytes, bool is_write,
                        bool is_atomic, const char* what) {
  if (!RACE || place.shadow == nullptr) return;
  const Fiber& f = *self->current;
  Stamp stamp = stamp_of(f);
  if (is_atomic) stamp.who |= ATOMIC;
  const Access a = {stamp, f.known, is_write, is_atomic, what};
  touch(a, place.shadow, place.base, uint64_t(static_cast<const char*>(p) - place.base), bytes);
}

void find_module(const void* inside) {
  struct Search {
    uintptr_t address;
    const char* begin;
    const char* end;
  } search = {uintptr_t(inside), nullptr, nullptr};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        Search& s = *static_cast<Search*>(data);
        uintptr_t begin = ~uintptr_t(0), end = 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          if (header.p_type != PT_LOAD) continue;
          const uintptr_t from = info->dlpi_addr + header.p_vaddr;
          begin = from < begin ? from : begin;
          end = from + header.p_memsz > end ? from + header.p_memsz : end;
        }
        if (s.address < begin || s.address >= end) return 0;
        s.begin = reinterpret_cast<const char*>(begin);
        s.end = reinterpret_cast<const char*>(end);
        return 1;
      },
      &search);
  self->module_begin = search.begin;
  self->module_end = search.end;
}

}  // namespace
