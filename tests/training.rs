//! training (to be written).
