//! Llama: RMSNorm, SwiGLU, rotary embedding, grouped queries; biases by configuration, no window.
//!
//! transformers' `LlamaConfig` and `modeling_llama.py`; llama.cpp's architecture `llama`, which Mistral's and Mixtral's files have too.
use anyhow::Result;
use serde_json::{Map, Value, json};

use super::{fields, mixtral};
use crate::{
    data::gguf::Gguf,
    models::transformer::{
        config::Config,
        ids::{LinearId, PerLinear},
        registry::{Family, GgufFamily},
        spec::Spec,
    },
};

pub const FAMILY: Family = Family {
    model_type: "llama",
    class: "LlamaForCausalLM",
    examples: "LLaMA-2, Llama 3, SeaLLM v1, SmolLM2, Falcon3",
    defaults: || {
        fields(
            json!({"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                      "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2}),
        )
    },
    fields: &["attention_bias", "mlp_bias"],
    spec,
    gguf: Some(GgufFamily { architecture: "llama", permuted: true, gain_offset: 0.0, config: of_gguf }),
};

pub(super) fn spec(c: &Config) -> Result<Spec> {
    let biases = PerLinear::from_fn(|id| match id {
        LinearId::Q | LinearId::K | LinearId::V | LinearId::O => c.attention_bias,
        LinearId::Gate | LinearId::Up | LinearId::Down => c.mlp_bias,
        LinearId::Router => false,
    });
    Ok(Spec { biases, ..Spec::plain(c)? })
}

/// Biases by the tensors that are there.
pub(super) fn biases_of_gguf(gguf: &Gguf, config: &mut Map<String, Value>) {
    let has = |end: &str| gguf.tensors.iter().any(|t| t.name.ends_with(end));
    if has("attn_q.bias") {
        config.insert("attention_bias".into(), true.into());
    }
    if has("ffn_up.bias") {
        config.insert("mlp_bias".into(), true.into());
    }
}

fn of_gguf(gguf: &Gguf, config: &mut Map<String, Value>) -> Result<()> {
    biases_of_gguf(gguf, config);
    // Mistral has no architecture of its own: a window tells it apart.
    if let Some(window) = gguf.integer("llama.attention.sliding_window").filter(|&w| w > 0) {
        config.insert("model_type".into(), "mistral".into());
        config.insert("architectures".into(), json!(["MistralForCausalLM"]));
        config.insert("sliding_window".into(), window.into());
    }
    mixtral::of_gguf(gguf, config)
}
