// How fast a GPU reads and copies: 16 bytes a load, several under way, and nothing else.

constexpr uint32_t ARK_READ_THREADS = 512;
constexpr uint32_t ARK_READ_WARPS = ARK_READ_THREADS / GPU_WARP;

// `rounds` times UNROLL vectors per thread. Where a CTA begins and how far it goes on in a round
// says the host: CTAs have a part each, or take turns.
template <int UNROLL, class Take>
GPU_FN void ark_each_vector(Take take) {
  const ark_bench& config = ark_bench_config;
  uint64_t at = gpu_block() * config.first + gpu_thread();
#pragma unroll 1
  for (uint64_t round = 0; round < config.rounds; ++round, at += config.step) take(at);
}

template <int UNROLL, class Load>
GPU_FN void ark_read(Load load) {
  ark_bench_begin();
  const gpu_vec4* source = gpu_global_pointer<const gpu_vec4>(ark_bench_config.source);
  uint32_t sum = 0;
  ark_each_vector<UNROLL>([&](uint64_t at) {
    gpu_vec4 v[UNROLL];
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) v[i] = load(source + at + i * ARK_READ_THREADS);
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) sum += v[i].x + v[i].y + v[i].z + v[i].w;
  });
  ark_bench_leave(sum, ARK_READ_WARPS);
  ark_bench_end(ARK_READ_THREADS);
}

template <int UNROLL, class Load>
GPU_FN void ark_copy(Load load) {
  ark_bench_begin();
  const gpu_vec4* source = gpu_global_pointer<const gpu_vec4>(ark_bench_config.source);
  gpu_vec4* target = gpu_global_pointer<gpu_vec4>(ark_bench_config.target);
  ark_each_vector<UNROLL>([&](uint64_t at) {
    gpu_vec4 v[UNROLL];
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) v[i] = load(source + at + i * ARK_READ_THREADS);
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) target[at + i * ARK_READ_THREADS] = v[i];
  });
  ark_bench_end(ARK_READ_THREADS);
}

struct ark_load_plain {
  GPU_FN gpu_vec4 operator()(const gpu_vec4* from) const { return gpu_load_readonly(from); }
};
struct ark_load_once {
  GPU_FN gpu_vec4 operator()(const gpu_vec4* from) const { return gpu_load_streaming(from); }
};

#define ARK_READERS(unroll)                                                                        \
  GPU_KERNEL(ark_read_plain_##unroll, ARK_READ_THREADS) { ark_read<unroll>(ark_load_plain{}); }    \
  GPU_KERNEL(ark_read_once_##unroll, ARK_READ_THREADS) { ark_read<unroll>(ark_load_once{}); }      \
  GPU_KERNEL(ark_copy_plain_##unroll, ARK_READ_THREADS) { ark_copy<unroll>(ark_load_plain{}); }    \
  GPU_KERNEL(ark_copy_once_##unroll, ARK_READ_THREADS) { ark_copy<unroll>(ark_load_once{}); }
ARK_READERS(4)
ARK_READERS(8)
ARK_READERS(16)
#undef ARK_READERS
