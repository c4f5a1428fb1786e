// The loops of a tile on a GPU: positions are numbered and spread over threads or warps.

// Parameters as on a CPU: [dims, extent per dim, stride per dim and operand, extra...]; strides
// count elements. The number of dims is known, so that nothing here becomes an array in memory.
template <int DIMS, int OPERANDS>
struct ark_nest {
  const int64_t* extents;

  GPU_FN explicit ark_nest(const ark_call& call) : extents(call.params + 1) {}

  GPU_FN int64_t extra(int i) const { return ark_param(extents + DIMS + DIMS * OPERANDS + i); }

  GPU_FN uint32_t count() const {
    uint32_t product = 1;
#pragma unroll
    for (int d = 0; d < DIMS; ++d) product *= uint32_t(ark_param(extents + d));
    return product;
  }

  // The operands' offsets at a position; tiles have fewer than 2^32 elements.
  GPU_FN void offsets(uint32_t position, int64_t (&offset)[OPERANDS]) const {
#pragma unroll
    for (int k = 0; k < OPERANDS; ++k) offset[k] = 0;
#pragma unroll
    for (int d = DIMS - 1; d >= 0; --d) {
      uint32_t index = position;
      if (d > 0) {
        const uint32_t extent = uint32_t(ark_param(extents + d));
        position /= extent;
        index -= position * extent;
      }
#pragma unroll
      for (int k = 0; k < OPERANDS; ++k)
        offset[k] += int64_t(index) * ark_param(extents + DIMS + d * OPERANDS + k);
    }
  }
};

// Several elements of one operand, moved in as few instructions as their bytes allow.
template <class T, int COUNT>
struct alignas(sizeof(T) * COUNT < 16 ? sizeof(T) * COUNT : 16) ark_elements {
  T value[COUNT];
};

template <int COUNT, class T>
GPU_FN ark_elements<T, COUNT> ark_load_elements(const T* from) {
  return *reinterpret_cast<const ark_elements<T, COUNT>*>(from);
}
template <class T, int COUNT>
GPU_FN void ark_store_elements(T* to, const ark_elements<T, COUNT>& pack) {
  *reinterpret_cast<ark_elements<T, COUNT>*>(to) = pack;
}
