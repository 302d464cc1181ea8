//! accuracy (to be written).
