//! Batched generation and scoring.
pub mod answerer;
pub mod engine;
pub mod generation_config;
pub mod hidden;
pub mod kv_cache;
pub mod sampler;
pub mod scoring;
pub mod session;
pub mod text_stream;
