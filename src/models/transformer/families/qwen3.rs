//! Qwen 3 (dense): each head of q and k is normed before rotation; a head size of its own; biases by configuration.
//!
//! transformers' `Qwen3Config` and `modeling_qwen3.py`; llama.cpp's architecture `qwen3`.
use anyhow::Result;
use serde_json::json;

use super::{fields, qwen2};
use crate::models::transformer::{
    config::Config,
    ids::{LinearId, PerLinear},
    registry::{Family, GgufFamily},
    spec::{QkNorms, Spec},
};

pub const FAMILY: Family = Family {
    model_type: "qwen3",
    class: "Qwen3ForCausalLM",
    examples: "Qwen3 0.6B to 32B",
    defaults: || {
        fields(
            json!({"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
                      "num_key_value_heads": 32, "max_position_embeddings": 32768, "head_dim": 128, "sliding_window": 4096}),
        )
    },
    fields: &["attention_bias", "use_sliding_window", "max_window_layers", "layer_types"],
    spec,
    gguf: Some(GgufFamily {
        architecture: "qwen3",
        permuted: false,
        gain_offset: 0.0,
        config: |_, _| Ok(()),
    }),
};

/// Those of q, k, v and o, by `attention_bias`.
pub(super) fn attention_biases(c: &Config) -> PerLinear<bool> {
    let attention = |id| matches!(id, LinearId::Q | LinearId::K | LinearId::V | LinearId::O);
    PerLinear::from_fn(|id| attention(id) && c.attention_bias)
}

fn spec(c: &Config) -> Result<Spec> {
    Ok(Spec {
        biases: attention_biases(c),
        qk_norms: Some(QkNorms::HEADS),
        layers: qwen2::layers(c)?,
        ..Spec::plain(c)?
    })
}
