// What the kernels that measure a GPU share. Before it come `ark_bench`, the record that each of
// them starts with, and ark_queue and ark_segment, as ark_dist/core/abi.py has them.

GPU_CONSTANT ark_bench ark_bench_config;

// Of the GPU's clock: a kernel takes from the first CTA's begin to the last one's end.
GPU_FN void ark_bench_begin() {
  if (gpu_thread() == 0)
    gpu_global_pointer<uint64_t>(ark_bench_config.begins)[gpu_block()] = gpu_clock_ns();
}

// By all threads, when they are through.
GPU_FN void ark_bench_end(int threads) {
  gpu_barrier(0, threads);
  if (gpu_thread() == 0)
    gpu_global_pointer<uint64_t>(ark_bench_config.ends)[gpu_block()] = gpu_clock_ns();
}

// Leave a warp's sum for the host; by all its lanes.
GPU_FN void ark_bench_leave(uint32_t sum, uint32_t warps) {
  sum = gpu_warp_reduce(sum, [](uint32_t a, uint32_t b) { return a + b; });
  if (gpu_lane() == 0)
    gpu_global_pointer<uint32_t>(ark_bench_config.sums)[gpu_block() * warps + gpu_warp()] = sum;
}

// A word alone on its line.
GPU_FN uint64_t* ark_bench_word(uint32_t index) {
  return &gpu_global_pointer<ark_counter>(ark_bench_config.words)[index].value;
}
