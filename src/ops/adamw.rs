//! adamw (to be written).
