//! grad_norm (to be written).
