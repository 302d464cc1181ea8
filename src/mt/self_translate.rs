//! self_translate (to be written).
