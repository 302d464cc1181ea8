//! Gemma 2: Gemma with norms behind attention and MLP, soft-caps on scores and logits, and a window in every other layer.
//!
//! transformers' `Gemma2Config` and `modeling_gemma2.py`; llama.cpp's architecture `gemma2`.
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::{fields, gemma};
use crate::{
    data::gguf::Gguf,
    models::transformer::{
        config::Config,
        gguf_fields::shortest,
        registry::{Family, GgufFamily},
        spec::{LayerSpec, Spec},
    },
};

pub const FAMILY: Family = Family {
    model_type: "gemma2",
    class: "Gemma2ForCausalLM",
    examples: "Gemma 2 2B to 27B",
    defaults: || {
        fields(
            json!({"vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
                      "num_key_value_heads": 4, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": true,
                      "max_position_embeddings": 8192, "bos_token_id": 2, "eos_token_id": 1, "sliding_window": 4096,
                      "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
        )
    },
    fields: &[
        "attention_bias",
        "hidden_activation",
        "query_pre_attn_scalar",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "layer_types",
    ],
    spec,
    gguf: Some(GgufFamily { architecture: "gemma2", permuted: false, gain_offset: 1.0, config: of_gguf }),
};

fn spec(c: &Config) -> Result<Spec> {
    let layers = LayerSpec::windowed(c, c.sliding_window, |l| l % 2 == 0)?;
    Ok(Spec { layers, ..capped(c)? })
}

/// What Gemma 2 and 3 share.
pub(super) fn capped(c: &Config) -> Result<Spec> {
    let cap = |key| anyhow::Ok(c.number(key)?.map(|x| x as f32));
    let scalar = c.number("query_pre_attn_scalar")?.unwrap_or(256.0);
    // Gemma 1's files say `gelu` and mean its tanh form; here it is what it says.
    let activation = c.extra.get("hidden_activation").filter(|v| !v.is_null());
    ensure!(
        activation.is_none_or(|a| a == "gelu_pytorch_tanh"),
        "hidden_activation {} is not supported, only gelu_pytorch_tanh",
        activation.unwrap_or(&Value::Null)
    );
    Ok(Spec {
        post_norms: true,
        query_scale: scalar.powf(-0.5) as f32,
        attention_softcap: cap("attn_logit_softcapping")?,
        final_softcap: cap("final_logit_softcapping")?,
        ..gemma::base(c)?
    })
}

fn of_gguf(gguf: &Gguf, config: &mut Map<String, Value>) -> Result<()> {
    config.insert("sliding_window".into(), gguf.required("gemma2.attention.sliding_window")?.into());
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(x) = gguf.float(&format!("gemma2.{key}")) {
            config.insert(key.into(), shortest(x).into());
        }
    }
    // The largest model scales by C / NH, not by the head size; the file does not say so, and llama.cpp goes by the layers, too.
    config.insert("query_pre_attn_scalar".into(), query_scalar(config, 46)?.into());
    Ok(())
}

/// C / NH for the model of `layers` layers, else the head size.
pub(super) fn query_scalar(config: &Map<String, Value>, layers: u64) -> Result<u64> {
    let of = |key: &str| config.get(key).and_then(Value::as_u64);
    let whole = |key: &str| of(key).with_context(|| format!("no {key}"));
    if of("num_hidden_layers") == Some(layers) {
        return Ok(whole("hidden_size")? / whole("num_attention_heads")?.max(1));
    }
    Ok(of("head_dim").unwrap_or(256))
}
