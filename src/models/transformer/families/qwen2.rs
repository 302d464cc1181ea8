//! Qwen 2 and 2.5: Llama with biases on q, k and v alone, and a window in the upper layers where that is asked for.
//!
//! transformers' `Qwen2Config` and `modeling_qwen2.py`; llama.cpp's architecture `qwen2`, which knows no window.
use anyhow::Result;
use serde_json::json;

use super::fields;
use crate::models::transformer::{
    config::Config,
    ids::{LinearId, PerLinear},
    registry::{Family, GgufFamily},
    spec::{LayerSpec, Spec},
};

pub const FAMILY: Family = Family {
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    examples: "Qwen2, Qwen2.5, SeaLLM v3",
    defaults: || {
        fields(
            json!({"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
                      "num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096}),
        )
    },
    fields: &["use_sliding_window", "max_window_layers", "layer_types"],
    spec,
    gguf: Some(GgufFamily {
        architecture: "qwen2",
        permuted: false,
        gain_offset: 0.0,
        config: |_, _| Ok(()),
    }),
};

fn spec(c: &Config) -> Result<Spec> {
    let biases = PerLinear::from_fn(|id| matches!(id, LinearId::Q | LinearId::K | LinearId::V));
    Ok(Spec { biases, layers: layers(c)?, ..Spec::plain(c)? })
}

/// Layers from `max_window_layers` on have the window, if `use_sliding_window`.
pub(super) fn layers(c: &Config) -> Result<Vec<LayerSpec>> {
    let window = if c.flag("use_sliding_window")? { c.sliding_window } else { None };
    let first = c.number("max_window_layers")?.unwrap_or(28.0);
    LayerSpec::windowed(c, window, |l| window.is_some() && l as f64 >= first)
}
