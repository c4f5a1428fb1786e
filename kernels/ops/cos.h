// cos(a): ark_cos in math.h.
