//! What a model asks for when it generates: generation_config.json (or the metadata of a GGUF file), read whole, as transformers' `generate` takes it.
//!
//! Settings of the command line or the recipe come first, then these, then the defaults of [`SamplingParams`](super::sampler::SamplingParams). What is asked for
//! here and not supported is refused by its name when something is generated, unless it is at a value that changes nothing.
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::{data::gguf::Gguf, models::transformer::gguf_fields::shortest};

/// What a model's generation_config.json asks for; absent fields stay `None` or empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// 0 where `do_sample` is false.
    pub temperature: Option<f32>,
    /// `top_k`.
    pub top_k: Option<usize>,
    /// `top_p`.
    pub top_p: Option<f32>,
    /// `min_p`.
    pub min_p: Option<f32>,
    /// `repetition_penalty`.
    pub repetition_penalty: Option<f32>,
    /// `no_repeat_ngram_size`.
    pub no_repeat_ngram_size: Option<usize>,
    /// `max_new_tokens`.
    pub max_new_tokens: Option<usize>,
    /// `max_length`: tokens of prompt and reply, where nothing says how many are new.
    pub max_length: Option<usize>,
    /// `min_new_tokens`.
    pub min_new_tokens: Option<usize>,
    /// What no setting of the command line replaces.
    pub rules: Rules,
    /// Fields with values that are not supported, and whether they matter in sampling alone.
    unsupported: Vec<(String, bool)>,
}

/// Which tokens may be chosen where, and what else ends a reply; transformers' names.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Rules {
    /// No end token before prompt and reply have this many tokens.
    pub min_length: usize,
    /// Never chosen.
    pub suppress_tokens: Vec<u32>,
    /// Not chosen as the first token.
    pub begin_suppress_tokens: Vec<u32>,
    /// The last of these is not chosen behind the others.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// The first new token behind a prompt of one.
    pub forced_bos_token_id: Option<u32>,
    /// What stands at the last place there is room for: the first of them.
    pub forced_eos_token_id: Vec<u32>,
    /// A reply ends with the token that completes one of these texts; they stay in it.
    pub stop_strings: Vec<String>,
}

/// Fields that change no token here: notes, what `generate` returns, how it caches, and what only other modes of it (beams, assistants) read.
const HARMLESS: &[&str] = &[
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "decoder_start_token_id",
    "disable_compile",
    "do_sample",
    "early_stopping",
    "eos_token_id",
    "is_assistant",
    "length_penalty",
    "low_memory",
    "max_matching_ngram_size",
    "max_new_tokens",
    "min_new_tokens",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "renormalize_logits",
    "return_dict_in_generate",
    "return_legacy_cache",
    "speculation_type",
    "target_lookbehind",
    "transformers_version",
    "use_cache",
];

/// Fields that are read below.
const READ: &[&str] = &[
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "max_length",
    "min_length",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "stop_strings",
];

/// Further fields of generation that a config.json of an old transformers may have.
const LEGACY: &[&str] = &[
    "do_sample",
    "max_new_tokens",
    "min_new_tokens",
    "sequence_bias",
    "exponential_decay_length_penalty",
    "remove_invalid_values",
];

/// Fields that matter in sampling alone, with the value at which they do nothing.
const SAMPLING: [(&str, f64); 5] = [
    ("typical_p", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("top_h", 0.0),
    ("dynatemp_range", 0.0),
];

/// Other fields that are not supported, with the value at which they do nothing.
const NEUTRAL: [(&str, f64); 8] = [
    ("num_beams", 1.0),
    ("num_beam_groups", 1.0),
    ("num_return_sequences", 1.0),
    ("penalty_alpha", 0.0),
    ("diversity_penalty", 0.0),
    ("guidance_scale", 1.0),
    ("encoder_repetition_penalty", 1.0),
    ("encoder_no_repeat_ngram_size", 0.0),
];

impl GenerationConfig {
    /// Reads `DIR/generation_config.json`, or what a `.gguf` file says; without either, the fields of generation that older files have in config.json,
    /// as transformers does.
    pub fn from_model(model: &Path) -> Result<GenerationConfig> {
        if model.is_file() {
            return GenerationConfig::from_gguf(model);
        }
        let (own, older) = (model.join("generation_config.json"), model.join("config.json"));
        let read = |path: &Path| -> Result<Map<String, Value>> {
            let text =
                crate::data::json::read_text(path).with_context(|| format!("read {}", path.display()))?;
            let json: Value =
                serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
            json.as_object().cloned().with_context(|| format!("{} is no JSON object", path.display()))
        };
        if own.is_file() {
            return GenerationConfig::from_fields(&read(&own)?).with_context(|| own.display().to_string());
        }
        if !older.is_file() {
            return Ok(GenerationConfig::default());
        }
        let mut fields = read(&older)?;
        let table = |key: &str| SAMPLING.iter().chain(&NEUTRAL).any(|(name, _)| *name == key);
        fields.retain(|key, _| READ.contains(&key.as_str()) || LEGACY.contains(&key.as_str()) || table(key));
        // Every configuration of an old transformers has this value, which it never asked for.
        if fields.get("max_length").and_then(Value::as_u64) == Some(20) {
            fields.remove("max_length");
        }
        let named = || format!("the fields of generation in {}", older.display());
        GenerationConfig::from_fields(&fields).with_context(named)
    }

    /// From the fields of a generation_config.json.
    ///
    /// # Errors
    /// A field that is read and has a value of another kind.
    pub fn from_fields(fields: &Map<String, Value>) -> Result<GenerationConfig> {
        let number = |key: &str| -> Result<Option<f64>> {
            present(fields, key)
                .map(|v| v.as_f64().with_context(|| format!("{key} is {v}: a number was expected")))
                .transpose()
        };
        let count = |key: &str| -> Result<Option<usize>> {
            present(fields, key).map(|v| id(key, v).map(|x| x as usize)).transpose()
        };
        let list = |key: &str| present(fields, key).map_or(Ok(vec![]), |v| ids(key, v));
        let float = |key: &str| anyhow::Ok(number(key)?.map(|x| x as f32));
        let sample = fields.get("do_sample") == Some(&Value::Bool(true));
        let rules = Rules {
            min_length: count("min_length")?.unwrap_or(0),
            suppress_tokens: list("suppress_tokens")?,
            begin_suppress_tokens: list("begin_suppress_tokens")?,
            bad_words_ids: bad_words(present(fields, "bad_words_ids"))?,
            forced_bos_token_id: count("forced_bos_token_id")?.map(|id| id as u32),
            forced_eos_token_id: list("forced_eos_token_id")?,
            stop_strings: stop_strings(present(fields, "stop_strings"))?,
        };
        Ok(GenerationConfig {
            temperature: Some(if sample { float("temperature")?.unwrap_or(1.0) } else { 0.0 }),
            // transformers' default when sampling.
            top_k: if sample { count("top_k")?.or(Some(50)) } else { None },
            top_p: float("top_p")?.filter(|_| sample),
            min_p: float("min_p")?.filter(|_| sample),
            repetition_penalty: float("repetition_penalty")?,
            no_repeat_ngram_size: count("no_repeat_ngram_size")?,
            max_new_tokens: count("max_new_tokens")?,
            max_length: count("max_length")?,
            min_new_tokens: count("min_new_tokens")?,
            rules,
            unsupported: unsupported(fields),
        })
    }

    /// What llama.cpp takes from a file: tokens never to choose, and the author's sampling.
    fn from_gguf(path: &Path) -> Result<GenerationConfig> {
        let gguf = Gguf::open(path)?;
        let mut out = GenerationConfig::default();
        if let Some(list) = gguf.integers("tokenizer.ggml.suppress_tokens") {
            out.rules.suppress_tokens = list.into_iter().filter_map(|x| x.try_into().ok()).collect();
        }
        let key = |k: &str| format!("general.sampling.{k}");
        let number = |k: &str| gguf.float(&key(k)).map(|x| shortest(x) as f32);
        out.temperature = number("temp");
        out.top_k = gguf.integer(&key("top_k")).map(|k| k as usize);
        out.top_p = number("top_p");
        out.min_p = number("min_p");
        out.repetition_penalty = number("penalty_repeat").filter(|&p| p != 1.0);
        for name in gguf.metadata.keys().filter_map(|k| k.strip_prefix("general.sampling.")) {
            let read = ["temp", "top_k", "top_p", "min_p", "penalty_repeat", "sequence", "penalty_last_n"]
                .contains(&name);
            let off = gguf.float(&key(name)).or(gguf.integer(&key(name)).map(|x| x as f64)) == Some(0.0);
            if !read && !off {
                out.unsupported.push((key(name), true));
            }
        }
        Ok(out)
    }

    /// Refuses what is asked for and not supported, where it matters: some fields do in sampling alone, which a `temperature` above 0 is.
    pub fn refuse_unsupported(&self, temperature: f32) -> Result<()> {
        let matters = |sampling: bool| !sampling || temperature > 0.0;
        let Some((field, sampling)) = self.unsupported.iter().find(|(_, sampling)| matters(*sampling)) else {
            return Ok(());
        };
        let greedy = if *sampling { ", or generate greedily with --temperature 0" } else { "" };
        bail!(
            "the model's generation settings have {field}, which is not supported: take the field out of a copy of its generation_config.json{greedy}"
        )
    }
}

/// The field, unless it is null.
fn present<'a>(fields: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    fields.get(key).filter(|v| !v.is_null())
}

fn id(key: &str, value: &Value) -> Result<u32> {
    let whole = value.as_u64().or(value.as_f64().filter(|x| x.fract() == 0.0 && *x >= 0.0).map(|x| x as u64));
    let id = whole.and_then(|x| u32::try_from(x).ok());
    id.with_context(|| format!("{key} has {value}: a whole number was expected"))
}

/// One id or a list.
fn ids(key: &str, value: &Value) -> Result<Vec<u32>> {
    match value {
        Value::Array(list) => list.iter().map(|v| id(key, v)).collect(),
        one => Ok(vec![id(key, one)?]),
    }
}

fn bad_words(value: Option<&Value>) -> Result<Vec<Vec<u32>>> {
    let Some(value) = value else { return Ok(vec![]) };
    let list = value.as_array().with_context(|| format!("bad_words_ids is {value}: a list was expected"))?;
    let words: Vec<Vec<u32>> = list.iter().map(|v| ids("bad_words_ids", v)).collect::<Result<_>>()?;
    ensure!(words.iter().all(|w| !w.is_empty()), "bad_words_ids has an empty list");
    Ok(words)
}

fn stop_strings(value: Option<&Value>) -> Result<Vec<String>> {
    let texts = match value {
        None => Some(vec![]),
        Some(Value::String(one)) => Some(vec![one.clone()]),
        Some(Value::Array(list)) => list.iter().map(|v| v.as_str().map(String::from)).collect(),
        Some(_) => None,
    };
    let texts = texts.filter(|t| t.iter().all(|t| !t.is_empty()));
    texts.with_context(|| format!("stop_strings is {}: texts were expected", value.unwrap_or(&Value::Null)))
}

/// The fields that would change what is generated and that nobody here reads.
fn unsupported(fields: &Map<String, Value>) -> Vec<(String, bool)> {
    let mut out = vec![];
    for (key, value) in fields {
        let empty = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if empty || key.starts_with('_') || HARMLESS.contains(&key.as_str()) || READ.contains(&key.as_str()) {
            continue;
        }
        let at =
            |table: &[(&str, f64)]| table.iter().find(|(name, _)| name == key).map(|(_, neutral)| *neutral);
        let (sampling, other) = (at(&SAMPLING), at(&NEUTRAL));
        let neutral = sampling.or(other);
        if neutral.is_none() || value.as_f64() != neutral {
            out.push((format!("{key} = {value}"), sampling.is_some()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parsed(value: Value) -> Result<GenerationConfig> {
        GenerationConfig::from_fields(value.as_object().unwrap())
    }

    #[test]
    fn fields_are_read_refused_by_name_or_change_nothing() {
        for value in [
            json!({"num_beams": 4}),
            json!({"guidance_scale": 1.5}),
            json!({"sequence_bias": [[[3], -1.0]]}),
            json!({"penalty_alpha": 0.6, "top_k": 4}),
            json!({"exponential_decay_length_penalty": [5, 1.1]}),
            json!({"num_return_sequences": 2}),
            json!({"watermarking_config": {"bias": 2.0}}),
            json!({"max_time": 2.0}),
            json!({"remove_invalid_values": true}),
            json!({"a_field_of_tomorrow": 1}),
        ] {
            let key = value.as_object().unwrap().keys().next().unwrap().clone();
            let error = parsed(value).unwrap().refuse_unsupported(0.0).unwrap_err().to_string();
            assert!(error.contains(&key), "{key}: {error}");
        }
        for (key, value) in
            [("top_h", 0.4), ("typical_p", 0.9), ("epsilon_cutoff", 1e-3), ("eta_cutoff", 1e-3)]
        {
            let config = parsed(json!({key: value, "do_sample": true})).unwrap();
            config.refuse_unsupported(0.0).unwrap();
            assert!(config.refuse_unsupported(1.0).unwrap_err().to_string().contains(key));
        }
        let neutral = json!({"num_beams": 1, "min_p": 0.0, "typical_p": 1.0, "guidance_scale": null, "bad_words_ids": null, "use_cache": true,
            "pad_token_id": 0, "_from_model_config": true, "transformers_version": "5.24.0", "forced_eos_token_id": null, "token_healing": false,
            "early_stopping": true, "length_penalty": 2.0, "encoder_repetition_penalty": 1.0});
        parsed(neutral).unwrap().refuse_unsupported(1.0).unwrap();
    }

    #[test]
    fn values_of_another_kind_are_errors_that_name_the_field() {
        for value in [
            json!({"suppress_tokens": [-1]}),
            json!({"bad_words_ids": [[]]}),
            json!({"bad_words_ids": 3}),
            json!({"stop_strings": [3]}),
            json!({"stop_strings": [""]}),
            json!({"max_length": "many"}),
            json!({"repetition_penalty": "a"}),
            json!({"forced_eos_token_id": 1.5}),
        ] {
            let key = value.as_object().unwrap().keys().next().unwrap().clone();
            let error = format!("{:#}", parsed(value).unwrap_err());
            assert!(error.contains(&key), "{key}: {error}");
        }
        let read =
            parsed(json!({"forced_eos_token_id": 4, "stop_strings": "x", "suppress_tokens": [3.0, 1]}))
                .unwrap();
        assert_eq!((read.rules.forced_eos_token_id, read.rules.suppress_tokens), (vec![4], vec![3, 1]));
        assert_eq!(read.rules.stop_strings, ["x"]);
    }
}
