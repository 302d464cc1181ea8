//! Inference forward (to be written).
