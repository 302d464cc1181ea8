//! Decoder-only transformers: configuration, weights, adapters, and the block forward and backward.
pub mod config;
pub mod decode;
pub mod linear;
pub mod lora;
pub mod rope_table;
mod saved;
pub mod train_step;
pub mod weight;
pub mod weights;
