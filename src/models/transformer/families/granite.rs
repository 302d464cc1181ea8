//! Granite 3: Llama with four factors: of embeddings, of attention scores, of what attention and MLP add, and (as a divisor) of logits.
//!
//! transformers' `GraniteConfig` and `modeling_granite.py`; llama.cpp's architecture `granite`.
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::{fields, llama};
use crate::{
    data::gguf::Gguf,
    models::transformer::{
        config::Config,
        gguf_fields::shortest,
        registry::{Family, GgufFamily},
        spec::{EmbeddingScale, Spec},
    },
};

pub const FAMILY: Family = Family {
    model_type: "granite",
    class: "GraniteForCausalLM",
    examples: "Granite 3 2B and 8B",
    defaults: || {
        fields(
            json!({"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                      "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "embedding_multiplier": 1.0,
                      "logits_scaling": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0}),
        )
    },
    fields: &[
        "attention_bias",
        "mlp_bias",
        "embedding_multiplier",
        "logits_scaling",
        "residual_multiplier",
        "attention_multiplier",
    ],
    spec,
    gguf: Some(GgufFamily { architecture: "granite", permuted: true, gain_offset: 0.0, config: of_gguf }),
};

fn spec(c: &Config) -> Result<Spec> {
    let factor = |key: &str| anyhow::Ok(c.number(key)?.unwrap_or(1.0));
    let logits = factor("logits_scaling")?;
    ensure!(logits > 0.0, "logits_scaling is {logits}: logits are divided by it, so it must be above 0");
    Ok(Spec {
        embedding_scale: EmbeddingScale::By(factor("embedding_multiplier")? as f32),
        query_scale: factor("attention_multiplier")? as f32,
        residual_scale: factor("residual_multiplier")? as f32,
        logit_scale: (1.0 / logits) as f32,
        ..llama::spec(c)?
    })
}

fn of_gguf(gguf: &Gguf, config: &mut Map<String, Value>) -> Result<()> {
    for (field, name) in [
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
        ("logits_scaling", "logit_scale"),
    ] {
        // The converter leaves a factor of 0 out, and llama.cpp takes a missing one for none.
        let factor = gguf.float(&format!("granite.{name}")).filter(|&x| x != 0.0).map_or(1.0, shortest);
        config.insert(field.into(), factor.into());
    }
    let attention = match gguf.float("granite.attention.scale").filter(|&x| x != 0.0) {
        Some(scale) => shortest(scale),
        None => {
            let of = |key: &str| config.get(key).and_then(Value::as_f64);
            let (width, heads) = of("hidden_size").zip(of("num_attention_heads")).context("no sizes")?;
            of("head_dim").unwrap_or(width / heads).powf(-0.5)
        }
    };
    config.insert("attention_multiplier".into(), attention.into());
    llama::biases_of_gguf(gguf, config);
    Ok(())
}
