//! Mistral: Llama with a sliding window in every layer and no biases.
//!
//! transformers' `MistralConfig` and `modeling_mistral.py`; its GGUF files say `llama`.
use anyhow::Result;
use serde_json::json;

use crate::models::transformer::{
    config::Config,
    registry::Family,
    spec::{LayerSpec, Spec},
};

pub const FAMILY: Family = Family {
    model_type: "mistral",
    class: "MistralForCausalLM",
    examples: "Mistral 7B, SeaLLM v2",
    defaults: || {
        let defaults = [
            ("sliding_window", json!(4096)),
            ("num_key_value_heads", json!(8)),
            ("max_position_embeddings", json!(131072)),
        ];
        defaults.map(|(key, value)| (key.to_string(), value)).to_vec()
    },
    fields: &[],
    spec,
    gguf: None,
};

fn spec(c: &Config) -> Result<Spec> {
    let layers = vec![LayerSpec { window: c.sliding_window, rope: 0 }; c.num_hidden_layers];
    Ok(Spec { layers, ..Spec::plain(c)? })
}
