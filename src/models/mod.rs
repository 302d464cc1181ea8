//! Model graphs with explicit forward and backward, their configuration, adapters and weights.
pub mod config;
pub mod decode;
pub mod linear;
pub mod llama;
pub mod lora;
pub mod m2m100;
pub mod rope_table;
pub mod slots;
mod train_buffers;
pub mod train_step;
pub mod weights;
pub mod xlm_roberta;
