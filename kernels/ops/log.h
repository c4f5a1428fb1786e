// log(a): ark_log in math.h.
