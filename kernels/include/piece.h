// Pieces of rows on a CPU. 16-bit floats are widened to fp32, and rounded back, a piece at a time:
// the loops in between are plain fp32, which vectorizes. Results that are much larger than the
// caches are written past them.

// For loops over values that registers keep: without it GCC puts them into memory.
#if defined(__clang__)
#define ARK_UNROLL _Pragma("unroll")
#else
#define ARK_UNROLL _Pragma("GCC unroll 16")
#endif

// Elements of a piece: those of several operands stay in the first cache.
constexpr int64_t ARK_PIECE = 512;
ARK_FN int64_t ark_piece(int64_t left) { return left < ARK_PIECE ? left : ARK_PIECE; }

constexpr int64_t ARK_LINE_BYTES = 64;  // of a cache

// GCC 12 converts fp16 one by one where the processor has no arithmetic for it.
#if !defined(__clang__) && defined(__F16C__)
#define ARK_CONVERTS_FP16
#if defined(__AVX512F__)
constexpr int64_t ARK_CONVERTED = 16;
typedef short ark_halves __attribute__((vector_size(32), aligned(2), may_alias));
typedef float ark_wholes __attribute__((vector_size(64), aligned(4)));
ARK_FN ark_wholes ark_widened(ark_halves x) {
  typedef float result __attribute__((vector_size(64)));
  return __builtin_ia32_vcvtph2ps512_mask(x, result{}, 0xffff, 4);  // as rounding is set
}
ARK_FN ark_halves ark_narrowed(ark_wholes x) {
  typedef short result __attribute__((vector_size(32)));
  return __builtin_ia32_vcvtps2ph512_mask(x, 0, result{}, 0xffff);  // to nearest even
}
#else
constexpr int64_t ARK_CONVERTED = 8;
typedef short ark_halves __attribute__((vector_size(16), aligned(2), may_alias));
typedef float ark_wholes __attribute__((vector_size(32), aligned(4)));
ARK_FN ark_wholes ark_widened(ark_halves x) { return __builtin_ia32_vcvtph2ps256(x); }
ARK_FN ark_halves ark_narrowed(ark_wholes x) {
  return __builtin_ia32_vcvtps2ph256(x, 0);  // to nearest even
}
#endif
#endif

// 16 bf16 at a time: widened, and rounded as ark_store does. GCC 12 does not find such loops.
typedef uint32_t ark_words __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t ark_upper_halves __attribute__((vector_size(32), aligned(2), may_alias));
ARK_FN void ark_load_bf16s(float* to, const ark_bf16* from) {
  const ark_upper_halves bits = *reinterpret_cast<const ark_upper_halves*>(from);
  *reinterpret_cast<ark_words*>(to) = __builtin_convertvector(bits, ark_words) << 16;
}
ARK_FN void ark_store_bf16s(ark_bf16* to, const float* from) {
  const ark_words bits = *reinterpret_cast<const ark_words*>(from);
  const ark_words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = (bits >> 16) | 0x40;
  const ark_words result = (bits & 0x7fffffff) > 0x7f800000 ? nan : rounded;
  *reinterpret_cast<ark_upper_halves*>(to) = __builtin_convertvector(result, ark_upper_halves);
}

// Widen n elements to fp32.
template <class T>
ARK_PART void ark_widen(float* to, const T* from, int64_t n) {
  int64_t i = 0;
#if defined(ARK_CONVERTS_FP16)
  if constexpr (ark_is_same<T, ark_fp16>)
    for (; i + ARK_CONVERTED <= n; i += ARK_CONVERTED)
      *reinterpret_cast<ark_wholes*>(to + i) =
          ark_widened(*reinterpret_cast<const ark_halves*>(from + i));
#endif
  if constexpr (ark_is_same<T, ark_bf16>)
    for (; i + 16 <= n; i += 16) ark_load_bf16s(to + i, from + i);
  const int64_t rest = n - i;
  ARK_INDEPENDENT
  for (int64_t j = 0; j < rest; ++j) to[i + j] = ark_load<T>(from[i + j]);
}

// The same of elements that are `stride` apart.
template <class T>
ARK_FN void ark_load_row(float* to, const T* from, int64_t n, int64_t stride) {
  if (stride == 1) return ark_widen(to, from, n);
  ARK_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) to[i] = ark_load<T>(from[i * stride]);
}

// Round n values to elements, once.
template <class T>
ARK_PART void ark_narrow(T* to, const float* from, int64_t n) {
  int64_t i = 0;
#if defined(ARK_CONVERTS_FP16)
  if constexpr (ark_is_same<T, ark_fp16>)
    for (; i + ARK_CONVERTED <= n; i += ARK_CONVERTED)
      *reinterpret_cast<ark_halves*>(to + i) =
          ark_narrowed(*reinterpret_cast<const ark_wholes*>(from + i));
#endif
  if constexpr (ark_is_same<T, ark_bf16>)
    for (; i + 16 <= n; i += 16) ark_store_bf16s(to + i, from + i);
  const int64_t rest = n - i;
  ARK_INDEPENDENT
  for (int64_t j = 0; j < rest; ++j) to[i + j] = ark_store<T>(from[i + j]);
}

// Write a vector past the caches, where the machine can.
#if defined(__AVX512F__)
typedef float ark_line_part __attribute__((vector_size(64), may_alias));
#elif defined(__AVX__)
typedef float ark_line_part __attribute__((vector_size(32), may_alias));
#else
typedef float ark_line_part __attribute__((vector_size(16), may_alias));
#endif
typedef ark_line_part ark_line_part_anywhere __attribute__((aligned(1)));
ARK_FN void ark_write_past(ark_line_part* to, ark_line_part value) {
#if defined(__clang__)
  __builtin_nontemporal_store(value, to);
#elif defined(__AVX512F__)
  __builtin_ia32_movntps512(reinterpret_cast<float*>(to), value);
#elif defined(__AVX__)
  __builtin_ia32_movntps256(reinterpret_cast<float*>(to), value);
#elif defined(__SSE__)
  __builtin_ia32_movntps(reinterpret_cast<float*>(to), value);
#else
  *to = value;
#endif
}

// Copy memory past the caches; before others may read it comes ark_settle().
ARK_PART void ark_copy_past(void* to, const void* from, int64_t bytes) {
  char* target = static_cast<char*>(to);
  const char* source = static_cast<const char*>(from);
  const int64_t ahead = -reinterpret_cast<int64_t>(target) & (ARK_LINE_BYTES - 1);
  const int64_t head = ahead < bytes ? ahead : bytes;
  for (int64_t i = 0; i < head; ++i) target[i] = source[i];
  // Whole lines: part of one would be merged with the rest in memory.
  const int64_t end = head + (bytes - head) / ARK_LINE_BYTES * ARK_LINE_BYTES;
  for (int64_t i = head; i < end; i += sizeof(ark_line_part))
    ark_write_past(reinterpret_cast<ark_line_part*>(target + i),
                   *reinterpret_cast<const ark_line_part_anywhere*>(source + i));
  for (int64_t i = end; i < bytes; ++i) target[i] = source[i];
}

// What was written past the caches comes before all that this thread writes next.
ARK_FN void ark_settle() {
#if defined(__SSE__)
  __builtin_ia32_sfence();
#endif
}

// Write a piece past the caches: values in the type of arithmetic, or elements.
template <class T>
ARK_FN void ark_narrow_past(T* to, const ark_compute<T>* from, int64_t n) {
  if constexpr (sizeof(T) == sizeof(ark_compute<T>)) {
    ark_copy_past(to, from, n * int64_t(sizeof(T)));
  } else {
    T piece[ARK_PIECE];
    ark_narrow(piece, from, n);
    ark_copy_past(to, piece, n * int64_t(sizeof(T)));
  }
}
