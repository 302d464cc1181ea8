//! html (to be written).
