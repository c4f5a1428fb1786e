// sqrt(a), correctly rounded: ark_sqrt in base.h.
