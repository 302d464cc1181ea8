//! A file for each family: its names, defaults, fields and arithmetic.
use serde_json::{Map, Value};

pub mod gemma;
pub mod gemma2;
pub mod gemma3;
pub mod llama;
pub mod mistral;
pub mod qwen2;
pub mod qwen3;

/// The fields of a JSON object.
fn fields(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value { map } else { Map::new() }
}
