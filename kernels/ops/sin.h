// sin(a): ark_sin in math.h.
