//! translate_score (to be written).
