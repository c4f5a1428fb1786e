// The ring that weights come through: the producer warp fills slots of shared memory in a fixed
// order, as far ahead as slots are free; consumer warps empty them in the same order.
//
// Weights do not change while the kernel runs, so the producer looks at no dependency: it goes on
// across tasks and turns. Its order is a table that the host writes in the order of consumption.
// Barriers are set up once. A slot is named by its running number, which wraps around; numbers
// are passed by value, so that they stay in registers.
//
// Before this come ARK_RING_SLOTS, a power of 2, and ARK_SLOT_BYTES, both constexpr. After it
// somebody says where the slots are, in shared memory:
GPU_FN char* ark_ring_slots();

static_assert((ARK_RING_SLOTS & (ARK_RING_SLOTS - 1)) == 0, "numbers wrap around");
static_assert(ARK_SLOT_BYTES % 16 == 0, "copies move 16 bytes");
// Consumer warps take slots in turn: number n is warp n % 8's. So the place of a slot is always the
// same warp's, which took what was there before: a parity tells one phase from the next only.
constexpr uint32_t ARK_RING_WARPS = 8;
static_assert(ARK_RING_SLOTS % ARK_RING_WARPS == 0, "a place belongs to one warp");

// How many numbers after `slot` this warp's first one is.
GPU_FN uint32_t ark_ring_turn(uint32_t slot) { return (gpu_warp() - slot) % ARK_RING_WARPS; }

// In shared memory.
struct ark_ring {
  gpu_mbarrier full[ARK_RING_SLOTS];
  gpu_mbarrier empty[ARK_RING_SLOTS];
  uint32_t closed;  // lets everybody out of their waits
  uint32_t never;   // stays 0
};

// By one thread; a barrier of the whole CTA has to follow.
GPU_FN void ark_ring_init(ark_ring& ring) {
#pragma unroll 1
  for (uint32_t i = 0; i < ARK_RING_SLOTS; ++i) {
    gpu_mbarrier_init(ring.full + i, GPU_FILL_ARRIVALS);
    gpu_mbarrier_init(ring.empty + i, 1);
  }
  gpu_store_relaxed(&ring.closed, 0u);
  gpu_store_relaxed(&ring.never, 0u);
  gpu_mbarrier_fence();
}

// When the kernel ends early: whoever waits, or will, is told so.
GPU_FN void ark_ring_close(ark_ring& ring) { gpu_store_relaxed(&ring.closed, 1u); }

GPU_FN char* ark_slot_data(uint32_t slot) {
  return ark_ring_slots() + slot % ARK_RING_SLOTS * ARK_SLOT_BYTES;
}

// The phase that a slot's barriers are in.
GPU_FN uint32_t ark_slot_parity(uint32_t slot) { return slot / ARK_RING_SLOTS & 1; }

// --- the producer warp, all lanes -------------------------------------------------------------

// By two loads of 16 bytes: tables are aligned.
GPU_FN ark_segment ark_load_segment(const ark_segment* at) {
  const gpu_vec4* parts = gpu_global(reinterpret_cast<const gpu_vec4*>(at));
  const gpu_vec4 low = gpu_load_readonly(parts), high = gpu_load_readonly(parts + 1);
  return {uint64_t(low.y) << 32 | low.x, uint64_t(low.w) << 32 | low.z, high.x, high.y, 0};
}

// Fill one slot once it is free; false if the ring is closed.
GPU_FN bool ark_produce_slot(ark_ring& ring, const ark_segment& segment, uint32_t slot) {
  gpu_mbarrier* const empty = ring.empty + slot % ARK_RING_SLOTS;
  gpu_mbarrier* const full = ring.full + slot % ARK_RING_SLOTS;
  // A fresh barrier counts as past the phase of parity 1: the first round waits for nobody. All
  // lanes are through before one begins the fill: it may be over, and the slot free, before a
  // late one looks, and closing is seen by all or none.
  const bool is_free = gpu_mbarrier_wait(empty, ark_slot_parity(slot) ^ 1, &ring.closed);
  if (gpu_ballot(is_free) != GPU_ALL_LANES) return false;
  gpu_fill_begin(full, segment.bytes * segment.count);
  const char* from = gpu_global(reinterpret_cast<const char*>(segment.source));
  char* to = ark_slot_data(slot);
#pragma unroll 1
  for (uint32_t i = 0; i < segment.count; ++i, from += segment.pitch, to += segment.bytes)
    gpu_fill(to, from, segment.bytes, full);
  gpu_fill_end(full);
  return true;
}

// How far the producer got: the slot it fills next, and whether the ring was closed before all
// was done.
struct ark_produced {
  uint32_t slot;
  bool is_closed;
};

// Fill the slots from number `slot` on, one per segment.
GPU_FN ark_produced ark_produce_slots(ark_ring& ring, const ark_segment* segments, uint32_t count,
                                      uint32_t slot) {
  if (count == 0) return {slot, false};
  ark_segment segment = ark_load_segment(segments);
#pragma unroll 1
  for (uint32_t i = 0; i < count; ++i, ++slot) {
    // The next segment's row is under way while this one waits for its slot.
    const ark_segment next = ark_load_segment(segments + (i + 1 < count ? i + 1 : 0));
    if (!ark_produce_slot(ring, segment, slot)) return {slot, true};
    segment = next;
  }
  return {slot, false};
}

// Before the producer exits: no copy may arrive later. `slot` is the one it would fill next.
GPU_FN void ark_drain_slots(ark_ring& ring, uint32_t slot) {
#pragma unroll 1
  for (uint32_t i = slot - ARK_RING_SLOTS; i != slot; ++i)
    // What was never filled is past the phase of parity 1, as above.
    gpu_mbarrier_wait(ring.full + i % ARK_RING_SLOTS, ark_slot_parity(i), &ring.never);
  gpu_fill_drain();
}

// --- consumer warps, all lanes ------------------------------------------------------------------

// Wait for the data of a slot; false if the ring is closed.
GPU_FN bool ark_acquire_slot(ark_ring& ring, uint32_t slot) {
  const bool is_full = gpu_mbarrier_wait(ring.full + slot % ARK_RING_SLOTS, ark_slot_parity(slot),
                                         &ring.closed);
  return gpu_ballot(is_full) == GPU_ALL_LANES;
}

// Hand a slot back, by the one warp that read it.
GPU_FN void ark_release_slot(ark_ring& ring, uint32_t slot) {
  gpu_sync_warp();  // the other lanes' reads come before
  if (gpu_lane() == 0) gpu_mbarrier_arrive(ring.empty + slot % ARK_RING_SLOTS);
}

// Hand back slots that nobody wants to read; all consumer warps.
GPU_FN void ark_skip_slots(ark_ring& ring, uint32_t slot, uint32_t count) {
#pragma unroll 1
  for (uint32_t i = ark_ring_turn(slot); i < count; i += ARK_RING_WARPS)
    if (ark_acquire_slot(ring, slot + i)) ark_release_slot(ring, slot + i);
}
