//! A file for each family: its names, defaults, fields and arithmetic.
pub mod llama;
pub mod mistral;
