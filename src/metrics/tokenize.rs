//! tokenize (to be written).
