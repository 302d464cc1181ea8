//! swiglu (to be written).
