//! optimizer (to be written).
