//! command (to be written).
