// exp(a): ark_exp in math.h.
