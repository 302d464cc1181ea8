//! Gemma: norms that scale by 1 + w, GeGLU in its tanh form, embeddings times sqrt(C), a head size of its own (256), a tied head.
//!
//! transformers' `GemmaConfig` and `modeling_gemma.py`; llama.cpp's architecture `gemma`, whose gains are stored as 1 + w.
use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::fields;
use crate::{
    models::transformer::{
        config::Config,
        ids::{LinearId, PerLinear},
        registry::{Family, GgufFamily},
        spec::{EmbeddingScale, NormSpec, Spec},
    },
    ops::activation::Activation,
};

pub const FAMILY: Family = Family {
    model_type: "gemma",
    class: "GemmaForCausalLM",
    examples: "Gemma 2B and 7B, SeaLLM v2.5",
    defaults: || {
        fields(
            json!({"vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28, "num_attention_heads": 16,
                      "num_key_value_heads": 16, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": true,
                      "max_position_embeddings": 8192, "bos_token_id": 2, "eos_token_id": 1}),
        )
    },
    fields: &["attention_bias", "hidden_activation"],
    spec: base,
    gguf: Some(GgufFamily {
        architecture: "gemma",
        permuted: false,
        gain_offset: 1.0,
        config: |_, _| Ok(()),
    }),
};

/// What all Gemmas share.
pub(super) fn base(c: &Config) -> Result<Spec> {
    let attention = |id| matches!(id, LinearId::Q | LinearId::K | LinearId::V | LinearId::O);
    // The first files say `gelu` and mean its tanh form; `hidden_activation` replaced the field.
    let activation = match c.extra.get("hidden_activation") {
        None | Some(Value::Null) => c.hidden_act.clone(),
        Some(value) => value.as_str().unwrap_or("no text").to_string(),
    };
    ensure!(
        ["gelu", "gelu_pytorch_tanh"].contains(&activation.as_str()),
        "hidden_activation {activation} is not supported for Gemma, only gelu_pytorch_tanh"
    );
    let plain = Spec::plain(&Config { hidden_act: "gelu_pytorch_tanh".into(), ..c.clone() })?;
    Ok(Spec {
        gate: Activation::GeluTanh,
        norm: NormSpec { gain_offset: 1.0, ..plain.norm },
        biases: PerLinear::from_fn(|id| attention(id) && c.attention_bias),
        embedding_scale: EmbeddingScale::RootOfWidth,
        ..plain
    })
}
