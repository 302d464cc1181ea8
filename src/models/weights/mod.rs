//! Checkpoint formats in and out.
pub mod export;
pub mod gguf;
pub mod peft;
pub mod safetensors;
