//! off_target (to be written).
