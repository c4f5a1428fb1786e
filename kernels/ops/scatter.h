// Write a tensor into another one, from a position on along a dimension.
template <class Team, class T, int DIMS, int POSITIONS>
ARK_FN void ark_scatter(const Team& team, const ark_call& call,
                        const ark_tile<const T, DIMS>& input,
                        const ark_tile<const T, DIMS>& source,
                        const ark_tile<const int32_t, POSITIONS>& position,
                        const ark_tile<T, DIMS>& out, int64_t axis) {
  constexpr int last = DIMS - 1;
  const int along = int(axis < 0 ? axis + DIMS : axis);
  const int64_t highest = out.size(along) - source.size(along);
  const int64_t positions = position.count();
  for (int64_t row = 0; row < positions; ++row) {
    const int64_t first = ark_of_row(position, row);
    if (ARK_LIKELY(first >= 0 && first <= highest)) continue;
    ark_fail(call, first, highest);
    return;
  }
  // A state is written in place: all but the part stays as it is.
  if (input.data != out.data) {
    ark_copy_tile(team, input, out);
    team.sync();
  }
  const int64_t source_step = source.stride(last), out_step = out.stride(last);
  ark_each_row(team, source, [&](const ark_position<DIMS>& at) {
    const int64_t first = ark_of_row(position, at.index[0]);
    const T* from = source.data + at.in(source);
    T* to = out.data + at.in(out) + first * out.stride(along);
    return [=](int64_t j) { to[j * out_step] = from[j * source_step]; };
  });
}
