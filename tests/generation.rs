//! generation (to be written).
