// 1 / sqrt(a): ark_rsqrt in math.h.
