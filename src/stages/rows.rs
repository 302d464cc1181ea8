//! rows (to be written).
