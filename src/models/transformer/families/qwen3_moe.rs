//! Qwen 3 with experts: Qwen 3's attention; every layer's MLP a mixture of experts, but for those that the file names or its step leaves out.
//!
//! transformers' `Qwen3MoeConfig` and `modeling_qwen3_moe.py`; llama.cpp's architecture `qwen3moe`, whose layers are all sparse and whose shares sum to 1.
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::{fields, mixtral, qwen3};
use crate::{
    data::gguf::Gguf,
    models::transformer::{
        config::Config,
        experts::ExpertSpec,
        registry::{Family, GgufFamily},
        spec::{LayerSpec, QkNorms, Spec},
    },
};

pub const FAMILY: Family = Family {
    model_type: "qwen3_moe",
    class: "Qwen3MoeForCausalLM",
    examples: "Qwen3 30B-A3B and 235B-A22B",
    defaults: || {
        fields(
            json!({"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_attention_heads": 32,
                      "num_key_value_heads": 4, "max_position_embeddings": 32768, "sliding_window": 4096, "moe_intermediate_size": 768,
                      "num_experts_per_tok": 8, "decoder_sparse_step": 1}),
        )
    },
    fields: &[
        "attention_bias",
        "use_sliding_window",
        "moe_intermediate_size",
        "num_experts",
        "num_local_experts",
        "num_experts_per_tok",
        "norm_topk_prob",
        "decoder_sparse_step",
        "mlp_only_layers",
    ],
    spec,
    gguf: Some(GgufFamily { architecture: "qwen3moe", permuted: false, gain_offset: 0.0, config: of_gguf }),
};

fn spec(c: &Config) -> Result<Spec> {
    let count = mixtral::expert_count(c, 128)?;
    let experts = ExpertSpec {
        count,
        chosen: c.count("num_experts_per_tok")?.context("there is no num_experts_per_tok")?,
        width: c.count("moe_intermediate_size")?.context("there is no moe_intermediate_size")?,
        normalised: c.flag("norm_topk_prob")?,
        numbered: false,
    };
    let step = c.count("decoder_sparse_step")?.unwrap_or(1);
    ensure!(step > 0, "decoder_sparse_step is 0: every how many layers have experts was expected");
    let dense = dense_layers(c)?;
    let window = if c.flag("use_sliding_window")? { c.sliding_window } else { None };
    let layer = |l: usize| LayerSpec {
        sparse: count > 0 && (l + 1).is_multiple_of(step) && !dense.contains(&l),
        ..LayerSpec::dense(window)
    };
    let layers: Vec<LayerSpec> = (0..c.num_hidden_layers).map(layer).collect();
    Ok(Spec {
        biases: qwen3::attention_biases(c),
        qk_norms: Some(QkNorms::HEADS),
        experts: Some(experts).filter(|_| layers.iter().any(|layer| layer.sparse)),
        layers,
        ..Spec::plain(c)?
    })
}

/// Layers without experts.
fn dense_layers(c: &Config) -> Result<Vec<usize>> {
    let Some(list) = c.extra.get("mlp_only_layers").filter(|list| !list.is_null()) else { return Ok(vec![]) };
    let list = list.as_array().with_context(|| format!("mlp_only_layers is {list}: a list was expected"))?;
    let one = |v: &Value| {
        v.as_u64().map(|l| l as usize).with_context(|| format!("mlp_only_layers has {v}, no layer's number"))
    };
    list.iter().map(one).collect()
}

fn of_gguf(gguf: &Gguf, config: &mut Map<String, Value>) -> Result<()> {
    for (field, key) in [
        ("num_experts", "expert_count"),
        ("num_experts_per_tok", "expert_used_count"),
        ("moe_intermediate_size", "expert_feed_forward_length"),
    ] {
        config.insert(field.into(), gguf.required(&format!("qwen3moe.{key}"))?.into());
    }
    config.insert("norm_topk_prob".into(), true.into());
    Ok(())
}
