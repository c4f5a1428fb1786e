// Products with int8: a panel has 4 elements of each column side by side, so that 16 columns by 4
// rows of K are 64 bytes. They are widened on the way to what the left operand is multiplied as.

#include "include/micro.h"

// What is multiplied where A is T and B int8: fp32, or pairs of bf16.
template <class T>
struct ark_int8_element_of {
  typedef float type;
};

typedef int32_t ark_int_words __attribute__((vector_size(64), aligned(4), may_alias));
typedef float ark_float_words __attribute__((vector_size(64), aligned(4), may_alias));

// Take 16 groups of 4 apart and widen them.
template <>
ARK_FN void ark_matmul_unzip<int8_t>(float (*rows)[ARK_PANEL], const int8_t* groups) {
  const ark_words words = *reinterpret_cast<const ark_words*>(groups);
  ARK_UNROLL
  for (int q = 0; q < 4; ++q) {
    const ark_int_words wide = ark_int_words(words << (24 - 8 * q)) >> 24;
    *reinterpret_cast<ark_float_words*>(rows[q]) = __builtin_convertvector(wide, ark_float_words);
  }
}

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
template <>
struct ark_int8_element_of<ark_bf16> {
  typedef ark_bf16 type;
};

typedef uint8_t ark_bytes __attribute__((vector_size(64), aligned(64), may_alias));

// The bytes of 0 to 127 as bf16.
struct ark_int8_table {
  alignas(64) uint8_t low[128], high[128];
  constexpr ark_int8_table() : low(), high() {
    for (int i = 0; i < 128; ++i) {
      const uint32_t bits = __builtin_bit_cast(uint32_t, float(i));
      low[i] = uint8_t(bits >> 16);
      high[i] = uint8_t(bits >> 24);
    }
  }
};
static constexpr ark_int8_table ARK_INT8_TABLE;
constexpr uint8_t ARK_INT8_SIGN = 0x80, ARK_INT8_128 = 0x43;  // the upper byte of 128

// The table's bytes at 64 indices, whose highest bit counts for nothing.
ARK_FN ark_bytes ark_int8_find(ark_bytes index, const uint8_t (&table)[128]) {
  asm("vpermi2b %2, %1, %0"
      : "+v"(index)
      : "v"(*reinterpret_cast<const ark_bytes*>(table)),
        "m"(*reinterpret_cast<const ark_bytes*>(table + 64)));
  return index;
}

// Widen 16 groups of 4: the first pair of each, then the second.
ARK_FN void ark_int8_pairs(ark_pairs& first, ark_pairs& second, const int8_t* groups) {
  ark_bytes x, size, low, high;
  asm("vmovdqu64 %1, %0" : "=v"(x) : "m"(*reinterpret_cast<const ark_pairs*>(groups)));
  asm("vpabsb %1, %0" : "=v"(size) : "v"(x));
  low = ark_int8_find(size, ARK_INT8_TABLE.low);
  high = ark_int8_find(size, ARK_INT8_TABLE.high) | (x & ARK_INT8_SIGN);
  // The size of -128 has no place in the table, where it gives 0.
  const ark_bytes is_128 = ark_bytes(size == ARK_INT8_SIGN);
  high |= is_128 & ARK_INT8_128;
  ark_bytes left, right;  // columns 0 and 1, 2 and 3 of each 16 bytes
  asm("vpunpcklbw %2, %1, %0" : "=v"(left) : "v"(low), "v"(high));
  asm("vpunpckhbw %2, %1, %0" : "=v"(right) : "v"(low), "v"(high));
  asm("vshufps $0x88, %2, %1, %0" : "=v"(first) : "v"(left), "v"(right));
  asm("vshufps $0xdd, %2, %1, %0" : "=v"(second) : "v"(left), "v"(right));
}

// A has 0 where the depth does not end with a group.
template <int ROWS, int PANELS>
ARK_FN void ark_matmul_products(ark_micro_sums<ROWS, PANELS>& sums,
                                const ark_matmul_block<ark_bf16, int8_t>& block) {
  const ark_bf16* a = block.a;
  const int8_t* b = block.b;
  for (int64_t p = 0; p < block.depth; p += 4, a += 4, b += 4 * ARK_PANEL) {
    ark_matmul_ask<PANELS>(b, block.panel_stride, block.ahead);
    ARK_UNROLL
    for (int v = 0; v < PANELS; ++v) {
      ark_pairs x[2];
      ark_int8_pairs(x[0], x[1], b + v * block.panel_stride);
      ARK_UNROLL
      for (int h = 0; h < 2; ++h)
        ARK_UNROLL
        for (int i = 0; i < ROWS; ++i)
          sums.c[i][v] =
              ark_add_pairs(sums.c[i][v], ark_every_pair(a + i * block.a_stride + 2 * h), x[h]);
    }
  }
}

// Copy a packed panel into one of pairs.
ARK_FN void ark_matmul_widen_panel(ark_bf16* to, const int8_t* from, int64_t depth) {
  ark_pairs* pairs = reinterpret_cast<ark_pairs*>(to);
  for (int64_t p = 0; p < depth; p += 4, from += 4 * ARK_PANEL, pairs += 2)
    ark_int8_pairs(pairs[0], pairs[1], from);
}
#endif

// What is multiplied of A and B, and as what: B, unless it is int8.
template <class TA, class TB>
struct ark_matmul_types {
  typedef TB type;
  typedef ark_matmul_element<TB> element;
};
template <class TA>
struct ark_matmul_types<TA, int8_t> {
  typedef TA type;
  typedef typename ark_int8_element_of<TA>::type element;
};
