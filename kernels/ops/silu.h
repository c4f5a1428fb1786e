// a / (1 + exp(-a)); below -150 it is 0.
ARK_FN float ark_silu(float a) { return ark_gate(a < -150.0f ? -150.0f : a, a); }
