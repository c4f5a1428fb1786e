// Multiply with a number.
ARK_FN float ark_scale(float a, float val) { return a * val; }
