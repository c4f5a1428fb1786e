// Merge what parts of the keys gave for each row: sums over values, the largest score, the total. A
// warp has a row, its lanes parts and then columns.

// What the parts of one row weigh: 32 of them at a time, a lane each.
struct ark_merged_row {
  const float* tops;
  const float* totals;
  int64_t step;
  int count;

  ARK_FN float top() const {
    float top = -ARK_INFINITY;
#pragma unroll 1
    for (int s = int(gpu_lane()); s < count; s += int(GPU_WARP))
      top = ark_larger{}(top, tops[s * step]);
    return gpu_warp_reduce(top, ark_larger{});
  }
  // A part that saw nothing has minus infinity and a total of 0.
  ARK_FN float weight(int first, float top) const {
    const int s = first + int(gpu_lane());
    return s >= count || totals[s * step] == 0 ? 0.0f : ark_exp(tops[s * step] - top);
  }
  ARK_FN float total(float top) const {
    float total = 0;
#pragma unroll 1
    for (int first = 0; first < count; first += int(GPU_WARP)) {
      const int s = first + int(gpu_lane());
      total += weight(first, top) * (s < count ? totals[s * step] : 0.0f);
    }
    return gpu_warp_reduce(total, ark_plus{});
  }
};

template <class Team, class T>
ARK_FN void ark_attention_merge(const Team&, const ark_call&, const ark_tile<const float, 5>& parts,
                                const ark_tile<T, 4>& out) {
  // Columns that a lane sums up at a time: some loads are under way.
  constexpr int columns = 4, lanes = int(GPU_WARP);
  const int64_t step = parts.stride(0), stride = parts.stride(4), out_stride = out.stride(3);
  const int count = int(parts.size(0)), width = int(out.size(3));
  const int rows = int(ark_quotient(out.count(), width));
#pragma unroll 1
  for (int r = int(gpu_warp()); r < rows; r += int(ARK_WARPS)) {
    const ark_position<4> at(out, r);
    const float* const part = &parts.at(0, at.index[0], at.index[1], at.index[2], 0);
    T* const to = out.data + at.in(out);
    const float* const tops = part + width * stride;
    const ark_merged_row row = {tops, tops + stride, step, count};
    const float top = row.top(), total = row.total(top);
    const float scale = total == 0 ? 0.0f : 1.0f / total;
#pragma unroll 1
    for (int d0 = int(gpu_lane()); d0 - int(gpu_lane()) < width; d0 += columns * lanes) {
      float sums[columns] = {};
#pragma unroll 1
      for (int first = 0; first < count; first += lanes) {
        const float weights = row.weight(first, top);
        const int some = count - first < lanes ? count - first : lanes;
#pragma unroll 2
        for (int s = 0; s < some; ++s) {
          const float weight = gpu_shuffle(weights, s);
          const float* const from = part + (first + s) * step;
#pragma unroll
          for (int c = 0; c < columns; ++c)
            if (d0 + c * lanes < width) sums[c] += weight * from[(d0 + c * lanes) * stride];
        }
      }
#pragma unroll
      for (int c = 0; c < columns; ++c)
        if (d0 + c * lanes < width)
          to[(d0 + c * lanes) * out_stride] = ark_store<T>(sums[c] * scale);
    }
  }
}
