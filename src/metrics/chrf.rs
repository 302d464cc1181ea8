//! chrf (to be written).
