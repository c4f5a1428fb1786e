// Lay the windows of a convolution out as the columns of a matrix.
template <class Team, class T, int IN, int OUT>
ARK_FN void ark_im2col(const Team& team, const ark_call&, const ark_tile<const T, IN>& input,
                       const ark_tile<T, OUT>& out, int64_t kernel_height, int64_t kernel_width,
                       int64_t stride_height, int64_t stride_width, int64_t pad_height,
                       int64_t pad_width, int64_t dilation_height, int64_t dilation_width) {
  constexpr int C = IN - 3, H = IN - 2, W = IN - 1, K = OUT - 2, L = OUT - 1;
  const int64_t height = input.size(H), width = input.size(W);
  const int64_t reach = dilation_width * (kernel_width - 1) + 1;
  // Windows side by side; those of the tile are `first` to `first + count` of all in order.
  const int64_t across = ark_quotient(width + 2 * pad_width - reach, stride_width) + 1;
  const int64_t first = out.start(L), count = out.size(L);
  const int64_t top = ark_quotient(first, across);
  const int64_t lines = ark_quotient(first + count - 1, across) + 1 - top;
  const int64_t rows = (IN == 4 ? out.size(0) : 1) * out.size(K) * lines;
  ark_each_cell(team, rows, across, [&](int64_t row) {
    const int64_t window_y = top + ark_remainder(row, lines), plane = ark_quotient(row, lines);
    const int64_t k = ark_remainder(plane, out.size(K)), n = ark_quotient(plane, out.size(K));
    const int64_t kernel_x = ark_remainder(out.start(K) + k, kernel_width);
    const int64_t rest = ark_quotient(out.start(K) + k, kernel_width);
    const int64_t c = ark_quotient(rest, kernel_height) - input.start(C);
    const int64_t y = window_y * stride_height - pad_height +
                      ark_remainder(rest, kernel_height) * dilation_height - input.start(H);
    const bool is_inside = y >= 0 && y < height;
    const int64_t x0 = kernel_x * dilation_width - pad_width;
    const int64_t l0 = window_y * across - first;
    const int64_t from_step = input.stride(W), to_step = out.stride(L);
    const T* from = input.data + (IN == 4 ? n * input.stride(0) : 0) + c * input.stride(C) +
                    (is_inside ? y * input.stride(H) : 0);
    T* to = out.data + (OUT == 3 ? n * out.stride(0) : 0) + k * out.stride(K);
    return [=](int64_t j) {
      const int64_t x = x0 + j * stride_width, l = l0 + j;
      if (l < 0 || l >= count) return;
      to[l * to_step] = is_inside && x >= 0 && x < width ? from[x * from_step] : T{};
    };
  });
}
