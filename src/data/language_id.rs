//! language_id (to be written).
