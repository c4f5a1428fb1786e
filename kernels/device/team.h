// Who runs a task body together: one thread, a warp, or all that compute in a CTA.

// Values of several words travel between lanes word by word, small integers as words.
template <class T>
struct ark_words {
  uint32_t word[sizeof(T) / 4];
};

template <class T>
GPU_FN T ark_shuffle(T value, int lane) {
  if constexpr (sizeof(T) < 4) {
    return T(gpu_shuffle(int32_t(value), lane));
  } else {
    static_assert(sizeof(T) % 4 == 0, "whole words");
    ark_words<T> words = __builtin_bit_cast(ark_words<T>, value);
#pragma unroll
    for (uint32_t i = 0; i < sizeof(T) / 4; ++i) words.word[i] = gpu_shuffle(words.word[i], lane);
    return __builtin_bit_cast(T, words);
  }
}

// Combine one value per lane in the order of the lanes; all lanes get the result.
template <class T, class Combine>
GPU_FN T ark_warp_combine(T value, const Combine& combine) {
  const int lane = int(gpu_lane());
#pragma unroll
  for (int step = 1; step < int(GPU_WARP); step *= 2) {
    const T other = ark_shuffle(value, lane ^ step);
    value = lane & step ? combine(other, value) : combine(value, other);
  }
  return value;
}

// Combine the values of all lanes before this one, after `first`.
template <class T, class Combine>
GPU_FN T ark_warp_scan(T value, T first, const Combine& combine) {
  const int lane = int(gpu_lane());
#pragma unroll
  for (int step = 1; step < int(GPU_WARP); step *= 2) {
    const T other = ark_shuffle(value, lane < step ? lane : lane - step);
    if (lane >= step) value = combine(other, value);
  }
  const T before = ark_shuffle(value, lane == 0 ? 0 : lane - 1);
  return lane == 0 ? first : combine(first, before);
}

struct ark_alone {
  static constexpr int64_t size = 1;
  GPU_FN int64_t rank() const { return 0; }
  GPU_FN void sync() const {}
  template <class F>
  GPU_FN void each(int64_t n, const F& f) const {
#pragma unroll 1
    for (int64_t i = 0; i < n; ++i) f(i);
  }
  template <class T, class Combine>
  GPU_FN T combine(T value, const Combine&) const {
    return value;
  }
  template <class T, class Combine>
  GPU_FN T scan_exclusive(T, const Combine&, T first) const {
    return first;
  }
};

struct ark_warp {
  static constexpr int64_t size = GPU_WARP;
  GPU_FN int64_t rank() const { return gpu_lane(); }
  GPU_FN void sync() const { gpu_sync_warp(); }
  template <class F>
  GPU_FN void each(int64_t n, const F& f) const {
#pragma unroll 1
    for (int64_t i = gpu_lane(); i < n; i += GPU_WARP) f(i);
  }
  template <class T, class Combine>
  GPU_FN T combine(T value, const Combine& combine) const {
    return ark_warp_combine(value, combine);
  }
  template <class T, class Combine>
  GPU_FN T scan_exclusive(T value, const Combine& combine, T first) const {
    return ark_warp_scan(value, first, combine);
  }
};

struct ark_team {
  static constexpr int64_t size = ARK_CONSUMERS;
  GPU_FN int64_t rank() const { return gpu_thread(); }
  GPU_FN void sync() const { gpu_barrier(ARK_COMPUTE_BARRIER, ARK_CONSUMERS); }
  template <class F>
  GPU_FN void each(int64_t n, const F& f) const {
#pragma unroll 1
    for (int64_t i = gpu_thread(); i < n; i += ARK_CONSUMERS) f(i);
  }

  // One value per warp to all threads.
  template <class T>
  GPU_FN T* exchange(T value) const {
    static_assert(sizeof(T) <= 16, "two words per warp");
    T* values = reinterpret_cast<T*>(ark_here().exchange);
    sync();  // nobody reads the values of the time before any more
    if (gpu_lane() == 0) values[gpu_warp()] = value;
    sync();
    return values;
  }
  template <class T, class Combine>
  GPU_FN T combine(T value, const Combine& combine) const {
    const T* values = exchange(ark_warp_combine(value, combine));
    T result = values[0];
#pragma unroll
    for (uint32_t w = 1; w < ARK_WARPS; ++w) result = combine(result, values[w]);
    return result;
  }
  template <class T, class Combine>
  GPU_FN T scan_exclusive(T value, const Combine& combine, T first) const {
    const T* values = exchange(ark_warp_combine(value, combine));
    T before = first;
#pragma unroll 1
    for (uint32_t w = 0; w < gpu_warp(); ++w) before = combine(before, values[w]);
    return ark_warp_scan(value, before, combine);
  }
};

// row[j] = f(j) for n elements; some are under way before the first of them is stored.
template <class Team, class F>
GPU_FN void ark_bring_row(const Team& team, float* row, int64_t n, const F& f) {
  constexpr int ahead = 8;
#pragma unroll 1
  for (int64_t first = team.rank(); first < n; first += ahead * Team::size) {
    float x[ahead];
#pragma unroll
    for (int u = 0; u < ahead; ++u) {
      const int64_t j = first + u * Team::size;
      x[u] = j < n ? f(j) : 0.0f;
    }
#pragma unroll
    for (int u = 0; u < ahead; ++u)
      if (first + u * Team::size < n) row[first + u * Team::size] = x[u];
  }
}

// place(j) = make(j) for n elements; some are made before the first of them is stored, so that what
// they are made of is under way together. make(j) reads place(j) at most.
template <class Team, class Make, class Place>
GPU_FN void ark_put_row(const Team& team, int64_t n, const Make& make, const Place& place) {
  constexpr int ahead = 4;
#pragma unroll 1
  for (int64_t first = team.rank(); first < n; first += ahead * Team::size) {
    decltype(make(first)) y[ahead];
#pragma unroll
    for (int u = 0; u < ahead; ++u) {
      const int64_t j = first + u * Team::size;
      y[u] = make(j < n ? j : first);
    }
#pragma unroll
    for (int u = 0; u < ahead; ++u)
      if (first + u * Team::size < n) place(first + u * Team::size) = y[u];
  }
}
