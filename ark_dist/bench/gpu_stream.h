// The weight ring with nothing to compute: the producer warp fills slots as fast as consumer warps
// hand them back. A consumer folds one word per lane and slot into a sum, so that the host knows
// that the data had arrived.

constexpr uint32_t ARK_STREAM_THREADS = (ARK_RING_WARPS + 1) * GPU_WARP;
constexpr uint32_t ARK_STREAM_HEAD_BYTES = 1024;
static_assert(sizeof(ark_ring) <= ARK_STREAM_HEAD_BYTES, "the slots come after the ring");

GPU_FN char* ark_ring_slots() { return gpu_smem() + ARK_STREAM_HEAD_BYTES; }

// The CTA's segments, `turns` times: as a method's turns follow one another.
GPU_FN void ark_stream_produce(ark_ring& ring, const ark_queue& stream) {
  const ark_segment* segments =
      gpu_global_pointer<const ark_segment>(ark_bench_config.segments) + stream.first;
  uint32_t slot = 0;
#pragma unroll 1
  for (uint64_t turn = 0; turn < ark_bench_config.rounds; ++turn)
    slot = ark_produce_slots(ring, segments, stream.count, slot).slot;
  ark_drain_slots(ring, slot);
}

GPU_FN void ark_stream_consume(ark_ring& ring, const ark_queue& stream) {
  uint32_t slot = 0, sum = 0;
#pragma unroll 1
  for (uint64_t turn = 0; turn < ark_bench_config.rounds; ++turn, slot += stream.count) {
#pragma unroll 1
    for (uint32_t i = ark_ring_turn(slot); i < stream.count; i += ARK_RING_WARPS) {
      if (!ark_acquire_slot(ring, slot + i)) break;
      const uint32_t* words = reinterpret_cast<const uint32_t*>(ark_slot_data(slot + i));
      sum += words[gpu_lane() * ark_bench_config.step];
      ark_release_slot(ring, slot + i);
    }
  }
  ark_bench_leave(sum, ARK_RING_WARPS);
}

GPU_KERNEL(ark_stream_only, ARK_STREAM_THREADS) {
  ark_ring& ring = *reinterpret_cast<ark_ring*>(gpu_smem());
  ark_bench_begin();
  if (gpu_thread() == 0) ark_ring_init(ring);
  gpu_barrier(0, ARK_STREAM_THREADS);
  const ark_queue* streams = gpu_global_pointer<const ark_queue>(ark_bench_config.streams);
  const ark_queue stream = streams[gpu_block()];
  if (gpu_warp() < ARK_RING_WARPS)
    ark_stream_consume(ring, stream);
  else
    ark_stream_produce(ring, stream);
  ark_bench_end(ARK_STREAM_THREADS);
}
