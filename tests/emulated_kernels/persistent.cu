// A persistent kernel by hand: x -> h = relu(W x) -> Z = A (h s^T) -> x, turn after turn. Warps 0
// to 3 compute; warp 4 streams weights into a ring of slots. BUG_... plants one bug.

#include "ark_gpu.h"

constexpr uint32_t THREADS = 160, COMPUTE_THREADS = 128, COMPUTE_WARPS = 4;
constexpr uint32_t K = 256;       // elements of x
constexpr uint32_t H = 64;        // elements of h
constexpr uint32_t N = 8;         // columns of Z
constexpr uint32_t Z_ROWS = 32;
constexpr uint32_t TILE = 16;     // rows of W or A per task
constexpr uint32_t SLOTS = 6, SLOT_BYTES = 4096;
constexpr uint32_t MULTIPLY_VECTOR = 0, MULTIPLY_MATRIX = 1, COMBINE = 2;

struct Task {
  uint32_t kind, first, counter, wait_counter;
  int64_t signals, need;  // waits for turn * signals + need
  uint32_t id, unused;
};

struct Queue {
  uint32_t first, count;
};

struct Config {
  const uint16_t* w;
  const uint16_t* a;
  const float* x0;
  const float* s;
  float* x;
  float* h;
  float* z;
  uint64_t* counters;
  uint64_t* posted;
  uint64_t* done;
  uint32_t* abort;
  const uint32_t* never;
  const Task* tasks;
  const Queue* queues;
  int64_t fail_turn;
  uint64_t limit_ns;
};

GPU_CONSTANT Config config;

struct Shared {
  char ring[SLOTS][SLOT_BYTES];
  uint16_t b[H][N];
  float parts[COMPUTE_WARPS][TILE * N];
  gpu_mbarrier full[SLOTS], empty[SLOTS];
  uint32_t is_over;
};

GPU_FN Shared& shared() { return *reinterpret_cast<Shared*>(gpu_smem()); }

GPU_FN void compute_barrier() {
#if defined(BUG_BARRIER_WARP)
  if (gpu_warp() == 2) return;
#elif defined(BUG_BARRIER_LANE)
  if (gpu_thread() == 39) return;
#elif defined(BUG_BARRIER_COUNT)
  gpu_barrier(1, gpu_warp() == 3 ? 96 : COMPUTE_THREADS);
  return;
#endif
  gpu_barrier(1, COMPUTE_THREADS);
}

// --- the weight stream --------------------------------------------------------------------------

GPU_FN uint32_t slots_of(const Task* task) {
  return task->kind == MULTIPLY_VECTOR ? 2 : task->kind == MULTIPLY_MATRIX ? 1 : 0;
}

GPU_FN uint32_t parity_of(uint32_t fill) {
#if defined(BUG_PARITY)
  return (fill / SLOTS + 1) % 2;
#endif
  return fill / SLOTS % 2;
}

// Fill the slots of a task, from fill number *next on; false when the kernel ends.
GPU_FN bool fill_task(const Task* task, uint32_t* next) {
  const char* from = task->kind == MULTIPLY_VECTOR
                         ? reinterpret_cast<const char*>(config.w + task->first * K)
                         : reinterpret_cast<const char*>(config.a + task->first * H);
  const uint32_t bytes = task->kind == MULTIPLY_VECTOR ? SLOT_BYTES : TILE * H * 2;
  const uint32_t slots = slots_of(task);
  for (uint32_t i = 0; i < slots; ++i, ++*next, from += bytes) {
    const uint32_t fill = *next, slot = fill % SLOTS;
    gpu_mbarrier* full = &shared().full[slot];
#if !defined(BUG_NO_EMPTY_WAIT)
    // Before the first use of a slot there is no phase to wait for: parity 1 is complete.
    const bool is_free = gpu_lane() != 0 ||
                   gpu_mbarrier_wait(&shared().empty[slot], (fill / SLOTS + 1) % 2, config.abort);
    if (gpu_ballot(is_free) != GPU_ALL_LANES) return false;
    gpu_sync_warp();
#endif
#if defined(BUG_EXPECT_MORE)
    gpu_fill_begin(full, bytes + 16);
#elif defined(BUG_EXPECT_LESS)
    gpu_fill_begin(full, bytes - 16);
#else
    gpu_fill_begin(full, bytes);
#endif
    char* to = shared().ring[slot];
#if defined(BUG_COPY_ALIGNMENT)
    gpu_fill(to + 8, from, bytes / 2, full);
#elif defined(BUG_COPY_BOUNDS)
    gpu_fill(to, from + (1 << 20), bytes / 2, full);
#elif defined(BUG_FILL_LANE)
    if (gpu_lane() != 3) gpu_fill(to, from, bytes / 2, full);
#else
    gpu_fill(to, from, bytes / 2, full);
#endif
    gpu_fill(to + bytes / 2, from + bytes / 2, bytes / 2, full);
    gpu_fill_end(full);
  }
  return true;
}

// Wait for the last fills, which nobody may have used.
GPU_FN void drain(uint32_t fills) {
#if !defined(BUG_NO_DRAIN)
  const uint32_t first = fills > SLOTS ? fills - SLOTS : 0;
  for (uint32_t fill = first; fill < fills; ++fill)
    gpu_mbarrier_wait(&shared().full[fill % SLOTS], fill / SLOTS % 2, config.never);
  gpu_fill_drain();
#endif
}

GPU_FN void produce() {
  const Queue queue = config.queues[gpu_block()];
  uint32_t fill = 0;
  for (int64_t turn = 0;; ++turn) {
    int go = 1;
    if (gpu_lane() == 0) go = gpu_wait_host(config.posted, turn + 1, config.abort);
    if (gpu_shuffle(go, 0) != 1) return drain(fill);
    for (uint32_t i = 0; i < queue.count; ++i)
      if (!fill_task(&config.tasks[queue.first + i], &fill)) return drain(fill);
  }
}

// --- tasks --------------------------------------------------------------------------------------

// Wait for a slot; the same answer for all lanes of a warp.
GPU_FN bool wait_full(uint32_t fill) {
#if defined(BUG_NO_FULL_WAIT)
  return true;
#endif
  const bool is_full = gpu_mbarrier_wait(&shared().full[fill % SLOTS], parity_of(fill),
                                         config.abort);
  return gpu_ballot(is_full) == GPU_ALL_LANES;
}

GPU_FN void free_slot(uint32_t fill) {
#if !defined(BUG_NO_SYNCWARP)
  gpu_sync_warp();
#endif
  if (gpu_lane() == 0) gpu_mbarrier_arrive(&shared().empty[fill % SLOTS]);
}

struct Sum {
  GPU_FN float operator()(float a, float b) const { return a + b; }
};

GPU_FN float dot(gpu_vec4 weights, const float* x) {
  const uint32_t pairs[4] = {weights.x, weights.y, weights.z, weights.w};
  float sum = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    sum = gpu_fma(gpu_bf16_to_float(uint16_t(pairs[i])), x[2 * i], sum);
    sum = gpu_fma(gpu_bf16_to_float(uint16_t(pairs[i] >> 16)), x[2 * i + 1], sum);
  }
  return sum;
}

GPU_FN uint32_t multiply_vector(const Task* task, uint32_t fill) {
  const uint32_t lane = gpu_lane();
  const float* x = gpu_global(config.x) + lane * 8;
  constexpr uint32_t rows = SLOT_BYTES / (K * 2), rows_per_warp = rows / COMPUTE_WARPS;
  for (uint32_t half = 0; half < 2; ++half, ++fill) {
    const bool is_full = wait_full(fill);
    for (uint32_t i = 0; i < rows_per_warp; ++i) {
      const uint32_t row = gpu_warp() * rows_per_warp + i;
      const char* at = shared().ring[fill % SLOTS] + row * K * 2 + lane * 16;
#if defined(BUG_MISALIGNED)
      at += 8;
#endif
      float sum = is_full ? dot(*reinterpret_cast<const gpu_vec4*>(at), x) : 0;
#if defined(BUG_SHUFFLE)
      if (lane == 9) continue;
#endif
      sum = gpu_warp_reduce(sum, Sum());
      uint32_t out = task->first + half * rows + row;
#if defined(BUG_WRITE)
      out = (out + 1) % H;
#endif
      if (lane == 0) config.h[out] = sum > 0 ? sum : 0;
    }
    free_slot(fill);
  }
  return fill;
}

GPU_FN uint32_t multiply_matrix(const Task* task, uint32_t fill) {
  const uint32_t thread = gpu_thread(), lane = gpu_lane(), warp = gpu_warp();
  for (uint32_t i = thread; i < H * N; i += COMPUTE_THREADS)
    shared().b[i / N][i % N] =
        gpu_float_to_bf16(config.h[i / N] * gpu_load_readonly(config.s + i % N));
  compute_barrier();
  float c[4] = {};
  if (wait_full(fill)) {
    uint32_t a[4], b[2];
    const uint16_t* rows = reinterpret_cast<const uint16_t*>(shared().ring[fill % SLOTS]);
    gpu_ldmatrix4(a, rows + lane % 16 * H + warp * 16 + lane / 16 * 8);
    gpu_ldmatrix2_trans(b, shared().b[warp * 16 + lane % 16]);
    gpu_mma_bf16(c, a, b);
  }
  free_slot(fill);
  for (uint32_t i = 0; i < 4; ++i)
    shared().parts[warp][(lane / 4 + i / 2 * 8) * N + lane % 4 * 2 + i % 2] = c[i];
  compute_barrier();
  float sum = 0;
  for (uint32_t i = 0; i < COMPUTE_WARPS; ++i) sum += shared().parts[i][thread];
  config.z[task->first * N + thread] = sum;
  return fill + 1;
}

GPU_FN void combine(const Task* task) {
  const uint32_t i = task->first + gpu_thread();
  uint32_t from = i % Z_ROWS * N + i / Z_ROWS;
#if defined(BUG_READ)
  from = 0;
#endif
#if defined(BUG_READONLY)
  const_cast<float*>(config.x0)[i] = 0;
#endif
  config.x[i] = gpu_load_readonly(config.x0 + i) + config.z[from];
}

// --- the queue ----------------------------------------------------------------------------------

GPU_FN bool may_go(const Task* task, int64_t turn) {
  int64_t want = turn * task->signals + task->need;
#if defined(BUG_THRESHOLD_LOW)
  want -= 1;
#elif defined(BUG_THRESHOLD_HIGH)
  want += 1;
#endif
  const uint64_t* word = &config.counters[task->wait_counter];
#if defined(BUG_NO_ACQUIRE)
  while (int64_t(gpu_load_relaxed(word)) < want) gpu_nanosleep(100);
  const int came = 1;
#else
  const int came = gpu_wait(word, want, config.abort, config.limit_ns);
#endif
  if (came == -1 || turn == config.fail_turn) gpu_store_relaxed(config.abort, came == -1 ? 2 : 1);
  return gpu_load_relaxed(config.abort) == 0;
}

GPU_FN void signal(const Task* task) {
  uint64_t* counter = &config.counters[task->counter];
#if defined(BUG_RELAXED)
  gpu_store_relaxed(counter, gpu_load_relaxed(counter) + 1);
#else
  gpu_add_release(counter, 1);
#endif
}

// Do one task; false when the kernel ends.
GPU_FN bool do_task(const Task* task, int64_t turn, uint32_t* fill) {
  if (gpu_thread() == 0) shared().is_over = !may_go(task, turn);
  compute_barrier();
  if (shared().is_over) return false;
  gpu_task_begin(0, task->id);
  if (task->kind == MULTIPLY_VECTOR) *fill = multiply_vector(task, *fill);
  if (task->kind == MULTIPLY_MATRIX) *fill = multiply_matrix(task, *fill);
  if (task->kind == COMBINE) combine(task);
  gpu_task_end();
#if defined(BUG_NO_BARRIER)
  if (gpu_thread() == 0) signal(task);
  compute_barrier();
#else
  compute_barrier();
  if (gpu_thread() == 0) signal(task);
#endif
  return true;
}

GPU_FN void consume() {
  const Queue queue = config.queues[gpu_block()];
  uint32_t fill = 0;
  for (int64_t turn = 0;; ++turn) {
    if (gpu_thread() == 0)
      shared().is_over = gpu_wait_host(config.posted, turn + 1, config.abort) != 1;
    compute_barrier();
    if (shared().is_over) return;
    // All have read is_over before the first task writes it anew.
    compute_barrier();
    for (uint32_t i = 0; i < queue.count; ++i)
      if (!do_task(&config.tasks[queue.first + i], turn, &fill)) return;
    compute_barrier();
    if (gpu_thread() == 0) gpu_add_release_system(config.done, 1);
  }
}

GPU_KERNEL(persistent, THREADS) {
  if (gpu_thread() == 0) {
    for (uint32_t slot = 0; slot < SLOTS; ++slot) {
      gpu_mbarrier_init(&shared().full[slot], GPU_FILL_ARRIVALS);
#if defined(BUG_NO_INIT)
      if (slot == 3) continue;
#endif
      gpu_mbarrier_init(&shared().empty[slot], COMPUTE_WARPS);
    }
#if !defined(BUG_NO_FENCE)
    gpu_mbarrier_fence();
#endif
  }
#if !defined(BUG_INIT_UNORDERED)
  gpu_barrier(0, THREADS);
#endif
  if (gpu_warp() == COMPUTE_WARPS)
    produce();
  else
    consume();
}
