//! Model graphs with explicit forward and backward, their configuration, adapters and weights.
pub mod config;
pub mod decode;
pub mod llama;
pub mod lora;
pub mod rope_table;
pub mod weights;
