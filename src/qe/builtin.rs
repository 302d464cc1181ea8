//! builtin (to be written).
