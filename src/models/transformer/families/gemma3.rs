//! Gemma 3, the text model: Gemma 2 with normed q and k heads, five windowed layers to each full one, and a rotary embedding for each of
//! the two kinds.
//!
//! transformers' `Gemma3TextConfig` and `modeling_gemma3.py`; llama.cpp's architecture `gemma3`.
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::{fields, gemma2};
use crate::{
    data::gguf::Gguf,
    models::transformer::{
        config::Config,
        registry::{Family, GgufFamily},
        rope_table::RopeSpec,
        spec::{LayerSpec, QkNorms, Spec},
    },
};

pub const FAMILY: Family = Family {
    model_type: "gemma3_text",
    class: "Gemma3ForCausalLM",
    examples: "Gemma 3 270M and 1B",
    defaults: || {
        fields(
            json!({"vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
                      "num_key_value_heads": 4, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": true,
                      "max_position_embeddings": 131072, "bos_token_id": 2, "eos_token_id": 1, "sliding_window": 4096,
                      "query_pre_attn_scalar": 256}),
        )
    },
    fields: &[
        "attention_bias",
        "hidden_activation",
        "query_pre_attn_scalar",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "layer_types",
        "sliding_window_pattern",
        "rope_local_base_freq",
    ],
    spec,
    gguf: Some(GgufFamily { architecture: "gemma3", permuted: false, gain_offset: 1.0, config: of_gguf }),
};

/// Which of the ropes.
const FULL: usize = 0;
const SLIDING: usize = 1;

fn spec(c: &Config) -> Result<Spec> {
    let pattern = match c.number("sliding_window_pattern")? {
        None => c.number("_sliding_window_pattern")?.unwrap_or(6.0),
        Some(pattern) => pattern,
    };
    ensure!(pattern >= 1.0 && pattern.fract() == 0.0, "sliding_window_pattern is {pattern}");
    let mut layers = LayerSpec::windowed(c, c.sliding_window, |l| (l + 1) % pattern as usize != 0)?;
    for layer in &mut layers {
        layer.rope = Some(if layer.window.is_some() { SLIDING } else { FULL });
    }
    ensure!(
        c.number("attn_logit_softcapping")?.is_none(),
        "attn_logit_softcapping is set: transformers leaves it out for Gemma 3, so it is not clear what the model computes; remove the field to do as transformers does"
    );
    Ok(Spec { layers, qk_norms: Some(QkNorms::HEADS), ropes: ropes(c)?, ..gemma2::capped(c)? })
}

/// Of full layers, and of windowed ones: newer files nest them by kind of layer, older ones have a field for each.
fn ropes(c: &Config) -> Result<Vec<RopeSpec>> {
    let nested = |kind: &str| {
        let value = c.rope_parameters.as_ref().and_then(|p| p.get(kind));
        value.map(|v| v.as_object().with_context(|| format!("rope_parameters.{kind} is {v}"))).transpose()
    };
    let (full, sliding) = (nested("full_attention")?, nested("sliding_attention")?);
    if let Some(all) = &c.rope_parameters {
        let unknown = all.keys().find(|k| !["full_attention", "sliding_attention"].contains(&k.as_str()));
        ensure!(
            unknown.is_none(),
            "rope_parameters has {}: one entry by kind of layer was expected",
            unknown.map_or("", |k| k)
        );
    }
    let local = c.number("rope_local_base_freq")?.unwrap_or(10_000.0);
    Ok(vec![
        RopeSpec::of_fields(c, c.rope_theta.unwrap_or(1_000_000.0), full.or(c.rope_scaling.as_ref())),
        RopeSpec::of_fields(c, local, sliding),
    ])
}

fn of_gguf(gguf: &Gguf, config: &mut Map<String, Value>) -> Result<()> {
    let key = |k: &str| format!("gemma3.{k}");
    config.insert("sliding_window".into(), gguf.required(&key("attention.sliding_window"))?.into());
    if let Some(pattern) = gguf.integer(&key("attention.sliding_window_pattern")) {
        config.insert("sliding_window_pattern".into(), pattern.into());
    }
    if gguf.float(&key("rope.freq_base")).is_none() {
        config.insert("rope_theta".into(), 1_000_000.0.into());
    }
    if let Some(base) = gguf.float(&key("rope.freq_base_swa")) {
        config.insert("rope_local_base_freq".into(), base.into());
    }
    if let Some(cap) = gguf.float(&key("final_logit_softcapping")) {
        config.insert("final_logit_softcapping".into(), cap.into());
    }
    config.insert("query_pre_attn_scalar".into(), gemma2::query_scalar(config, 62)?.into());
    Ok(())
}
