// Matrix products on a GPU, by the 256 consumer threads of a CTA: on tensor cores, on CUDA cores,
// and for few rows, where reading the weights is all that takes time.
//
// All results go to `epilogue(i, j, value)`, once per element, by whichever thread has it; an
// epilogue may also have `pair(i, j, value, next)` for columns j, j + 1. Elements of A pass through
// `prologue(i, k, x)`. Scratch is shared memory, aligned to 16 bytes, free again on return.

// Sizes and strides (elements): a[m, k] * b[k, n].
struct ark_matmul_shape {
  int64_t m, n, k, a_m, a_k, b_k, b_n;
};

ARK_FN float ark_matmul_relu(float x) { return x < 0 ? 0 : x; }

// What happens to an element of A on the way in: nothing,
struct ark_matmul_no_prologue {
  ARK_FN float operator()(int, int, float x) const { return x; }
};

// or the normalization of its row; what was found out about the rows lies in shared memory.
template <class Rows, class Weight, class Bias>
struct ark_matmul_norm {
  Rows rows;  // const ark_affine*
  Weight weight;
  Bias bias;
  ARK_FN float operator()(int i, int k, float x) const {
    return ark_normalize(rows[i], x, k, weight, bias);
  }
};

template <class Epilogue>
ARK_FN constexpr auto ark_has_pair(int) -> decltype(&Epilogue::pair, true) {
  return true;
}
template <class Epilogue>
ARK_FN constexpr bool ark_has_pair(long) {
  return false;
}

template <class Epilogue>
ARK_FN void ark_finish_pair(const Epilogue& epilogue, int i, int j, float value, float next, int m,
                            int n) {
  if (i >= m || j >= n) return;
  if constexpr (ark_has_pair<Epilogue>(0)) {
    if (j + 1 < n) return epilogue.pair(i, j, value, next);
  }
  epilogue(i, j, value);
  if (j + 1 < n) epilogue(i, j + 1, next);
}

// --- tensor cores -------------------------------------------------------------------------------

// Pass on the sums of a tile from row i0, column j0 on.
template <class Tile, class Epilogue>
ARK_FN void ark_tensor_finish(const float (&sums)[Tile::warp_m / 16][Tile::warp_n / 8][4], int i0,
                              int j0, int m, int n, const Epilogue& epilogue) {
  const int warp = int(gpu_warp()), lane = int(gpu_lane());
  const int row = i0 + warp / Tile::warps_n * Tile::warp_m + lane / 4;
  const int column = j0 + warp % Tile::warps_n * Tile::warp_n + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < Tile::warp_m / 16; ++i)
#pragma unroll
    for (int j = 0; j < Tile::warp_n / 8; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        ark_finish_pair(epilogue, row + 16 * i + 8 * h, column + 8 * j, sums[i][j][2 * h],
                        sums[i][j][2 * h + 1], m, n);
}

// Brings the operands of one tile, from row i0 and column j0 on, into shared memory. A_ALONG_K: k
// runs along the lines of A that are copied, else its rows do; the same for B.
template <class T, class TB, class Tile, bool A_ALONG_K, bool B_ALONG_K, class Prologue>
struct ark_tensor_feed {
  static constexpr bool is_plain = ark_is_same<Prologue, ark_matmul_no_prologue>;
  static constexpr bool is_same = ark_is_same<T, TB>;
  typedef ark_panel<T, A_ALONG_K ? Tile::m : Tile::k, A_ALONG_K ? Tile::k : Tile::m> a_panel;
  typedef ark_panel<TB, B_ALONG_K ? Tile::n : Tile::k, B_ALONG_K ? Tile::k : Tile::n> b_panel;
  char* scratch;
  a_panel a;
  b_panel b;
  int i0, j0;
  const Prologue& prologue;
  ark_staged<T, a_panel, A_ALONG_K, Prologue> staged;
  ark_widened<T, b_panel> widened;

  ARK_FN ark_tensor_feed(char* scratch, const T* a, const TB* b, const ark_matmul_shape& s, int i0,
                         int j0, const Prologue& prologue)
      : scratch(scratch),
        a(A_ALONG_K ? a_panel(a, s.a_m, s.a_k, int(s.m), int(s.k))
                    : a_panel(a, s.a_k, s.a_m, int(s.k), int(s.m))),
        b(B_ALONG_K ? b_panel(b, s.b_n, s.b_k, int(s.n), int(s.k))
                    : b_panel(b, s.b_k, s.b_n, int(s.k), int(s.n))),
        i0(i0),
        j0(j0),
        prologue(prologue) {}

  ARK_FN char* a_stage(int step) const {
    return scratch + step % Tile::stages * (Tile::a_bytes + Tile::b_bytes);
  }
  ARK_FN char* b_stage(int step) const { return a_stage(step) + Tile::a_bytes; }
  ARK_FN int a_row(int step) const { return A_ALONG_K ? i0 : step * Tile::k; }
  ARK_FN int a_column(int step) const { return A_ALONG_K ? step * Tile::k : i0; }
  ARK_FN int b_row(int step) const { return B_ALONG_K ? j0 : step * Tile::k; }
  ARK_FN int b_column(int step) const { return B_ALONG_K ? step * Tile::k : j0; }

  // Start to bring a step,
  ARK_FN void copy(int step) {
    if constexpr (is_plain)
      a.copy(a_stage(step), a_row(step), a_column(step));
    else
      staged.read(a, a_row(step), a_column(step));
    if constexpr (is_same)
      b.copy(b_stage(step), b_row(step), b_column(step));
    else
      widened.read(b, b_row(step), b_column(step));
  }
  // and put there what came through registers.
  ARK_FN void store(int step) const {
    if constexpr (!is_plain)
      staged.store(a, a_stage(step), a_row(step), a_column(step), prologue);
    if constexpr (!is_same) widened.store(b, b_stage(step), b_row(step), b_column(step));
  }
};

// One Tile from row i0, column j0 on.
template <class T, class TB, class Tile, bool A_ALONG_K, bool B_ALONG_K, class Prologue,
          class Epilogue>
ARK_FN void ark_tensor_tile_product(char* scratch, const T* a, const TB* b,
                                    const ark_matmul_shape& s, int i0, int j0,
                                    const Prologue& prologue, const Epilogue& epilogue) {
  ark_tensor_feed<T, TB, Tile, A_ALONG_K, B_ALONG_K, Prologue> feed(scratch, a, b, s, i0, j0,
                                                                    prologue);
  float sums[Tile::warp_m / 16][Tile::warp_n / 8][4] = {};
  const int steps = (int(s.k) + Tile::k - 1) / Tile::k;
  // Steps that are under way. Warp groups are still at the one before: its place is not free yet.
  constexpr bool by_groups = ark_uses_groups<Tile, A_ALONG_K, B_ALONG_K>;
  constexpr int distance = Tile::stages - (by_groups ? 2 : 1);
  // The first turns only copy.
#pragma unroll 1
  for (int step = -distance; step < steps; ++step) {
    if (step >= 0) {
      gpu_copy_wait<distance - 1>();
      ark_publish_step<by_groups>();
      // All see this step's data, and are done with the one whose place is filled next.
      gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
    }
    const int ahead = step + distance;
    if (ahead < steps) feed.copy(ahead);
    gpu_copy_commit();
    if (step >= 0) {
      if constexpr (by_groups)
        ark_group_step<T, Tile>(sums, feed.a_stage(step), feed.b_stage(step));
      else
        ark_tensor_step<T, Tile, A_ALONG_K, B_ALONG_K>(sums, feed.a_stage(step),
                                                       feed.b_stage(step));
    }
    if (ahead < steps) feed.store(ahead);
  }
  gpu_copy_wait<0>();
  ark_finish_steps<by_groups>(sums);
  gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
  ark_tensor_finish<Tile>(sums, i0, j0, int(s.m), int(s.n), epilogue);
}

// a * b for fp16 or bf16 and the same, or int8; accumulated in fp32; Tile::scratch_bytes of scratch.
// With a prologue its result is rounded to T.
template <class T, class TB, class Tile, bool A_ALONG_K, bool B_ALONG_K, class Prologue,
          class Epilogue>
ARK_FN void ark_matmul_tensor(char* scratch, const T* a, const TB* b, const ark_matmul_shape& s,
                              const Prologue& prologue, const Epilogue& epilogue) {
  const uint32_t offset = uint32_t(scratch - gpu_smem());
  scratch = gpu_smem() + (offset + Tile::alignment - 1) / Tile::alignment * Tile::alignment;
#pragma unroll 1
  for (int i0 = 0; i0 < int(s.m); i0 += Tile::m)
#pragma unroll 1
    for (int j0 = 0; j0 < int(s.n); j0 += Tile::n)
      ark_tensor_tile_product<T, TB, Tile, A_ALONG_K, B_ALONG_K>(
          scratch, gpu_global(a), gpu_global(b), s, i0, j0, prologue, epilogue);
}

// --- CUDA cores ---------------------------------------------------------------------------------

// How a CTA covers outputs with 16 x 16 threads of T_M x T_N outputs each, multiples of 4.
template <int T_M, int T_N>
struct ark_plain_tile {
  static constexpr int m = 16 * T_M, n = 16 * T_N, thread_m = T_M, thread_n = T_N;
  // With many sums, few registers are left for what is on its way.
  static constexpr int k = T_M * T_N > 32 ? 8 : 16;
  // Lines of k are a little longer, so that writing along k meets different banks.
  static constexpr int a_line = m + 4, b_line = n + 4;
  static constexpr int stage_floats = k * (a_line + b_line);
  static constexpr int64_t scratch_bytes = 2 * stage_floats * int64_t(sizeof(float));
  static_assert(T_M % 4 == 0 && T_N % 4 == 0, "16-byte loads");
};

// The elements of one operand that a thread brings in per step of k: every `step`-th of a line,
// or of a column, so that neighbouring threads read neighbouring memory.
template <class T, int LINES, int DEPTH, int LINE_FLOATS>
struct ark_plain_part {
  static constexpr int count = LINES * DEPTH / int(ARK_CONSUMERS);
  const T* from;
  int64_t step, k_step;             // elements to the next one, and to the next DEPTH
  int line, line_step, depth, depth_step;
  float held[count];

  // An operand of `lines` x k elements, this part of it from line `first` on.
  ARK_FN ark_plain_part(const T* data, int64_t line_stride, int64_t k_stride, int first) {
    const bool along_k = k_stride <= line_stride;
    const int thread = int(gpu_thread()), threads = int(ARK_CONSUMERS);
    line = first + (along_k ? thread / DEPTH : thread % LINES);
    depth = along_k ? thread % DEPTH : thread / LINES;
    line_step = along_k ? threads / DEPTH : 0;
    depth_step = along_k ? 0 : threads / LINES;
    from = data + line * line_stride + depth * k_stride;
    step = line_step * line_stride + depth_step * k_stride;
    k_step = DEPTH * k_stride;
  }

  // f(line, k, x) of this thread's elements from k0 on, zeros outside; then on to the next.
  template <class F>
  ARK_FN void read(int k0, int lines, int k, const F& f) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int at = line + i * line_step, p = k0 + depth + i * depth_step;
      held[i] = at < lines && p < k ? f(at, p, ark_load<T>(from[i * step])) : 0.0f;
    }
    from += k_step;
  }

  ARK_FN void store(float* to, int first) const {
#pragma unroll
    for (int i = 0; i < count; ++i)
      to[(depth + i * depth_step) * LINE_FLOATS + line - first + i * line_step] = held[i];
  }
};

// sums += the outer products of one step; thread (x, y) of 16 x 16 has rows 4y.. of each 64.
template <class Tile>
ARK_FN void ark_plain_step(float (&sums)[Tile::thread_m][Tile::thread_n], const float* a,
                           const float* b) {
  const int x = int(gpu_thread()) % 16, y = int(gpu_thread()) / 16;
#pragma unroll 2
  for (int p = 0; p < Tile::k; ++p) {
    float a_part[Tile::thread_m], b_part[Tile::thread_n];
#pragma unroll
    for (int i = 0; i < Tile::thread_m; i += 4)
      ark_read_floats(a + p * Tile::a_line + i * 16 + y * 4, a_part + i);
#pragma unroll
    for (int j = 0; j < Tile::thread_n; j += 4)
      ark_read_floats(b + p * Tile::b_line + j * 16 + x * 4, b_part + j);
#pragma unroll
    for (int i = 0; i < Tile::thread_m; ++i)
#pragma unroll
      for (int j = 0; j < Tile::thread_n; ++j)
        sums[i][j] = gpu_fma(a_part[i], b_part[j], sums[i][j]);
  }
}

template <class Tile, class Epilogue>
ARK_FN void ark_plain_finish(const float (&sums)[Tile::thread_m][Tile::thread_n], int i0, int j0,
                             int m, int n, const Epilogue& epilogue) {
  const int x = int(gpu_thread()) % 16, y = int(gpu_thread()) / 16;
#pragma unroll
  for (int i = 0; i < Tile::thread_m; ++i)
#pragma unroll
    for (int j = 0; j < Tile::thread_n; j += 2)
      ark_finish_pair(epilogue, i0 + i / 4 * 64 + y * 4 + i % 4, j0 + j / 4 * 64 + x * 4 + j % 4,
                      sums[i][j], sums[i][j + 1], m, n);
}

template <class TA, class TB, class Tile, class Prologue, class Epilogue>
ARK_FN void ark_plain_tile_product(float* scratch, const TA* a, const TB* b,
                                   const ark_matmul_shape& s, int i0, int j0,
                                   const Prologue& prologue, const Epilogue& epilogue) {
  const int m = int(s.m), n = int(s.n), k = int(s.k);
  ark_plain_part<TA, Tile::m, Tile::k, Tile::a_line> a_part(a, s.a_m, s.a_k, i0);
  ark_plain_part<TB, Tile::n, Tile::k, Tile::b_line> b_part(b, s.b_n, s.b_k, j0);
  const auto read = [&](int step) {
    a_part.read(step * Tile::k, m, k, prologue);
    b_part.read(step * Tile::k, n, k, ark_matmul_no_prologue{});
  };
  const auto store = [&](int step) {
    float* to = scratch + step % 2 * Tile::stage_floats;
    a_part.store(to, i0);
    b_part.store(to + Tile::k * Tile::a_line, j0);
  };

  float sums[Tile::thread_m][Tile::thread_n] = {};
  const int steps = (k + Tile::k - 1) / Tile::k;
  // The first turn only reads.
#pragma unroll 1
  for (int step = -1; step < steps; ++step) {
    if (step + 1 < steps) read(step + 1);
    const float* stage = scratch + (step & 1) * Tile::stage_floats;
    if (step >= 0) ark_plain_step<Tile>(sums, stage, stage + Tile::k * Tile::a_line);
    if (step + 1 < steps) store(step + 1);
    // All see the next step's data, and are done with this one: its place is filled next.
    gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
  }
  ark_plain_finish<Tile>(sums, i0, j0, m, n, epilogue);
}

// a * b for any floats and strides, in fp32; Tile::scratch_bytes of scratch.
template <class TA, class TB, class Tile, class Prologue, class Epilogue>
ARK_FN void ark_matmul_plain(char* scratch, const TA* a, const TB* b, const ark_matmul_shape& s,
                             const Prologue& prologue, const Epilogue& epilogue) {
#pragma unroll 1
  for (int i0 = 0; i0 < int(s.m); i0 += Tile::m)
#pragma unroll 1
    for (int j0 = 0; j0 < int(s.n); j0 += Tile::n)
      ark_plain_tile_product<TA, TB, Tile>(reinterpret_cast<float*>(scratch), gpu_global(a),
                                           gpu_global(b), s, i0, j0, prologue, epilogue);
}

// --- few rows -----------------------------------------------------------------------------------

// m <= M rows times weights that come through the ring; cut.columns columns and cut.depth of k
// per slot (kernels/stream.py writes the producer's table). K is a multiple of 16 bytes. R sums of
// columns are held by a warp at a time. Returns the number of the slot after.
template <class TA, class TB, int M, int R, class Prologue, class Epilogue>
ARK_FN uint32_t ark_matvec_stream(ark_ring& ring, uint32_t slot, char* scratch,
                                  int64_t scratch_bytes, const TA* a, const ark_matmul_shape& s,
                                  const ark_few_cut& cut, const Prologue& prologue,
                                  const Epilogue& epilogue) {
  const int m = int(s.m), n = int(s.n), k = int(s.k);
  const int parts = (k + cut.depth - 1) / cut.depth;
  ark_few_product<TA, M, R, ark_chunk<TB>>(
      reinterpret_cast<float*>(scratch), scratch_bytes, gpu_global(a), s.a_m, s.a_k, m, n, k, cut,
      ark_ring_source<TB>{ring, slot, parts}, prologue, epilogue);
  const int groups = (n + cut.columns - 1) / cut.columns, warps = int(ARK_RING_WARPS);
  return slot + uint32_t(parts == 1 ? groups : (groups + warps - 1) / warps * warps * parts);
}

// How much of k fits into scratch as fp32, M rows of it.
template <int M, int CHUNK>
ARK_FN int ark_depth_in(int64_t scratch_bytes, int k) {
  const int room = int(scratch_bytes / (M * int64_t(sizeof(float)))) / CHUNK * CHUNK;
  return k <= room ? ark_padded(k, CHUNK) : room;
}

// m <= M rows times weights in global memory, whatever their strides. Scratch: at least
// 1024 bytes per element of 16 bytes of TB, and 16 * M.
template <class TA, class TB, int M, int R, class Prologue, class Epilogue>
ARK_FN void ark_matvec_direct(char* scratch, int64_t scratch_bytes, const TA* a, const TB* b,
                              const ark_matmul_shape& s, const Prologue& prologue,
                              const Epilogue& epilogue) {
  constexpr int chunk = ark_chunk<TB>;
  float* const floats = reinterpret_cast<float*>(scratch);
  const int m = int(s.m), n = int(s.n), k = int(s.k);
  const ark_few_cut cut = {R, ark_depth_in<M, chunk>(scratch_bytes, k)};
  a = gpu_global(a);
  b = gpu_global(b);
  if (s.b_n < s.b_k)
    ark_few_columns<TA, TB, M>(floats, scratch_bytes, a, s.a_m, s.a_k, b, s.b_k, s.b_n, m, n, k,
                               prologue, epilogue);
  else if (ark_is_aligned(b, s.b_n, s.b_k) && k % chunk == 0)
    ark_few_product<TA, M, R, chunk>(floats, scratch_bytes, a, s.a_m, s.a_k, m, n, k, cut,
                                     ark_line_source<TB, true>{b, s.b_k, s.b_n}, prologue,
                                     epilogue);
  else
    ark_few_product<TA, M, R, chunk>(floats, scratch_bytes, a, s.a_m, s.a_k, m, n, k, cut,
                                     ark_line_source<TB, false>{b, s.b_k, s.b_n}, prologue,
                                     epilogue);
}

// m <= M rows times weights that a function computes: operand(k, j).
template <class TA, int M, int R, class Operand, class Prologue, class Epilogue>
ARK_FN void ark_matvec_computed(char* scratch, int64_t scratch_bytes, const TA* a,
                                const ark_matmul_shape& s, const Operand& operand,
                                const Prologue& prologue, const Epilogue& epilogue) {
  const int k = int(s.k);
  ark_few_product<TA, M, R, 4>(reinterpret_cast<float*>(scratch), scratch_bytes, gpu_global(a),
                               s.a_m, s.a_k, int(s.m), int(s.n), k,
                               {R, ark_depth_in<M, 4>(scratch_bytes, k)},
                               ark_computed_source<Operand>{operand}, prologue, epilogue);
}
