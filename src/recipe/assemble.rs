//! assemble (to be written).
