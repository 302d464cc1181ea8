//! dictionary (to be written).
