//! parallel (to be written).
