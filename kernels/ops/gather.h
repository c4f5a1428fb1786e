// Take for each element the one that an index names along a dimension.
template <class Team, class T, int DIMS>
ARK_FN void ark_gather(const Team& team, const ark_call& call,
                       const ark_tile<const T, DIMS>& input,
                       const ark_tile<const int32_t, DIMS>& index, const ark_tile<T, DIMS>& out,
                       int64_t axis) {
  constexpr int last = DIMS - 1;
  const int along = int(axis < 0 ? axis + DIMS : axis);
  const int64_t limit = input.size(along), step = input.stride(along);
  const int64_t input_step = along == last ? 0 : input.stride(last);
  const int64_t index_step = index.stride(last), out_step = out.stride(last);
  ark_each_row(team, out, [&](ark_position<DIMS> at) {
    const int32_t* which = index.data + at.in(index);
    T* to = out.data + at.in(out);
    at.index[along] = 0;
    const T* from = input.data + at.in(input);
    return [=, &call](int64_t j) {
      const int64_t i = which[j * index_step];
      if (ARK_LIKELY(i >= 0 && i < limit))
        to[j * out_step] = from[j * input_step + i * step];
      else
        ark_fail(call, i, limit);
    };
  });
}
