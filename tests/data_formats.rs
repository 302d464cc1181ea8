//! data_formats (to be written).
