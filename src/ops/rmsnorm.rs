//! rmsnorm (to be written).
