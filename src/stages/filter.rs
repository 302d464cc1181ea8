//! filter (to be written).
