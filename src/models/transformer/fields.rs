//! Which fields of config.json change no arithmetic, and what the metadata of a GGUF file says under config.json's names.
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::data::gguf::Gguf;

/// Fields that every family reads, checks, or may ignore: notes about training and generation, and transformers' own switches.
const HARMLESS: &[&str] = &[
    // Read.
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "hidden_act",
    "tie_word_embeddings",
    "sliding_window",
    "bos_token_id",
    "eos_token_id",
    "initializer_range",
    "architectures",
    // Where it came from and how it was or is run.
    "attention_dropout",
    "auto_map",
    "cache_implementation",
    "chunk_size_feed_forward",
    "dtype",
    "finetuning_task",
    "gradient_checkpointing",
    "hidden_dropout",
    "id2label",
    "label2id",
    "library_name",
    "max_window_layers",
    "model_max_length",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "resid_dropout",
    "return_dict",
    "return_dict_in_generate",
    "tf_legacy_loss",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    // Generation's settings, which older files keep here; generation_config.json is what counts.
    "bad_words_ids",
    "begin_suppress_tokens",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// Fields of other families that leave the arithmetic alone at these values.
fn is_neutral(key: &str, value: &Value) -> bool {
    let number = value.as_f64();
    match key {
        "attention_multiplier"
        | "embedding_multiplier"
        | "residual_multiplier"
        | "logits_scaling"
        | "logit_scale"
        | "partial_rotary_factor" => number == Some(1.0),
        "layer_types" => value.as_array().is_some_and(|l| l.iter().all(|k| k == "full_attention")),
        _ => false,
    }
}

/// True if the field may be ignored: it is on the list, has no value (null, false, empty), or one that changes nothing.
pub fn is_harmless(key: &str, value: &Value) -> bool {
    let empty = match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    empty || key.starts_with('_') || HARMLESS.contains(&key) || is_neutral(key, value)
}

/// What the metadata of every architecture says, under config.json's names.
pub fn of_gguf(gguf: &Gguf, architecture: &str) -> Result<Map<String, Value>> {
    let key = |k: &str| format!("{architecture}.{k}");
    let vocab = gguf.array("tokenizer.ggml.tokens").map(|t| t.len() as u64);
    let mut out = Map::new();
    for (field, name) in [
        ("hidden_size", "embedding_length"),
        ("intermediate_size", "feed_forward_length"),
        ("num_hidden_layers", "block_count"),
        ("num_attention_heads", "attention.head_count"),
    ] {
        out.insert(field.into(), gguf.required(&key(name))?.into());
    }
    for (field, name) in
        [("num_key_value_heads", "attention.head_count_kv"), ("head_dim", "attention.key_length")]
    {
        if let Some(x) = gguf.integer(&key(name)) {
            out.insert(field.into(), x.into());
        }
    }
    let vocab = gguf.integer(&key("vocab_size")).or(vocab).context("no vocabulary size")?;
    out.insert("vocab_size".into(), vocab.into());
    let positions = gguf.integer(&key("context_length")).unwrap_or(2048);
    out.insert("max_position_embeddings".into(), positions.into());
    let eps = gguf.float(&key("attention.layer_norm_rms_epsilon")).map_or(1e-5, shortest);
    out.insert("rms_norm_eps".into(), eps.into());
    let base = gguf.float(&key("rope.freq_base")).unwrap_or(10000.0);
    out.insert("rope_theta".into(), base.into());
    if let Some(scaling) = rope_scaling(gguf, architecture) {
        out.insert("rope_scaling".into(), scaling);
    }
    let tied = !gguf.tensors.iter().any(|t| t.name == "output.weight");
    out.insert("tie_word_embeddings".into(), tied.into());
    for field in ["bos_token_id", "eos_token_id"] {
        if let Some(id) = gguf.integer(&format!("tokenizer.ggml.{field}")) {
            out.insert(field.into(), id.into());
        }
    }
    Ok(out)
}

/// The f64 that prints as the f32 in the file does: 1e-5, not 9.999999747378752e-6.
pub fn shortest(x: f64) -> f64 {
    (x as f32).to_string().parse().unwrap_or(x)
}

fn rope_scaling(gguf: &Gguf, architecture: &str) -> Option<Value> {
    let key = |k: &str| format!("{architecture}.rope.scaling.{k}");
    let kind = gguf.text(&key("type")).filter(|&kind| kind != "none")?;
    let mut map = Map::from_iter([("rope_type".to_string(), json!(kind))]);
    if let Some(x) = gguf.float(&key("factor")) {
        map.insert("factor".into(), x.into());
    }
    if let Some(x) = gguf.integer(&key("original_context_length")) {
        map.insert("original_max_position_embeddings".into(), x.into());
    }
    Some(Value::Object(map))
}
