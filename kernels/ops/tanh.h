// tanh(a): ark_tanh in math.h.
