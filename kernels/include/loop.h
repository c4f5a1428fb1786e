// The loop nest around every task body: outer dimensions by odometer, the rest by the frame.

// Parameters: [dims, extent per dim, stride per dim and operand, extra...]; strides count
// elements. Walks the outer dimensions of a tile, keeping one offset per operand.
template <int OPERANDS>
struct ark_loop {
  const int64_t* extents;
  const int64_t* strides;
  const int64_t* extra;
  int64_t dims;
  int64_t index[8];
  int64_t offset[OPERANDS];

  ARK_FN explicit ark_loop(const ark_call& call) {
    dims = call.params[0];
    extents = call.params + 1;
    strides = extents + dims;
    extra = strides + dims * OPERANDS;
    for (int64_t d = 0; d < dims; ++d) index[d] = 0;
    for (int k = 0; k < OPERANDS; ++k) offset[k] = 0;
  }

  template <class T>
  ARK_FN T* at(const ark_call& call, int operand) const {
    return ark_operand<T>(call, operand) + offset[operand];
  }

  // Step to the next position; false after the last one.
  ARK_FN bool next() {
    for (int64_t d = dims - 1; d >= 0; --d) {
      const int64_t* step = strides + d * OPERANDS;
      for (int k = 0; k < OPERANDS; ++k) offset[k] += step[k];
      if (++index[d] < extents[d]) return true;
      for (int k = 0; k < OPERANDS; ++k) offset[k] -= step[k] * extents[d];
      index[d] = 0;
    }
    return false;
  }
};
