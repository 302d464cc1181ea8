//! data_stages (to be written).
