//! Decoder-only transformers: families and their configuration, weights, adapters, and the block forward and backward.
mod acts;
mod block;
pub mod config;
pub mod decode;
mod families;
mod fields;
mod grads;
pub mod ids;
pub mod linear;
pub mod lora;
pub mod registry;
pub mod rope_table;
mod saved;
pub mod spec;
pub mod train_step;
pub mod tree;
pub mod weight;
pub mod weights;
