//! A file for each family: its names, defaults, fields and arithmetic. A new one is listed here.
use serde_json::{Map, Value};

use super::registry::Family;

mod gemma;
mod gemma2;
mod gemma3;
mod granite;
mod hunyuan;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod smollm3;

/// Every family, in the order of messages.
pub const FAMILIES: &[Family] = &[
    llama::FAMILY,
    mistral::FAMILY,
    mixtral::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen3_moe::FAMILY,
    gemma::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    phi3::FAMILY,
    granite::FAMILY,
    olmo2::FAMILY,
    smollm3::FAMILY,
    hunyuan::FAMILY,
];

/// The fields of a JSON object: what the family's configuration class in transformers has where a file is silent.
fn fields(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value { map } else { Map::new() }
}
