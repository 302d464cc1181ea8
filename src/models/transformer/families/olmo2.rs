//! OLMo 2: norms behind attention and MLP instead of before them, and of q and k over the whole projection.
//!
//! transformers' `Olmo2Config` and `modeling_olmo2.py`; llama.cpp's architecture `olmo2`, whose files with windows are OLMo 3's.
use anyhow::Result;
use serde_json::json;

use super::{fields, qwen3};
use crate::models::transformer::{
    config::Config,
    registry::{Family, GgufFamily},
    spec::{QkNorms, Spec},
};

pub const FAMILY: Family = Family {
    model_type: "olmo2",
    class: "Olmo2ForCausalLM",
    examples: "OLMo 2 1B to 32B",
    defaults: || {
        fields(
            json!({"vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                      "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "eos_token_id": 50279}),
        )
    },
    fields: &["attention_bias"],
    spec,
    gguf: Some(GgufFamily {
        architecture: "olmo2",
        permuted: false,
        gain_offset: 0.0,
        config: |_, _| Ok(()),
    }),
};

fn spec(c: &Config) -> Result<Spec> {
    Ok(Spec {
        biases: qwen3::attention_biases(c),
        pre_norms: false,
        post_norms: true,
        qk_norms: Some(QkNorms { whole: true, rotated: false }),
        ..Spec::plain(c)?
    })
}
