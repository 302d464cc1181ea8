//! early_stopping (to be written).
