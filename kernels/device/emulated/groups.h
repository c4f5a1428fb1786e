// Products of warp groups (PTX wgmma): operands lie in shared memory, and are read some time
// between the product and the wait for it. Until then the sums are poisoned.
//
// Each warp of a group does the 16 rows of the product that are its own.

#pragma once

#include "copies.h"
#include "warps.h"

namespace {

constexpr uint32_t GROUP_WARPS = 4, GROUP_DEPTH = 16, MOST_GROUP_COLUMNS = 128;
// Shared memory begins behind what the system keeps for itself.
constexpr uint32_t SHARED_BASE = 1024;

struct GroupStep {
  float* c;
  uint64_t a, b;
};

// Where elements k .. k + 7 of an operand's row are: rows of 128 bytes, 8 of them to the stride,
// and bits 4 to 6 of an address are changed by bits 7 to 9.
const char* group_chunk(const Warp& w, uint64_t operand, uint32_t row, uint32_t k) {
  const uint32_t start = (operand & 0x3fff) * 16, stride = (operand >> 32 & 0x3fff) * 16;
  uint32_t address = start + row / 8 * stride + row % 8 * 128 + k * 2;
  address ^= (address >> 7 & 7) << 4;
  return self->cta[w.cta].smem + (address - SHARED_BASE);
}

void check_group_operand(const Warp& w, uint64_t operand) {
  const uint32_t swizzle = uint32_t(operand >> 62), base = uint32_t(operand >> 49) & 7;
  if (swizzle != 1 || base != 0 || (operand & 0x3fff) < SHARED_BASE / 16)
    fault(COLLECTIVE, "warp %u of CTA %u multiplies what %#llx describes: not rows of 128 bytes, "
          "swizzled, from a multiple of 1024",
          lane_of(w, 0).thread / WARP, w.cta, (unsigned long long)operand);
}

// A product reads its operands: what wrote them came before, what writes next comes after.
void note_group_reads(const Warp& w, const GroupProduct& p) {
  if (!RACE) return;
  const uint32_t first = lane_of(w, 0).thread / WARP % GROUP_WARPS * 16;
  for (uint32_t k = 0; k < GROUP_DEPTH; k += 8) {
    for (uint32_t row = 0; row < 16 + p.columns; ++row) {
      const bool is_a = row < 16;
      const char* at = group_chunk(w, is_a ? p.a : p.b, is_a ? first + row : row - 16, k);
      const Place place = check_access(at, 16, false, PLAIN, "multiplies");
      note_access(place, at, 16, false, false, "multiplies");
    }
  }
}

void multiply_group(Warp& w, GroupProduct& p) {
  p.is_done = true;
  const uint32_t first = lane_of(w, 0).thread / WARP % GROUP_WARPS * 16;
  float a[16][GROUP_DEPTH], b[MOST_GROUP_COLUMNS][GROUP_DEPTH];
  const auto read = [&](float (&to)[GROUP_DEPTH], uint64_t operand, uint32_t row) {
    for (uint32_t k = 0; k < GROUP_DEPTH; ++k) {
      uint16_t bits;
      memcpy(&bits, group_chunk(w, operand, row, k / 8 * 8) + k % 8 * 2, sizeof(bits));
      to[k] = element(bits, 0, p.is_bf16);
    }
  };
  for (uint32_t row = 0; row < 16; ++row) read(a[row], p.a, first + row);
  for (uint32_t row = 0; row < p.columns; ++row) read(b[row], p.b, row);
  // c[j][i] of lane 4 g + t is in row g + 8 (i / 2), column 8 j + 2 t + i % 2.
  for (uint32_t lane = 0; lane < WARP; ++lane)
    for (uint32_t i = 0; i < p.columns / 2; ++i) {
      const uint32_t row = lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      float& c = w.sums[lane * MOST_GROUP_COLUMNS / 2 + i];
      double sum = c;
      for (uint32_t k = 0; k < GROUP_DEPTH; ++k) sum += double(a[row][k]) * b[column][k];
      c = float(sum);
    }
}

// Take the sums out of the lanes' registers.
void take_group_sums(Warp& w, uint64_t* values, uint32_t columns) {
  w.sums.reserve(WARP * MOST_GROUP_COLUMNS / 2);
  for (uint32_t lane = 0; lane < WARP; ++lane) {
    float* c = w.targets[lane] = reinterpret_cast<GroupStep*>(values[lane])->c;
    memcpy(w.sums.data + lane * MOST_GROUP_COLUMNS / 2, c, columns / 2 * sizeof(float));
    memset(c, POISON, columns / 2 * sizeof(float));
  }
}

void start_product(Warp& w, uint64_t* values) {
  const GroupStep first = *reinterpret_cast<GroupStep*>(values[0]);
  if (!w.is_fenced)
    fault(COLLECTIVE, "warp %u of CTA %u calls gpu_wgmma before gpu_wgmma_fence",
          lane_of(w, 0).thread / WARP, w.cta);
  check_group_operand(w, first.a);
  check_group_operand(w, first.b);
  if (w.products.count == 0) take_group_sums(w, values, w.a);
  for (uint32_t lane = 0; lane < WARP; ++lane) {
    const GroupStep& step = *reinterpret_cast<GroupStep*>(values[lane]);
    if (step.a != first.a || step.b != first.b || step.c != w.targets[lane])
      fault(COLLECTIVE, "lane %u of CTA %u warp %u has other operands or sums in gpu_wgmma", lane,
            w.cta, lane_of(w, 0).thread / WARP);
  }
  GroupProduct& p = w.products.push({first.a, first.b, w.a, w.group, w.b != 0, false});
  note_group_reads(w, p);
  const bool is_next = w.products.count == 1 || w.products[w.products.count - 2].is_done;
  if (is_next && one_in(2)) multiply_group(w, p);
}

void fence_products(Warp& w, uint64_t*) { w.is_fenced = true; }
void commit_products(Warp& w, uint64_t*) { ++w.group; }

// Do what is not among the last groups; when nothing is left the sums are the lanes' again.
void wait_for_products(Warp& w, uint64_t*) {
  List<GroupProduct>& products = w.products;
  while (products.count != 0 && products[0].group + w.a < w.group) {
    if (!products[0].is_done) multiply_group(w, products[0]);
    note_group_reads(w, products[0]);
    const uint32_t columns = products[0].columns;
    products.remove_in_order(0);
    if (products.count != 0) continue;
    w.is_fenced = false;
    for (uint32_t lane = 0; lane < WARP; ++lane)
      memcpy(w.targets[lane], w.sums.data + lane * MOST_GROUP_COLUMNS / 2,
             columns / 2 * sizeof(float));
  }
}

}  // namespace

extern "C" {

uint32_t emu_shared_address(const void* p) {
  return uint32_t(static_cast<const char*>(p) - cta_of(*self->current).smem) + SHARED_BASE;
}

void emu_wgmma(float* c, uint32_t columns, uint64_t a, uint64_t b, bool is_bf16) {
  const Fiber& f = *self->current;
  if (f.thread / WARP / GROUP_WARPS * GROUP_WARPS + GROUP_WARPS > self->threads / WARP)
    fault(COLLECTIVE, "gpu_wgmma by %s, whose warp is not one of a group of 4", describe(f).c);
  GroupStep step = {c, a, b};
  meet(IN_GROUP_PRODUCT, columns, is_bf16, reinterpret_cast<uint64_t>(&step), start_product);
}
void emu_wgmma_fence() { meet(IN_GROUP_FENCE, 0, 0, 0, fence_products); }
void emu_wgmma_commit() { meet(IN_GROUP_COMMIT, 0, 0, 0, commit_products); }
void emu_wgmma_wait(uint32_t groups) { meet(IN_GROUP_WAIT, groups, 0, 0, wait_for_products); }

}  // extern "C"
