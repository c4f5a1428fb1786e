// Who runs a task body together: on a CPU one thread, so that most of this is empty.

struct ark_team {
  static constexpr int64_t size = 1;

  ARK_FN int64_t rank() const { return 0; }

  // What every member did before is seen by all of them after.
  ARK_FN void sync() const {}

  // f(i) for all i below n, spread over the members; the calls must not depend on each other.
  // The same i of the same n is the same member's every time.
  template <class F>
  ARK_FN void each(int64_t n, const F& f) const {
    ARK_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) f(i);
  }

  // Combine one value per member with an associative operation; all members get the result.
  template <class T, class Combine>
  ARK_FN T combine(T value, const Combine&) const {
    return value;
  }

  // Combine the values of all members of lower rank, in their order; the first gets `start`.
  template <class T, class Combine>
  ARK_FN T scan_exclusive(T, const Combine&, T start) const {
    return start;
  }
};
