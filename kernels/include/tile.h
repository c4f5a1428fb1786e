// Operands as functions of the frame "tile" see them.

// An optional tensor that was left out.
struct ark_absent {};

// The part of a tensor that a task touches. Indices count from the part's first element;
// `start` says where that is in the tensor.
template <class T, int DIMS>
struct ark_tile {
  typedef T type;
  static constexpr int dims = DIMS;
  T* data;
  const int64_t* meta;

  // Operand `operand` of a call; its integers begin at parameter `first`.
  ARK_FN ark_tile(const ark_call& call, int operand, int first)
      : data(static_cast<T*>(call.operands[operand])), meta(call.params + first) {}

  ARK_FN int64_t start(int d) const { return meta[d]; }
  ARK_FN int64_t size(int d) const { return meta[DIMS + d]; }
  ARK_FN int64_t stride(int d) const { return meta[2 * DIMS + d]; }

  // Elements in all dimensions.
  ARK_FN int64_t count() const {
    int64_t product = 1;
    for (int d = 0; d < DIMS; ++d) product *= size(d);
    return product;
  }

  // The element at one index per dimension.
  template <class... Index>
  ARK_FN T& at(Index... index) const {
    static_assert(sizeof...(Index) == DIMS, "one index per dimension");
    const int64_t position[DIMS + 1] = {int64_t(index)..., 0};
    int64_t offset = 0;
    for (int d = 0; d < DIMS; ++d) offset += position[d] * stride(d);
    return data[offset];
  }
};
