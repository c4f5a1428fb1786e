// 1 / (1 + exp(-a)): ark_sigmoid in math.h.
