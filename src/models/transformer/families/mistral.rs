//! Mistral: Llama with a sliding window in every layer and no biases.
//!
//! transformers' `MistralConfig` and `modeling_mistral.py`; its GGUF files say `llama`.
use anyhow::Result;
use serde_json::json;

use super::fields;
use crate::models::transformer::{
    config::Config,
    registry::Family,
    spec::{LayerSpec, Spec},
};

pub const FAMILY: Family = Family {
    model_type: "mistral",
    class: "MistralForCausalLM",
    examples: "Mistral 7B, Mistral Nemo, SeaLLM v2",
    defaults: || {
        fields(
            json!({"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                      "num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072, "bos_token_id": 1, "eos_token_id": 2}),
        )
    },
    fields: &[],
    spec,
    gguf: None,
};

fn spec(c: &Config) -> Result<Spec> {
    let layers = vec![LayerSpec::dense(c.sliding_window); c.num_hidden_layers];
    Ok(Spec { layers, ..Spec::plain(c)? })
}
