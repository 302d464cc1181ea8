//! Phi 3 and 3.5: Llama whose files keep q, k and v as one matrix and gate and up as another, with a window in every layer and LongRoPE where it says so.
//!
//! transformers' `Phi3Config` and `modeling_phi3.py`; llama.cpp's architecture `phi3`.
use anyhow::Result;
use serde_json::{Map, Value, json};

use super::fields;
use crate::{
    data::gguf::Gguf,
    models::transformer::{
        config::Config,
        registry::{Family, GgufFamily},
        rope_table::RopeSpec,
        spec::{LayerSpec, Spec},
    },
};

pub const FAMILY: Family = Family {
    model_type: "phi3",
    class: "Phi3ForCausalLM",
    examples: "Phi 3 and 3.5 mini and medium, Phi 4",
    defaults: || {
        fields(
            json!({"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
                      "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
                      "bos_token_id": 1, "eos_token_id": 32000}),
        )
    },
    fields: &["original_max_position_embeddings"],
    spec,
    gguf: Some(GgufFamily { architecture: "phi3", permuted: false, gain_offset: 0.0, config: of_gguf }),
};

fn spec(c: &Config) -> Result<Spec> {
    let layers = vec![LayerSpec::dense(c.sliding_window); c.num_hidden_layers];
    Ok(Spec { layers, ropes: vec![rope(c)?], fused: true, ..Spec::plain(c)? })
}

/// `su` and `yarn` are older names of `longrope` here, and the length before stretching stands outside of the scaling's fields.
fn rope(c: &Config) -> Result<RopeSpec> {
    let mut rope = RopeSpec::of_config(c);
    let Some(scaling) = &mut rope.scaling else { return Ok(rope) };
    let kind = scaling.get("rope_type").or(scaling.get("type")).and_then(Value::as_str);
    match kind {
        Some("su" | "yarn" | "longrope") => {
            scaling.insert("rope_type".into(), "longrope".into());
            let original = c.number("original_max_position_embeddings")?.unwrap_or(4096.0);
            scaling.insert("original_max_position_embeddings".into(), original.into());
        }
        None | Some("default") => {}
        Some(other) => anyhow::bail!("rope_scaling: type `{other}` is not supported for phi3, only longrope"),
    }
    Ok(rope)
}

fn of_gguf(gguf: &Gguf, config: &mut Map<String, Value>) -> Result<()> {
    // 0 is how the converter says that there is none.
    if let Some(window) = gguf.integer("phi3.attention.sliding_window").filter(|&w| w > 0) {
        config.insert("sliding_window".into(), window.into());
    }
    if let Some(original) = gguf.integer("phi3.rope.scaling.original_context_length") {
        config.insert("original_max_position_embeddings".into(), original.into());
    }
    Ok(())
}
