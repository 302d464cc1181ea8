//! rope (to be written).
