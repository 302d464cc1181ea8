//! Which fields of config.json change no arithmetic.
use serde_json::Value;

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
    "attn_pdrop",
    "auto_map",
    "cache_implementation",
    "chunk_size_feed_forward",
    "dtype",
    "embd_pdrop",
    "finetuning_task",
    "gradient_checkpointing",
    "hidden_dropout",
    "id2label",
    "is_llama_config",
    "label2id",
    "library_name",
    "max_sequence_length",
    "max_window_layers",
    "model_max_length",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    // The factor of a loss that balances experts, which training here does not add (`train_step.rs` says so where the file asks for it).
    "router_aux_loss_coef",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "resid_dropout",
    "resid_pdrop",
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
