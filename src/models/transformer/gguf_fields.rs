//! What the metadata of a GGUF file says under config.json's names; what is not understood there is refused by its key.
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::data::gguf::{Gguf, GgufValue};

/// Sizes that every file has: their names in config.json and behind the architecture's name.
pub(super) const SIZES: [(&str, &str); 4] = [
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_hidden_layers", "block_count"),
    ("num_attention_heads", "attention.head_count"),
];
/// Sizes that a file may leave out.
pub(super) const OPTIONAL_SIZES: [(&str, &str); 2] =
    [("num_key_value_heads", "attention.head_count_kv"), ("head_dim", "attention.key_length")];

/// What the metadata of every architecture says, under config.json's names.
pub fn of_gguf(gguf: &Gguf, architecture: &str) -> Result<Map<String, Value>> {
    let key = |k: &str| format!("{architecture}.{k}");
    let vocab = gguf.array("tokenizer.ggml.tokens").map(|t| t.len() as u64);
    let mut out = Map::new();
    for (field, name) in SIZES {
        out.insert(field.into(), gguf.required(&key(name))?.into());
    }
    // What is absent is as llama.cpp has it, not as the family's configuration class does.
    for (field, name) in OPTIONAL_SIZES {
        out.insert(field.into(), gguf.integer(&key(name)).into());
    }
    let vocab = gguf.integer(&key("vocab_size")).or(vocab).context("no vocabulary size")?;
    out.insert("vocab_size".into(), vocab.into());
    let positions = gguf.integer(&key("context_length")).unwrap_or(2048);
    out.insert("max_position_embeddings".into(), positions.into());
    let eps = gguf.float(&key("attention.layer_norm_rms_epsilon")).map_or(1e-5, shortest);
    out.insert("rms_norm_eps".into(), eps.into());
    let base = gguf.float(&key("rope.freq_base")).unwrap_or(10000.0);
    out.insert("rope_theta".into(), base.into());
    if let Some(scaling) = rope_scaling(gguf, architecture, positions)? {
        out.insert("rope_scaling".into(), scaling);
    }
    let tied = !gguf.tensors.iter().any(|t| t.name == "output.weight");
    out.insert("tie_word_embeddings".into(), tied.into());
    for field in ["bos_token_id", "eos_token_id"] {
        out.insert(field.into(), gguf.integer(&format!("tokenizer.ggml.{field}")).into());
    }
    Ok(out)
}

/// The f64 that prints as the f32 in the file does: 1e-5, not 9.999999747378752e-6.
pub fn shortest(x: f64) -> f64 {
    (x as f32).to_string().parse().unwrap_or(x)
}

/// Tensors that hold factors of the rotary frequencies: for every length, and for contexts up to the original one and beyond it.
pub(super) const FACTORS: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];

/// True for a tensor that [`of_gguf`] has read.
pub fn is_rope_factors(tensor: &str) -> bool {
    FACTORS.contains(&tensor)
}

/// transformers' `rope_scaling`; `None` where nothing is scaled.
fn rope_scaling(gguf: &Gguf, architecture: &str, positions: u64) -> Result<Option<Value>> {
    let key = |k: &str| format!("{architecture}.rope.{k}");
    let number = |k: &str| gguf.float(&key(k)).map(shortest);
    // The first files have a factor alone, which stretches positions, as every file without a type does.
    let factor = number("scaling.factor").or(number("scale_linear"));
    let kind = gguf.text(&key("scaling.type")).unwrap_or(if factor.is_some() { "linear" } else { "none" });
    let original = gguf.integer(&key("scaling.original_context_length")).unwrap_or(positions);
    let attention = number("scaling.attn_factor").unwrap_or(1.0);
    let [always, short, long] = FACTORS.map(|name| gguf.tensors.iter().any(|t| t.name == name));
    if always || short || long {
        ensure!(
            kind == "none" || kind == "longrope",
            "its rotary frequencies have factors of their own and a scaling of type {kind}: the two together are not supported"
        );
        let [short, long] = if always { [FACTORS[0]; 2] } else { [FACTORS[1], FACTORS[2]] };
        let list = |name: &str| {
            gguf.floats(name)
                .map(|list| json!(list.into_iter().map(f64::from).map(shortest).collect::<Vec<_>>()))
        };
        return Ok(Some(
            json!({"rope_type": "longrope", "short_factor": list(short)?, "long_factor": list(long)?, "factor": factor.unwrap_or(1.0),
                              "attention_factor": attention, "original_max_position_embeddings": original}),
        ));
    }
    match kind {
        "none" => Ok(None),
        "linear" => {
            Ok(factor.filter(|&f| f != 0.0 && f != 1.0).map(|f| json!({"rope_type": "linear", "factor": f})))
        }
        "yarn" => {
            let factor =
                factor.context("its rope.scaling.type is yarn, but there is no rope.scaling.factor")?;
            let attention = attention * number("scaling.yarn_attn_factor").unwrap_or(1.0);
            let mut map =
                json!({"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original});
            if attention != 1.0 {
                map["attention_factor"] = json!(attention * (1.0 + 0.1 * factor.ln()));
            }
            for (field, name) in
                [("beta_fast", "scaling.yarn_beta_fast"), ("beta_slow", "scaling.yarn_beta_slow")]
            {
                if let Some(x) = number(name) {
                    map[field] = json!(x);
                }
            }
            Ok(Some(map))
        }
        other => bail!(
            "rope.scaling.type is {other}, which is not supported (none, linear, yarn and longrope are)"
        ),
    }
}

/// Keys behind the architecture's name that are read, or that change no arithmetic of a decoder here.
const KNOWN: [&str; 22] = [
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
];

/// Keys that only some architectures read; in a file of another they would mean what is not computed.
const READ_BY: [(&str, &[&str]); 11] = [
    ("attention.sliding_window_pattern", &["gemma3"]),
    ("attn_logit_softcapping", &["gemma2"]),
    ("final_logit_softcapping", &["gemma2", "gemma3"]),
    ("rope.freq_base_swa", &["gemma3"]),
    ("attention.scale", &["granite"]),
    ("embedding_scale", &["granite"]),
    ("residual_scale", &["granite"]),
    ("logit_scale", &["granite"]),
    ("expert_count", &["llama", "qwen3moe"]),
    ("expert_used_count", &["llama", "qwen3moe"]),
    ("expert_feed_forward_length", &["qwen3moe"]),
];

/// Architectures that know no window in llama.cpp.
const WITHOUT_WINDOW: [&str; 7] =
    ["qwen2", "qwen3", "qwen3moe", "granite", "olmo2", "smollm3", "hunyuan-dense"];

/// Whether a key behind the name of `architecture` is read.
pub(super) fn is_read(name: &str, architecture: &str) -> bool {
    KNOWN.contains(&name) || READ_BY.iter().any(|(key, by)| *key == name && by.contains(&architecture))
}

/// Refuses a key of the architecture that nobody here reads, unless its value changes nothing.
pub fn check_keys(gguf: &Gguf, architecture: &str) -> Result<()> {
    let prefix = format!("{architecture}.");
    for (key, value) in &gguf.metadata {
        let Some(name) = key.strip_prefix(&prefix).filter(|name| !is_read(name, architecture)) else {
            continue;
        };
        let neutral = match value {
            GgufValue::Unsigned(x) => *x == 0,
            GgufValue::Signed(x) => *x == 0,
            GgufValue::Bool(x) => *x == (name == "attention.causal"),
            GgufValue::Float(x) => match name {
                "rope.scaling.yarn_ext_factor" => *x == 1.0 || *x == -1.0,
                "logit_scale" | "residual_scale" | "embedding_scale" => *x == 1.0,
                _ => *x == 0.0,
            },
            GgufValue::Text(text) => text.is_empty() || name == "tensor_data_layout",
            GgufValue::Array(list) => list.is_empty(),
        };
        ensure!(
            neutral,
            "its metadata has {key} = {value:?}, which is not supported: the model would compute something else"
        );
    }
    let number = |name: &str| gguf.integer(&format!("{architecture}.{name}"));
    let equal_share =
        number("embedding_length").zip(number("attention.head_count").filter(|&heads| heads > 0));
    let size = number("attention.key_length").or(equal_share.map(|(width, heads)| width / heads));
    for name in ["rope.dimension_count", "attention.value_length"] {
        let found = number(name);
        ensure!(
            found.is_none() || found == size,
            "its {architecture}.{name} is {} for heads of {}: only whole heads are rotated, and all have one size",
            found.unwrap_or(0),
            size.unwrap_or(0)
        );
    }
    // A window that is longer than any text changes nothing.
    let window = number("attention.sliding_window").filter(|&w| w > 0);
    let longest = number("context_length").unwrap_or(u64::MAX);
    ensure!(
        !WITHOUT_WINDOW.contains(&architecture) || window.is_none_or(|w| w >= longest),
        "its {architecture}.attention.sliding_window is {}, which is not supported for files of {architecture}: use the model in Hugging Face's layout",
        window.unwrap_or(0)
    );
    Ok(())
}
