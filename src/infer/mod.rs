//! Batched generation.
pub mod engine;
pub mod kv_cache;
pub mod sampler;
