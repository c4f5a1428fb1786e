// Divide `input` by `other`, broadcasting as NumPy does.
ARK_FN float ark_div(float a, float b) { return ark_divide(a, b); }
