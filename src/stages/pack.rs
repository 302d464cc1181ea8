//! pack (to be written).
