//! SmolLM3: Llama with layers that know no positions (NoPE), every fourth unless the file lists them.
//!
//! transformers' `SmolLM3Config` and `modeling_smollm3.py`; llama.cpp's architecture `smollm3`, where every fourth layer is one.
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{fields, llama};
use crate::models::transformer::{
    config::Config,
    registry::{Family, GgufFamily},
    spec::{LayerSpec, Spec},
};

pub const FAMILY: Family = Family {
    model_type: "smollm3",
    class: "SmolLM3ForCausalLM",
    examples: "SmolLM3 3B",
    defaults: || {
        fields(
            json!({"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
                      "num_key_value_heads": 4, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 2000000.0,
                      "tie_word_embeddings": true, "bos_token_id": 128000, "eos_token_id": 128001, "no_rope_layer_interval": 4}),
        )
    },
    fields: &[
        "attention_bias",
        "mlp_bias",
        "use_sliding_window",
        "layer_types",
        "no_rope_layers",
        "no_rope_layer_interval",
    ],
    spec,
    gguf: Some(GgufFamily {
        architecture: "smollm3",
        permuted: true,
        gain_offset: 0.0,
        config: |gguf, config| {
            llama::biases_of_gguf(gguf, config);
            Ok(())
        },
    }),
};

fn spec(c: &Config) -> Result<Spec> {
    let rotated = rotated(c)?;
    let window = if c.flag("use_sliding_window")? { c.sliding_window } else { None };
    let mut layers = LayerSpec::windowed(c, window, |l| window.is_some() && !rotated[l])?;
    for (layer, rotated) in layers.iter_mut().zip(rotated) {
        layer.rope = layer.rope.filter(|_| rotated);
    }
    Ok(Spec { layers, ..llama::spec(c)? })
}

/// The layers whose queries and keys are rotated.
fn rotated(c: &Config) -> Result<Vec<bool>> {
    let layers = c.num_hidden_layers;
    let list = match c.extra.get("no_rope_layers") {
        None | Some(Value::Null) => {
            let interval = c.number("no_rope_layer_interval")?.unwrap_or(4.0);
            ensure!(
                interval >= 1.0 && interval.fract() == 0.0,
                "no_rope_layer_interval is {interval}: a whole number of at least 1 was expected"
            );
            return Ok((1..=layers).map(|l| l as f64 % interval != 0.0).collect());
        }
        Some(list) => {
            list.as_array().with_context(|| format!("no_rope_layers is {list}: a list was expected"))?
        }
    };
    ensure!(list.len() >= layers, "no_rope_layers has {} entries for {layers} layers", list.len());
    let one = |value: &Value| match value.as_u64() {
        Some(flag @ 0..=1) => Ok(flag == 1),
        _ => anyhow::bail!("no_rope_layers has {value}: 1 (rotated) and 0 (not) were expected"),
    };
    list.iter().take(layers).map(one).collect()
}
