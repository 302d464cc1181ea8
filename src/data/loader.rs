//! loader (to be written).
