//! text_file (to be written).
