//! translate (to be written).
