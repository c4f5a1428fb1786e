// Products of rows with panels in the tile registers of AMX. A panel of 16-bit pairs is what a tile
// holds of B: 16 columns by 2 rows of K.

#include "include/micro.h"

#if defined(__AMX_TILE__)
#define ARK_AMX

// What the tile registers hold: rows, and bytes of each. Laid out as the processor reads it.
struct ark_amx_shape {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(ark_amx_shape) == 64);

// Give the registers their shapes, and zeros.
ARK_FN void ark_amx_configure(const ark_amx_shape& shape) {
  asm volatile("ldtilecfg %0" ::"m"(shape));
}
ARK_FN void ark_amx_release() { asm volatile("tilerelease"); }
template <int TILE>
ARK_FN void ark_amx_clear() {
  asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
}
template <int TILE>
ARK_FN void ark_amx_load(const void* from, int64_t pitch_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(pitch_bytes), "i"(TILE) : "memory");
}
template <int TILE>
ARK_FN void ark_amx_store(void* to, int64_t pitch_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(pitch_bytes), "i"(TILE) : "memory");
}

// SUMS += A * B, of pairs.
template <int SUMS, int A, int B>
ARK_FN void ark_amx_add(ark_bf16) {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(A), "i"(B));
}
template <int SUMS, int A, int B>
ARK_FN void ark_amx_add(ark_fp16) {
  // tdpfp16ps, byte by byte: assemblers want a flag for it that older compilers don't know.
  asm volatile(".byte 0xc4, 0xe2, %c0, 0x5c, %c1" ::"i"((~B & 15) << 3 | 3),
               "i"(0xc0 | SUMS << 3 | A));
}

// Some systems don't list AMX-FP16 among the features; the processor does.
ARK_COLD bool ark_amx_finds_fp16() {
  uint32_t a = 7, b, c = 1, d;
  asm("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return a >> 21 & 1;
}
static const bool ark_amx_has_fp16 = ark_amx_finds_fp16();
#endif

#if defined(ARK_AMX)
constexpr int ARK_AMX_ROWS = 16;
// Elements of K that one row of a tile has.
constexpr int64_t ARK_AMX_DEPTH = 32;

template <class T>
constexpr bool ark_amx_multiplies = ark_is_same<T, ark_bf16> || ark_is_same<T, ark_fp16>;
template <class T>
ARK_FN bool ark_amx_has() {
  return ark_is_same<T, ark_bf16> || ark_amx_has_fp16;
}

// Tiles 0 to 3 are sums of two pieces of rows by two panels, 4 and 5 those rows of A, 6 and 7 the
// panels, `step` elements of K at a time.
ARK_FN ark_amx_shape ark_amx_shape_of(int64_t top, int64_t bottom, int64_t step) {
  ark_amx_shape shape = {};
  shape.palette = 1;
  const int64_t rows[8] = {top, top, bottom, bottom, top, bottom, step / 2, step / 2};
  for (int i = 0; i < 8; ++i) {
    const int64_t bytes = i == 4 || i == 5 ? 2 * step : 4 * ARK_PANEL;
    shape.rows[i] = uint8_t(rows[i]);
    shape.row_bytes[i] = uint16_t(rows[i] ? bytes : 0);
  }
  return shape;
}

template <int TILE>
ARK_FN void ark_amx_begin(const float* sums, bool is_first) {
  if (is_first)
    ark_amx_clear<TILE>();
  else
    ark_amx_load<TILE>(sums, ARK_COLUMNS * sizeof(float));
}
template <int TILE>
ARK_FN void ark_amx_end(float* sums) {
  ark_amx_store<TILE>(sums, ARK_COLUMNS * sizeof(float));
}

// sums[rows][PANELS * 16] = a * b or +=, of `top` rows and, with HAS_BOTTOM, some below them.
template <int PANELS, bool HAS_BOTTOM, class T>
ARK_FN void ark_amx_micro(float* to, const ark_matmul_block<T>& block, int64_t top, int64_t step,
                          bool is_first) {
  constexpr bool is_wide = PANELS > 1, has_last = is_wide && HAS_BOTTOM;
  const int64_t pitch = block.a_stride * sizeof(T);
  float* below = to + top * ARK_COLUMNS;
  ark_amx_begin<0>(to, is_first);
  if constexpr (is_wide) ark_amx_begin<1>(to + ARK_PANEL, is_first);
  if constexpr (HAS_BOTTOM) ark_amx_begin<2>(below, is_first);
  if constexpr (has_last) ark_amx_begin<3>(below + ARK_PANEL, is_first);
  const T *a = block.a, *b = block.b;
  for (int64_t p = 0; p < block.depth; p += step, a += step, b += step * ARK_PANEL) {
    ark_amx_load<6>(b, 2 * ARK_PANEL * sizeof(T));
    if constexpr (is_wide) ark_amx_load<7>(b + block.panel_stride, 2 * ARK_PANEL * sizeof(T));
    ark_amx_load<4>(a, pitch);
    ark_amx_add<0, 4, 6>(T());
    if constexpr (is_wide) ark_amx_add<1, 4, 7>(T());
    if constexpr (HAS_BOTTOM) ark_amx_load<5>(a + top * block.a_stride, pitch);
    if constexpr (HAS_BOTTOM) ark_amx_add<2, 5, 6>(T());
    if constexpr (has_last) ark_amx_add<3, 5, 7>(T());
  }
  ark_amx_end<0>(to);
  if constexpr (is_wide) ark_amx_end<1>(to + ARK_PANEL);
  if constexpr (HAS_BOTTOM) ark_amx_end<2>(below);
  if constexpr (has_last) ark_amx_end<3>(below + ARK_PANEL);
}

template <bool HAS_BOTTOM, class T>
ARK_FN void ark_amx_panels(float* to, ark_matmul_block<T> block, int64_t panels, int64_t top,
                           int64_t step, bool is_first) {
  for (; panels > 1; panels -= 2, to += 2 * ARK_PANEL, block.b += 2 * block.panel_stride)
    ark_amx_micro<2, HAS_BOTTOM>(to, block, top, step, is_first);
  if (panels > 0) ark_amx_micro<1, HAS_BOTTOM>(to, block, top, step, is_first);
}

// All rows, for a depth that is a multiple of the step, or less.
template <class T>
ARK_FN void ark_amx_rows(float* to, const ark_matmul_block<T>& block, int64_t rows, int64_t panels,
                         int64_t step, bool is_first) {
  const int64_t tiles = (rows + 2 * ARK_AMX_ROWS - 1) / (2 * ARK_AMX_ROWS);
  int64_t configured = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = rows * tile / tiles, count = rows * (tile + 1) / tiles - first;
    const int64_t top = (count + 1) / 2, bottom = count - top;
    if (count != configured) ark_amx_configure(ark_amx_shape_of(top, bottom, step));
    configured = count;
    ark_matmul_block<T> part = block;
    part.a = block.a + first * block.a_stride;
    if (bottom > 0)
      ark_amx_panels<true>(to + first * ARK_COLUMNS, part, panels, top, step, is_first);
    else
      ark_amx_panels<false>(to + first * ARK_COLUMNS, part, panels, top, step, is_first);
  }
}

// to[rows][columns] of ARK_COLUMNS = a * b or +=; A has 0 where the depth is odd.
template <class T>
ARK_PART void ark_amx_sums(float* to, const ark_matmul_block<T>& block, int64_t rows,
                           int64_t columns, bool is_first) {
  const int64_t panels = (columns + ARK_PANEL - 1) / ARK_PANEL;
  ark_matmul_block<T> whole = block, rest = block;
  whole.depth = block.depth / ARK_AMX_DEPTH * ARK_AMX_DEPTH;
  rest.depth -= whole.depth;
  rest.a += whole.depth;
  rest.b += whole.depth * ARK_PANEL;
  if (whole.depth > 0) ark_amx_rows(to, whole, rows, panels, ARK_AMX_DEPTH, is_first);
  if (whole.depth == 0 || rest.depth > 0) {
    const int64_t step = rest.depth > 0 ? ark_whole(rest.depth, 2) : 2;
    ark_amx_rows(to, rest, rows, panels, step, is_first && whole.depth == 0);
  }
  ark_amx_release();
}
#else
template <class T>
constexpr bool ark_amx_multiplies = false;
template <class T>
ARK_FN bool ark_amx_has() {
  return false;
}
#endif
