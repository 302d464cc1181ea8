//! HunYuan (dense, version 1): q and k heads are normed after rotation, whose base is stretched by a fixed alpha.
//!
//! transformers' `HunYuanDenseV1Config` and `modeling_hunyuan_v1_dense.py`; llama.cpp's architecture `hunyuan-dense`, whose files hold the stretched base.
use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use super::{fields, qwen3};
use crate::models::transformer::{
    config::Config,
    registry::{Family, GgufFamily},
    rope_table::RopeSpec,
    spec::{QkNorms, Spec},
};

pub const FAMILY: Family = Family {
    model_type: "hunyuan_v1_dense",
    class: "HunYuanDenseV1ForCausalLM",
    examples: "HunYuan 0.5B to 7B, HY-MT1.5",
    defaults: || {
        fields(
            json!({"vocab_size": 290943, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                      "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2}),
        )
    },
    fields: &[
        "attention_bias",
        "use_qk_norm",
        "use_rotary_pos_emb",
        "num_experts",
        "norm_type",
        // Notes of its siblings, which this class of transformers does not read.
        "add_classification_head",
        "attention_head_dim",
        "cla_share_factor",
        "class_num",
        "dense_list",
        "eod_token_id",
        "im_end_id",
        "im_newline_id",
        "im_start_id",
        "mask_init_id",
        "org_vocab_size",
        "pad_id",
        "pool_type",
        "text_end_id",
        "text_start_id",
    ],
    spec,
    gguf: Some(GgufFamily {
        architecture: "hunyuan-dense",
        permuted: false,
        gain_offset: 0.0,
        config: |_, _| Ok(()),
    }),
};

/// Fields of a rotary embedding with `alpha`: the others beside it are not read (`compute_ntk_alpha_rope_parameters`).
const WITH_ALPHA: [&str; 9] = [
    "rope_type",
    "type",
    "rope_theta",
    "alpha",
    "factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
];

fn spec(c: &Config) -> Result<Spec> {
    for (key, wanted) in [
        ("use_qk_norm", json!(true)),
        ("use_rotary_pos_emb", json!(true)),
        ("num_experts", json!(1)),
        ("norm_type", json!("rms")),
    ] {
        let found = c.extra.get(key).filter(|v| !v.is_null() && **v != wanted);
        ensure!(found.is_none(), "{key} is {}: only {wanted} is supported", found.unwrap_or(&Value::Null));
    }
    Ok(Spec {
        biases: qwen3::attention_biases(c),
        qk_norms: Some(QkNorms { whole: false, rotated: true }),
        ropes: vec![rope(c)?],
        ..Spec::plain(c)?
    })
}

/// `dynamic` with an alpha is no scaling by length: the base becomes theta alpha^(HS / (HS - 2)).
fn rope(c: &Config) -> Result<RopeSpec> {
    let plain = RopeSpec::of_config(c);
    let of = |key: &str| plain.scaling.as_ref().and_then(|map: &Map<String, Value>| map.get(key));
    let kind = of("rope_type").or(of("type")).and_then(Value::as_str);
    let alpha = of("alpha").and_then(Value::as_f64).filter(|&alpha| alpha != 0.0);
    let Some(alpha) = alpha.filter(|_| kind == Some("dynamic")) else { return Ok(plain) };
    let unknown = plain.scaling.iter().flatten().find(|(key, _)| !WITH_ALPHA.contains(&key.as_str()));
    ensure!(unknown.is_none(), "rope_scaling: `{}` is not supported", unknown.map_or("", |(key, _)| key));
    let size = plain.dim as f64;
    ensure!(alpha > 0.0 && size > 2.0, "rope_scaling: alpha {alpha} for heads of {size} elements");
    Ok(RopeSpec { theta: plain.theta * alpha.powf(size / (size - 2.0)), scaling: None, ..plain })
}
