// Elements by the 16 bytes: how products read their operands.

// 16 bytes of elements: to and from the compute type.
template <class T>
constexpr int ark_chunk = 16 / sizeof(T);

// The elements of one word.
template <class T>
ARK_FN void ark_unpack_word(uint32_t word, float* x) {
  if constexpr (sizeof(T) == 4) {
    x[0] = ark_from_bits(word);
  } else if constexpr (sizeof(T) == 2) {
    x[0] = ark_load<T>(__builtin_bit_cast(T, uint16_t(word)));
    x[1] = ark_load<T>(__builtin_bit_cast(T, uint16_t(word >> 16)));
  } else {
    // Conversions of int8 are slow: as the last bits of 2^23 they only need a subtraction.
    static_assert(ark_is_same<T, int8_t>, "int8");
    word ^= 0x80808080;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      x[i] = ark_from_bits(0x4b000000 | ((word >> 8 * i) & 0xff)) - (8388608.0f + 128.0f);
  }
}

template <class T>
ARK_FN void ark_unpack(const gpu_vec4& v, float (&x)[ark_chunk<T>]) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) ark_unpack_word<T>(words[i], x + i * (ark_chunk<T> / 4));
}

template <class T>
ARK_FN uint32_t ark_pack(float lo, float hi);
template <>
ARK_FN uint32_t ark_pack<ark_bf16>(float lo, float hi) {
  return gpu_pack_bf16(lo, hi);
}
template <>
ARK_FN uint32_t ark_pack<ark_fp16>(float lo, float hi) {
  return gpu_pack_fp16(lo, hi);
}

// The bits of element `index` of a line of `count`; zero past its end.
template <class T>
ARK_FN uint32_t ark_bits_or_zero(const T* from, int64_t stride, int index, int count) {
  if (index >= count) return 0;
  if constexpr (sizeof(T) == 4)
    return __builtin_bit_cast(uint32_t, from[index * stride]);
  else if constexpr (sizeof(T) == 2)
    return __builtin_bit_cast(uint16_t, from[index * stride]);
  else
    return __builtin_bit_cast(uint8_t, from[index * stride]);
}

// The 16 bytes of a chunk of which `count` elements are there; the others are zero.
template <class T>
ARK_FN gpu_vec4 ark_gather_chunk(const T* from, int64_t stride, int count) {
  constexpr int per_word = 4 / int(sizeof(T));
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < ark_chunk<T>; ++i)
    words[i / per_word] |= ark_bits_or_zero(from, stride, i, count)
                           << 8 * int(sizeof(T)) * (i % per_word);
  return {words[0], words[1], words[2], words[3]};
}

// Whether every line of `stride` 1 and `pitch` elements apart starts at a multiple of 16 bytes.
template <class T>
ARK_FN bool ark_is_aligned(const T* data, int64_t pitch, int64_t stride) {
  return stride == 1 && pitch % ark_chunk<T> == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

// A chunk of a line: one load where that can be.
template <class T>
ARK_FN gpu_vec4 ark_read_chunk(const T* from, int64_t stride, int count, bool is_aligned) {
  if (is_aligned && count >= ark_chunk<T>) return *reinterpret_cast<const gpu_vec4*>(from);
  return ark_gather_chunk(from, stride, count);
}

// Four floats of shared memory, aligned to 16 bytes.
ARK_FN void ark_read_floats(const float* from, float* x) {
  const gpu_vec4 v = *reinterpret_cast<const gpu_vec4*>(from);
  x[0] = ark_from_bits(v.x);
  x[1] = ark_from_bits(v.y);
  x[2] = ark_from_bits(v.z);
  x[3] = ark_from_bits(v.w);
}
ARK_FN void ark_write_floats(float* to, const float* x) {
  *reinterpret_cast<gpu_vec4*>(to) = {ark_bits(x[0]), ark_bits(x[1]), ark_bits(x[2]),
                                      ark_bits(x[3])};
}
