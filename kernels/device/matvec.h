// Products of few rows with many columns: each weight is used once or a few times, so that its
// way into the registers decides. A warp owns columns of the result (rows of weights).
//
// The few rows x lie in shared memory as fp32, in an order that a warp reads without bank
// conflicts: chunk q of a row is spread over planes, 4 elements in each.

// A part of the rows of x in shared memory.
struct ark_few_rows {
  const float* x;
  int row_floats;    // from a row to the next
  int plane_floats;  // from a plane to the next
};

// Elements of `chunk` weights that x is padded to.
ARK_FN int ark_padded(int k, int chunk) { return (k + chunk - 1) / chunk * chunk; }

// Where elements 4 * quad .. + 3 of a row of `padded` floats lie.
template <int CHUNK>
ARK_FN int ark_quad_place(int quad, int padded) {
  constexpr int planes = CHUNK / 4;
  return quad % planes * (padded / planes) + quad / planes * 4;
}

// Bring `padded` elements from k0 on of the rows of x into shared memory; by all consumers. Rows
// from m on and elements from k on are zeros.
template <class T, int M, int CHUNK, class Prologue>
ARK_FN void ark_stage_rows(float* to, const T* a, int64_t a_m, int64_t a_k, int m, int k, int k0,
                           int padded, const Prologue& prologue) {
  constexpr int count = ark_chunk<T>;
  const int thread = int(gpu_thread()), threads = int(ARK_CONSUMERS);
  const bool is_aligned = ark_is_aligned(a + k0 * a_k, a_m, a_k) && k - k0 >= padded;
  // How many whole chunks a row has; other elements come one by one.
  const int chunks = is_aligned ? padded / count : 0;
#pragma unroll (M > 1 ? 1 : 2)
  for (int q = thread; q < chunks; q += threads) {
    gpu_vec4 bits[M] = {};
#pragma unroll
    for (int i = 0; i < M; ++i)  // all under way before the first is used
      if (i < m) bits[i] = *reinterpret_cast<const gpu_vec4*>(a + i * a_m + k0 + q * count);
#pragma unroll
    for (int i = 0; i < M; ++i) {
      float x[count] = {};
      if (i < m) {
        ark_unpack<T>(bits[i], x);
#pragma unroll
        for (int e = 0; e < count; ++e) x[e] = prologue(i, k0 + q * count + e, x[e]);
      }
#pragma unroll
      for (int e = 0; e < count; e += 4)
        ark_write_floats(
            to + i * padded + ark_quad_place<CHUNK>((q * count + e) / 4, padded), x + e);
    }
  }
#pragma unroll 1
  for (int quad = chunks * count / 4 + thread; quad < padded / 4; quad += threads) {
#pragma unroll 1
    for (int i = 0; i < M; ++i) {
      float x[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int p = k0 + quad * 4 + e;
        x[e] = i < m && p < k ? prologue(i, p, ark_load<T>(a[i * a_m + p * a_k])) : 0.0f;
      }
      ark_write_floats(to + i * padded + ark_quad_place<CHUNK>(quad, padded), x);
    }
  }
}

// sums[r][i] += weights of column r * row i of x over `chunks` chunks, by one warp; lane l takes
// chunks l, l + 32, ...; load(r, q, w) gives the weights of chunk q.
template <int UNROLL, int R, int M, int CHUNK, class Load>
ARK_FN void ark_few_dot(float (&sums)[R][M], const ark_few_rows& rows, int chunks,
                        const Load& load) {
  // More would take more registers than there are.
#pragma unroll (R * M > 8 ? 1 : UNROLL)
  for (int q = int(gpu_lane()); q < chunks; q += int(GPU_WARP)) {
    float w[R][CHUNK];
#pragma unroll
    for (int r = 0; r < R; ++r) load(r, q, w[r]);
#pragma unroll
    for (int i = 0; i < M; ++i) {
      float x[CHUNK];
#pragma unroll
      for (int plane = 0; plane < CHUNK / 4; ++plane)
        ark_read_floats(rows.x + i * rows.row_floats + plane * rows.plane_floats + q * 4,
                        x + 4 * plane);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int e = 0; e < CHUNK; ++e) sums[r][i] = gpu_fma(w[r][e], x[e], sums[r][i]);
    }
  }
}

// Sum COUNT values over the lanes of a warp, with as few shuffles as can be: lane l gets the sum
// of value l / (32 / COUNT).
template <int COUNT, int BIT = int(GPU_WARP) / 2>
ARK_FN float ark_reduce_values(const float (&values)[COUNT]) {
  static_assert((COUNT & (COUNT - 1)) == 0 && (COUNT <= 2 * BIT || COUNT == 1), "2^n, n <= 5");
  if constexpr (COUNT == 1) {
    float sum = values[0];
#pragma unroll
    for (int bit = BIT; bit > 0; bit /= 2) sum += gpu_shuffle_xor(sum, bit);
    return sum;
  } else {
    // Lanes that differ in this bit swap halves; what each keeps has half the length.
    const bool is_upper = gpu_lane() & BIT;
    float half[COUNT / 2];
#pragma unroll
    for (int i = 0; i < COUNT / 2; ++i) {
      // By value: a choice between array elements would put the array into memory.
      const float low = values[i], high = values[COUNT / 2 + i];
      half[i] = (is_upper ? high : low) + gpu_shuffle_xor(is_upper ? low : high, BIT);
    }
    return ark_reduce_values<COUNT / 2, BIT / 2>(half);
  }
}

// Pass on the sums of columns j, j + 1, ..., of which `columns` are there.
template <int R, int M, class Epilogue>
ARK_FN void ark_few_finish(const float (&sums)[R][M], int j, int columns, int m,
                           const Epilogue& epilogue) {
  constexpr int lanes_per_value = int(GPU_WARP) / (R * M);
  float values[R * M];
#pragma unroll
  for (int v = 0; v < R * M; ++v) values[v] = sums[v / M][v % M];
  const float value = ark_reduce_values<R * M>(values);
  const int index = int(gpu_lane()) / lanes_per_value, r = index / M, i = index % M;
  if (int(gpu_lane()) % lanes_per_value == 0 && r < columns && i < m) epilogue(i, j + r, value);
}

// How columns and k are cut: `columns` per group, one warp each, and `depth` of k per part, a
// multiple of the chunk. Groups of more columns than a warp holds sums of need a single part.
struct ark_few_cut {
  int columns;
  int depth;
};

// Groups are taken 8 at a time, one per warp, and for these the parts one after the other.
// `source` has the weights: acquire(first, part) waits for one part of group first + warp();
// data(...) is where it lies, for load; release(...) ends its use; pass(...) is for a warp that
// has no group.
template <class TA, int M, int R, int CHUNK, class Source, class Prologue, class Epilogue>
ARK_FN void ark_few_product(float* scratch, int64_t scratch_bytes, const TA* a, int64_t a_m,
                            int64_t a_k, int m, int n, int k, const ark_few_cut& cut,
                            const Source& source, const Prologue& prologue,
                            const Epilogue& epilogue) {
  constexpr int planes = CHUNK / 4;
  const int warp = source.warp(), warps = int(ARK_WARPS);
  const int groups = (n + cut.columns - 1) / cut.columns;
  const int parts = k > cut.depth ? (k + cut.depth - 1) / cut.depth : 1;
  const int padded = ark_padded(k, CHUNK);
  const bool is_whole = int64_t(M) * padded * int64_t(sizeof(float)) <= scratch_bytes;
#pragma unroll 1
  for (int first = 0; first < groups; first += warps) {
    const int j0 = (first + warp) * cut.columns;
    const int left = n - j0 < cut.columns ? n - j0 : cut.columns;  // none past the last group
    float sums[R][M] = {};  // even if a part never comes: else they would be kept from before
#pragma unroll 1
    for (int part = 0; part < parts; ++part) {
      const int k0 = part * cut.depth, depth = k - k0 < cut.depth ? k - k0 : cut.depth;
      const int line = is_whole ? padded : ark_padded(depth, CHUNK);
      if (!is_whole || (first == 0 && part == 0)) {
        gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
        ark_stage_rows<TA, M, CHUNK>(scratch, a, a_m, a_k, m, k, is_whole ? 0 : k0, line,
                                     prologue);
        gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
      }
      // A closed ring: the kernel ends, but barriers are still met.
      if (left <= 0) source.pass(first, part);
      if (left <= 0 || !source.acquire(first, part)) continue;
      const char* data = source.data(first, part);
      const ark_few_rows rows = {scratch + (is_whole ? k0 / planes : 0), line, line / planes};
#pragma unroll 1
      for (int c = 0; c < left; c += R) {
        if (part == 0) {
#pragma unroll
          for (int v = 0; v < R * M; ++v) sums[v / M][v % M] = 0;
        }
        const auto load = [&](int r, int q, float (&w)[CHUNK]) {
          // Past the last column that one is read again: its sums go nowhere.
          source.load(data, j0, c + r < left ? c + r : left - 1, k0, depth, q, w);
        };
        const int chunks = ark_padded(depth, CHUNK) / CHUNK;
        ark_few_dot<Source::unroll, R, M, CHUNK>(sums, rows, chunks, load);
        if (c + R >= left) source.release(first, part);
        if (part == parts - 1) ark_few_finish<R, M>(sums, j0 + c, left - c, m, epilogue);
      }
    }
  }
  gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
}

// Weights from the ring, one group's part per slot.
template <class T>
struct ark_ring_source {
  static constexpr int unroll = 2;  // chunks under way
  ark_ring& ring;
  uint32_t slot;  // of the first group's first part
  int parts;

  // Numbers that are equal modulo 8 are the same warp's (ring.h).
  ARK_FN int warp() const { return int(ark_ring_turn(slot)); }
  ARK_FN uint32_t number(int first, int part) const {
    return slot + uint32_t(first * parts + part * int(ARK_RING_WARPS) + warp());
  }
  ARK_FN bool acquire(int first, int part) const {
    return ark_acquire_slot(ring, number(first, part));
  }
  ARK_FN const char* data(int first, int part) const { return ark_slot_data(number(first, part)); }
  ARK_FN void release(int first, int part) const { ark_release_slot(ring, number(first, part)); }
  // Where there are several parts each has 8 slots, some of them empty in the end.
  ARK_FN void pass(int first, int part) const {
    if (parts > 1 && acquire(first, part)) release(first, part);
  }
  ARK_FN void load(const char* data, int, int column, int, int depth, int q,
                   float (&w)[ark_chunk<T>]) const {
    const char* from = data + (column * depth * int(sizeof(T)) + q * 16);
    ark_unpack<T>(*reinterpret_cast<const gpu_vec4*>(from), w);
  }
};

// Weights from global memory, column by column.
template <class T, bool IS_ALIGNED>
struct ark_line_source {
  static constexpr int unroll = IS_ALIGNED ? 2 : 1;
  const T* b;
  int64_t b_k, b_n;

  ARK_FN int warp() const { return int(gpu_warp()); }
  ARK_FN bool acquire(int, int) const { return true; }
  ARK_FN const char* data(int, int) const { return nullptr; }
  ARK_FN void release(int, int) const {}
  ARK_FN void pass(int, int) const {}
  ARK_FN void load(const char*, int j0, int column, int k0, int depth, int q,
                   float (&w)[ark_chunk<T>]) const {
    const int p = q * ark_chunk<T>;
    const T* from = b + (j0 + column) * b_n + (k0 + p) * b_k;
    if constexpr (IS_ALIGNED)
      ark_unpack<T>(*reinterpret_cast<const gpu_vec4*>(from), w);
    else
      ark_unpack<T>(ark_gather_chunk(from, b_k, depth - p), w);
  }
};

// Weights that a function computes: operand(k, j).
template <class Operand>
struct ark_computed_source {
  static constexpr int unroll = 1;
  const Operand& operand;

  ARK_FN int warp() const { return int(gpu_warp()); }
  ARK_FN bool acquire(int, int) const { return true; }
  ARK_FN const char* data(int, int) const { return nullptr; }
  ARK_FN void release(int, int) const {}
  ARK_FN void pass(int, int) const {}
  ARK_FN void load(const char*, int j0, int column, int k0, int depth, int q,
                   float (&w)[4]) const {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      w[e] = 4 * q + e < depth ? operand(k0 + 4 * q + e, j0 + column) : 0.0f;
  }
};

// Add up what all warps, and in these the lanes that are equal modulo `lanes`, have of the columns
// from j0 on, and pass it on. Row by row: scratch holds a line per warp.
template <int M, int CHUNK, class Epilogue>
ARK_FN void ark_columns_finish(float (&sums)[M][CHUNK], float* scratch, int lanes, int j0, int m,
                               int n, const Epilogue& epilogue) {
  constexpr int line = int(GPU_WARP) * CHUNK;
  const int warp = int(gpu_warp()), lane = int(gpu_lane()), thread = int(gpu_thread());
#pragma unroll
  for (int i = 0; i < M; ++i) {
#pragma unroll 1
    for (int bit = lanes; bit < int(GPU_WARP); bit *= 2)
#pragma unroll
      for (int e = 0; e < CHUNK; ++e) sums[i][e] += gpu_shuffle_xor(sums[i][e], bit);
    gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
    if (lane < lanes)
#pragma unroll
      for (int e = 0; e < CHUNK; e += 4)
        ark_write_floats(scratch + warp * line + lane * CHUNK + e, sums[i] + e);
    gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
    if (i >= m) continue;
    // Lanes may have more columns than there are threads.
    for (int c = thread; c < lanes * CHUNK && j0 + c < n; c += int(ARK_CONSUMERS)) {
      float sum = 0;
#pragma unroll
      for (int other = 0; other < int(ARK_WARPS); ++other) sum += scratch[other * line + c];
      epilogue(i, j0 + c, sum);
    }
  }
}

// Weights whose columns are neighbours in memory: lanes own chunks of columns, and what lanes and
// warps are left over share k. x lies in shared memory row by row.
template <class TA, class TB, int M, class Prologue, class Epilogue>
ARK_FN void ark_few_columns(float* scratch, int64_t scratch_bytes, const TA* a, int64_t a_m,
                            int64_t a_k, const TB* b, int64_t b_k, int64_t b_n, int m, int n,
                            int k, const Prologue& prologue, const Epilogue& epilogue) {
  constexpr int chunk = ark_chunk<TB>, line = int(GPU_WARP) * chunk;
  const int lane = int(gpu_lane()), thread = int(gpu_thread());
  const bool is_aligned = ark_is_aligned(b, b_k, b_n);
  const int chunks = (n + chunk - 1) / chunk;
  int lanes = int(GPU_WARP);  // that share one k
  while (lanes / 2 >= chunks && lanes > 1) lanes /= 2;
  float* const x = scratch + int(ARK_WARPS) * line;
  const int room = int(scratch_bytes / int64_t(sizeof(float)) - int(ARK_WARPS) * line) / M / 4 * 4;
  const int depth = ark_padded(k, 4) < room ? ark_padded(k, 4) : room;
#pragma unroll 1
  for (int q0 = 0; q0 < chunks; q0 += lanes) {
    const int j = (q0 + lane % lanes) * chunk;
    float sums[M][chunk] = {};
#pragma unroll 1
    for (int k0 = 0; k0 < k; k0 += depth) {
      if (q0 == 0 || depth < k) {
        gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
        ark_stage_rows<TA, M, 4>(x, a, a_m, a_k, m, k, k0, depth, prologue);
        gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
      }
      const int end = k - k0 < depth ? k - k0 : depth, step = int(ARK_CONSUMERS) / lanes;
#pragma unroll (M > 2 ? 1 : 2)
      for (int p = thread / lanes; p < end; p += step) {
        float w[chunk];
        ark_unpack<TB>(ark_read_chunk(b + (k0 + p) * b_k + j * b_n, b_n, n - j, is_aligned), w);
#pragma unroll
        for (int i = 0; i < M; ++i) {
          const float value = x[i * depth + p];
#pragma unroll
          for (int e = 0; e < chunk; ++e) sums[i][e] = gpu_fma(w[e], value, sums[i][e]);
        }
      }
    }
    ark_columns_finish<M, chunk>(sums, scratch, lanes, q0 * chunk, m, n, epilogue);
  }
  gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS);
}
