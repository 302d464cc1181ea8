//! lora (to be written).
