//! Rows, shards, dictionaries, parallel text, tokenizers, templates: no tensors, no device.
pub mod alarms;
pub mod dictionary;
pub mod gguf;
pub mod language_id;
pub mod loader;
pub mod manifest;
pub mod map;
pub mod parallel;
pub mod questions;
pub mod random;
pub mod record;
pub mod row_shard;
pub mod sentences;
pub mod template;
pub mod text_file;
pub mod token_shard;
pub mod tokenizer;
