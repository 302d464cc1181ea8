//! Mixtral: Mistral whose MLPs are mixtures of experts, shares by the softmax over the chosen logits.
//!
//! transformers' `MixtralConfig` and `modeling_mixtral.py`; its GGUF files say `llama`, and their number of experts tells them apart.
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::fields;
use crate::{
    data::gguf::Gguf,
    models::transformer::{
        config::Config,
        experts::ExpertSpec,
        registry::Family,
        spec::{LayerSpec, Spec},
    },
};

pub const FAMILY: Family = Family {
    model_type: "mixtral",
    class: "MixtralForCausalLM",
    examples: "Mixtral 8x7B and 8x22B",
    defaults: || {
        fields(
            json!({"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                      "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
                      "bos_token_id": 1, "eos_token_id": 2, "num_experts_per_tok": 2}),
        )
    },
    fields: &["num_local_experts", "num_experts", "num_experts_per_tok", "router_jitter_noise"],
    spec,
    gguf: None,
};

fn spec(c: &Config) -> Result<Spec> {
    let noise = c.number("router_jitter_noise")?.unwrap_or(0.0);
    ensure!(
        noise == 0.0,
        "router_jitter_noise is {noise}: noise on the router's input in training is not supported; 0 leaves it out"
    );
    let experts = ExpertSpec {
        count: expert_count(c, 8)?,
        chosen: c.count("num_experts_per_tok")?.context("there is no num_experts_per_tok")?,
        width: c.intermediate_size,
        normalised: true,
        numbered: true,
    };
    let layer = LayerSpec { sparse: true, ..LayerSpec::dense(c.sliding_window) };
    Ok(Spec { layers: vec![layer; c.num_hidden_layers], experts: Some(experts), ..Spec::plain(c)? })
}

/// E, which transformers knows by two names; `otherwise` where the file is silent.
pub(super) fn expert_count(c: &Config, otherwise: usize) -> Result<usize> {
    let (local, plain) = (c.count("num_local_experts")?, c.count("num_experts")?);
    let given = local.or(plain).unwrap_or(otherwise);
    ensure!(
        plain.is_none_or(|plain| plain == given),
        "num_local_experts is {given} and num_experts {}: they are two names of one number",
        plain.unwrap_or(0)
    );
    Ok(given)
}

/// A file of Llama's architecture that has experts is Mixtral's.
pub(super) fn of_gguf(gguf: &Gguf, config: &mut Map<String, Value>) -> Result<()> {
    let Some(count) = gguf.integer("llama.expert_count").filter(|&count| count > 0) else { return Ok(()) };
    config.insert("model_type".into(), "mixtral".into());
    config.insert("architectures".into(), json!([FAMILY.class]));
    config.insert("num_local_experts".into(), count.into());
    config.insert("num_experts_per_tok".into(), gguf.required("llama.expert_used_count")?.into());
    // What the configuration class would put there.
    config.entry("sliding_window").or_insert(Value::Null);
    Ok(())
}
