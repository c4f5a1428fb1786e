// Tiles of operands in shared memory, as tensor cores read them.

// How a CTA covers M x N outputs: WARPS_M rows of warps, K in steps of 64, STAGES steps in
// shared memory.
template <int M, int N, int WARPS_M, int STAGES>
struct ark_tensor_tile {
  static constexpr int m = M, n = N, k = 64, stages = STAGES;
  static constexpr int warps_m = WARPS_M, warps_n = int(ARK_WARPS) / WARPS_M;
  static constexpr int warp_m = M / warps_m, warp_n = N / warps_n;
  static constexpr int a_bytes = M * k * 2, b_bytes = N * k * 2;
  static constexpr bool can_use_groups =
      M == 128 && (N == 64 || N == 128) && warps_n == 1 && STAGES >= 3;
  // Warp groups want rows to begin at a multiple.
  static constexpr int alignment = can_use_groups ? 1024 : 16;
  static constexpr int64_t scratch_bytes =
      int64_t(STAGES) * (a_bytes + b_bytes) + (alignment - 16);
  static_assert(warp_m % 16 == 0 && warp_n % 16 == 0, "whole fragments");
  static_assert(STAGES >= 2, "one step is copied while another is computed");
};

// Whether warp groups multiply: where there are any, for tiles in which a warp holds 16 rows and
// all columns, as it does then.
template <class Tile, bool A_ALONG_K, bool B_ALONG_K>
#if GPU_HAS_WGMMA
constexpr bool ark_uses_groups = A_ALONG_K && B_ALONG_K && Tile::can_use_groups;
#else
constexpr bool ark_uses_groups = false;
#endif

// Chunks of 8 elements of a row of WIDTH change places from row to row, so that the 8 rows that
// ldmatrix reads, and those that a copy writes, lie in different banks.
template <int WIDTH>
ARK_FN int ark_swizzled(int row, int chunk) {
  constexpr int chunks = WIDTH / 8;
  constexpr int rows_per_line = chunks >= 8 ? 1 : 8 / chunks;
  constexpr int mask = chunks >= 8 ? 7 : chunks - 1;
  return (row * chunks + (chunk ^ ((row / rows_per_line) & mask))) * 16;
}

// One operand of a tile: ROWS x WIDTH elements, the WIDTH ones along the line that is contiguous
// in memory where there is one. Each thread has some chunks of 8.
template <class T, int ROWS, int WIDTH>
struct ark_panel {
  static constexpr int chunks = ROWS * WIDTH / 8;
  static constexpr int per_thread = (chunks + int(ARK_CONSUMERS) - 1) / int(ARK_CONSUMERS);
  const T* data;
  int64_t row_stride, stride;
  int rows, width;  // of the operand, from `data` on
  bool is_whole;    // each chunk is inside or outside, and aligned

  ARK_FN ark_panel(const T* data, int64_t row_stride, int64_t stride, int rows, int width)
      : data(data),
        row_stride(row_stride),
        stride(stride),
        rows(rows),
        width(width),
        is_whole(ark_is_aligned(data, row_stride, stride) && width % 8 == 0) {}

  ARK_FN static int chunk(int i) { return int(gpu_thread()) + i * int(ARK_CONSUMERS); }
  // The last threads may have one less.
  ARK_FN static bool has(int chunk) { return chunks % ARK_CONSUMERS == 0 || chunk < chunks; }
  ARK_FN static int row(int chunk) { return chunk / (WIDTH / 8); }
  ARK_FN static int column(int chunk) { return chunk % (WIDTH / 8) * 8; }
  ARK_FN static char* place(char* to, int chunk) {
    return to + ark_swizzled<WIDTH>(chunk / (WIDTH / 8), chunk % (WIDTH / 8));
  }

  ARK_FN bool is_inside(int row, int column) const { return row < rows && column < width; }
  ARK_FN const T* at(int row, int column) const {
    return data + row * row_stride + column * stride;
  }
  ARK_FN gpu_vec4 gather(int row, int column) const {
    return ark_gather_chunk(at(row, column), stride, row < rows ? width - column : 0);
  }

  // Start bringing the elements from row0, column0 on into shared memory.
  ARK_FN void copy(char* to, int row0, int column0) const {
    if (is_whole) {
#pragma unroll
      for (int i = 0; i < per_thread; ++i) {
        const int c = chunk(i);
        if (!has(c)) break;
        const bool inside = is_inside(row0 + row(c), column0 + column(c));
        gpu_copy16(place(to, c), inside ? at(row0 + row(c), column0 + column(c)) : data, inside);
      }
    } else {
#pragma unroll 1
      for (int c = chunk(0); c < chunks; c += int(ARK_CONSUMERS))
        *reinterpret_cast<gpu_vec4*>(place(to, c)) = gather(row0 + row(c), column0 + column(c));
    }
  }
};

// A panel with a prologue: it comes through registers, read early and stored late.
template <class T, class Panel, bool ALONG_K, class Prologue>
struct ark_staged {
  gpu_vec4 held[Panel::per_thread];

  ARK_FN void read(const Panel& panel, int row0, int column0) {
    if (!panel.is_whole) return;
#pragma unroll
    for (int i = 0; i < Panel::per_thread; ++i) {
      const int c = Panel::chunk(i);
      const int row = row0 + Panel::row(c), column = column0 + Panel::column(c);
      if (Panel::has(c) && panel.is_inside(row, column))
        held[i] = *reinterpret_cast<const gpu_vec4*>(panel.at(row, column));
    }
  }

  ARK_FN void store(const Panel& panel, char* to, int row0, int column0,
                    const Prologue& prologue) const {
    const auto finish = [&](int c, const gpu_vec4& bits) {
      float x[8];
      ark_unpack<T>(bits, x);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int row = row0 + Panel::row(c), column = column0 + Panel::column(c) + e;
        x[e] = panel.is_inside(row, column)
                   ? prologue(ALONG_K ? row : column, ALONG_K ? column : row, x[e])
                   : 0.0f;
      }
      *reinterpret_cast<gpu_vec4*>(Panel::place(to, c)) = {
          ark_pack<T>(x[0], x[1]), ark_pack<T>(x[2], x[3]), ark_pack<T>(x[4], x[5]),
          ark_pack<T>(x[6], x[7])};
    };
    if (panel.is_whole) {
#pragma unroll
      for (int i = 0; i < Panel::per_thread; ++i)
        if (Panel::has(Panel::chunk(i))) finish(Panel::chunk(i), held[i]);
    } else {
#pragma unroll 1
      for (int c = Panel::chunk(0); c < Panel::chunks; c += int(ARK_CONSUMERS))
        finish(c, panel.gather(row0 + Panel::row(c), column0 + Panel::column(c)));
    }
  }
};

// A panel of int8, of which tensor cores read T: it comes through registers too.
template <class T, class Panel>
struct ark_widened {
  uint32_t held[Panel::per_thread][2];

  ARK_FN void read(const Panel& panel, int row0, int column0) {
    if (!panel.is_whole) return;
#pragma unroll
    for (int i = 0; i < Panel::per_thread; ++i) {
      const int c = Panel::chunk(i);
      const int row = row0 + Panel::row(c), column = column0 + Panel::column(c);
      const bool is_here = Panel::has(c) && panel.is_inside(row, column);
      const uint32_t* words = reinterpret_cast<const uint32_t*>(panel.at(row, column));
#pragma unroll
      for (int h = 0; h < 2; ++h) held[i][h] = is_here ? words[h] : 0;
    }
  }

  ARK_FN void store(const Panel& panel, char* to, int row0, int column0) const {
    const auto finish = [&](int c, uint32_t first, uint32_t second) {
      float x[8];
      ark_unpack_word<int8_t>(first, x);
      ark_unpack_word<int8_t>(second, x + 4);
      *reinterpret_cast<gpu_vec4*>(Panel::place(to, c)) = {
          ark_pack<T>(x[0], x[1]), ark_pack<T>(x[2], x[3]), ark_pack<T>(x[4], x[5]),
          ark_pack<T>(x[6], x[7])};
    };
    if (panel.is_whole) {
#pragma unroll
      for (int i = 0; i < Panel::per_thread; ++i)
        if (Panel::has(Panel::chunk(i))) finish(Panel::chunk(i), held[i][0], held[i][1]);
    } else {
#pragma unroll 1
      for (int c = Panel::chunk(0); c < Panel::chunks; c += int(ARK_CONSUMERS)) {
        const gpu_vec4 bits = panel.gather(row0 + Panel::row(c), column0 + Panel::column(c));
        finish(c, bits.x, bits.y);
      }
    }
  }
};

// Where warp groups find an operand's rows: the address, 1024 bytes from 8 rows to the next, and
// that places of 16 bytes change within 128 as `ark_swizzled` has it.
ARK_FN uint64_t ark_group_operand(const char* rows) {
  constexpr uint64_t swizzle_128 = uint64_t(1) << 62, stride = uint64_t(1024 / 16) << 32;
  constexpr uint64_t unused = uint64_t(1) << 16;
  return swizzle_128 | stride | unused | (gpu_shared_address(rows) & 0x3ffff) / 16;
}

// Start to multiply what one stage holds, by warp groups; the step before is done on return.
template <class T, class Tile>
ARK_FN void ark_group_step(float (&sums)[Tile::warp_m / 16][Tile::warp_n / 8][4], const char* a,
                           const char* b) {
#if GPU_HAS_WGMMA
  constexpr int group_bytes = 64 * Tile::k * int(sizeof(T));
  const char* const rows = a + gpu_warp() / 4 * group_bytes;
  gpu_wgmma_hold(sums[0]);
  gpu_wgmma_fence();
#pragma unroll
  for (int k0 = 0; k0 < Tile::k; k0 += 16) {
    const int start = k0 * int(sizeof(T));
    const uint64_t from_a = ark_group_operand(rows + start);
    const uint64_t from_b = ark_group_operand(b + start);
    if constexpr (ark_is_same<T, ark_bf16>)
      gpu_wgmma_bf16<Tile::n>(sums[0], from_a, from_b);
    else
      gpu_wgmma_fp16<Tile::n>(sums[0], from_a, from_b);
  }
  gpu_wgmma_commit();
  gpu_wgmma_wait<1>();
#endif
}

// Before warp groups read what threads and their copies wrote.
template <bool BY_GROUPS>
ARK_FN void ark_publish_step() {
#if GPU_HAS_WGMMA
  if constexpr (BY_GROUPS) gpu_wgmma_publish();
#endif
}

// Before the sums are read.
template <bool BY_GROUPS, int M, int N>
ARK_FN void ark_finish_steps(float (&sums)[M][N][4]) {
#if GPU_HAS_WGMMA
  if constexpr (BY_GROUPS) {
    gpu_wgmma_hold(sums[0]);
    gpu_wgmma_wait<0>();
    gpu_wgmma_hold(sums[0]);
  }
#endif
}

// Multiply what one stage holds, by warps. Fragments of A are 16 x 16, those of B two of 16 x 8.
template <class T, class Tile, bool A_ALONG_K, bool B_ALONG_K>
ARK_FN void ark_tensor_step(float (&sums)[Tile::warp_m / 16][Tile::warp_n / 8][4], const char* a,
                            const char* b) {
  const int lane = int(gpu_lane()), in_8 = lane % 8, second = lane / 8 % 2, third = lane / 16;
  const int i0 = int(gpu_warp()) / Tile::warps_n * Tile::warp_m;
  const int j0 = int(gpu_warp()) % Tile::warps_n * Tile::warp_n;
#pragma unroll
  for (int k0 = 0; k0 < Tile::k; k0 += 16) {
    uint32_t a_part[Tile::warp_m / 16][4];
#pragma unroll
    for (int i = 0; i < Tile::warp_m / 16; ++i) {
      const int row = i0 + 16 * i;
      // Matrices in the order: rows 0-7 and 8-15 of the first 8 k, then of the next.
      if constexpr (A_ALONG_K)
        gpu_ldmatrix4(a_part[i],
                      a + ark_swizzled<Tile::k>(row + 8 * second + in_8, k0 / 8 + third));
      else
        gpu_ldmatrix4_trans(a_part[i],
                            a + ark_swizzled<Tile::m>(k0 + 8 * third + in_8, row / 8 + second));
    }
#pragma unroll
    for (int j = 0; j < Tile::warp_n / 16; ++j) {
      const int column = j0 + 16 * j;
      uint32_t b_part[4];
      // The first and the next 8 k of columns 0-7, then of 8-15.
      if constexpr (B_ALONG_K)
        gpu_ldmatrix4(b_part,
                      b + ark_swizzled<Tile::k>(column + 8 * third + in_8, k0 / 8 + second));
      else
        gpu_ldmatrix4_trans(
            b_part, b + ark_swizzled<Tile::n>(k0 + 8 * second + in_8, column / 8 + third));
      const uint32_t halves[2][2] = {{b_part[0], b_part[1]}, {b_part[2], b_part[3]}};
#pragma unroll
      for (int i = 0; i < Tile::warp_m / 16; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          if constexpr (ark_is_same<T, ark_bf16>)
            gpu_mma_bf16(sums[i][2 * j + h], a_part[i], halves[h]);
          else
            gpu_mma_fp16(sums[i][2 * j + h], a_part[i], halves[h]);
        }
    }
  }
}
