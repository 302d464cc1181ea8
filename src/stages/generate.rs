//! generate (to be written).
