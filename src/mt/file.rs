//! file (to be written).
