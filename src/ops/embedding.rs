//! embedding (to be written).
