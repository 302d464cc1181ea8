//! Special tokens that are declared beside tokenizer.json: in tokenizer_config.json, special_tokens_map.json and added_tokens.json.
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// The names under which a tokenizer's special tokens stand.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Lists of further ones.
const LISTS: [&str; 3] =
    ["additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"];

/// Puts into tokenizer.json's `added_tokens` what the other files declare, as transformers does: with the id that is said, the id that the
/// vocabulary has, or else the next free one. Names that only special_tokens_map.json has go into `config`.
pub(super) fn declare(json: &mut Value, config: &mut Value, map: &Value, added: &Value) -> Result<()> {
    ensure!(json.is_object(), "tokenizer.json is not a JSON object");
    if !config.is_object() {
        *config = json!({});
    }
    let own_list = config["additional_special_tokens"].clone();
    for name in NAMES.iter().chain(&LISTS) {
        if config[*name].is_null() && !map[*name].is_null() {
            config[*name] = map[*name].clone();
        }
    }
    ensure!(
        config["split_special_tokens"] != true,
        "tokenizer_config.json: split_special_tokens is true, so that special tokens of a template are spelled in letters: that is not supported; remove the field"
    );
    let mut known = Known::of(json)?;
    if let Some(decoder) = config["added_tokens_decoder"].as_object() {
        let mut entries: Vec<(u64, &Value)> = decoder
            .iter()
            .map(|(id, v)| {
                let id = id.parse().with_context(|| {
                    format!("tokenizer_config.json: added_tokens_decoder: `{id}` is no id")
                })?;
                Ok((id, v))
            })
            .collect::<Result<_>>()?;
        entries.sort_by_key(|e| e.0);
        for (id, token) in entries {
            let Some(content) = token["content"].as_str() else { continue };
            known.declare(content, Some(id), token, token["special"].as_bool().unwrap_or(false))?;
        }
    }
    let mut listed: Vec<(&String, u64)> =
        added.as_object().into_iter().flatten().filter_map(|(t, id)| Some((t, id.as_u64()?))).collect();
    listed.sort_by_key(|e| e.1);
    let named = || NAMES.iter().map(|n| &config[*n]).chain(LISTS.iter().flat_map(|n| items(&config[*n])));
    for (text, id) in listed {
        // As transformers 5 has tokens of this file: they are looked for in the normalised text, unless they are known to be special by then.
        let lists = items(&own_list).into_iter().chain(items(&config["extra_special_tokens"]));
        let special =
            NAMES.iter().map(|n| &config[*n]).chain(lists).any(|value| content(value) == Some(text));
        known.declare(text, Some(id), &json!({"normalized": !special}), special)?;
    }
    for value in named() {
        if let Some(text) = content(value) {
            known.declare(text, None, value, true)?;
        }
    }
    json["added_tokens"] = Value::Array(known.added);
    Ok(())
}

/// `bos_token` and the like, as far as they are set.
pub(super) fn texts(config: &Value) -> Vec<(String, String)> {
    NAMES.iter().filter_map(|n| Some((n.to_string(), content(&config[*n])?.to_string()))).collect()
}

/// The text of a token that is written as a text or as an object.
fn content(value: &Value) -> Option<&str> {
    value.as_str().or(value["content"].as_str()).filter(|t| !t.is_empty())
}

fn items(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(list) => list.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => vec![],
    }
}

/// The tokens of tokenizer.json.
struct Known {
    added: Vec<Value>,
    vocab: std::collections::HashMap<String, u64>,
    next: u64,
}

impl Known {
    fn of(json: &Value) -> Result<Known> {
        let added = json["added_tokens"].as_array().cloned().unwrap_or_default();
        let vocab: std::collections::HashMap<String, u64> = match &json["model"]["vocab"] {
            Value::Object(map) => map.iter().filter_map(|(t, id)| Some((t.clone(), id.as_u64()?))).collect(),
            Value::Array(list) => list
                .iter()
                .enumerate()
                .filter_map(|(id, entry)| Some((entry[0].as_str()?.to_string(), id as u64)))
                .collect(),
            _ => Default::default(),
        };
        let ids = added.iter().filter_map(|t| t["id"].as_u64()).chain(vocab.values().copied());
        let next = ids.max().map_or(0, |id| id + 1);
        Ok(Known { added, vocab, next })
    }

    fn declare(&mut self, text: &str, id: Option<u64>, about: &Value, special: bool) -> Result<()> {
        if let Some(known) = self.added.iter_mut().find(|t| t["content"] == text) {
            if special {
                known["special"] = json!(true);
            }
            return Ok(());
        }
        let found = self.vocab.get(text).copied();
        if let (Some(said), Some(found)) = (id, found) {
            ensure!(
                said == found,
                "token {text:?} is said to be {said}, but tokenizer.json has it as {found}"
            );
        }
        let id = found.or(id.filter(|id| *id >= self.next)).unwrap_or(self.next);
        self.next = self.next.max(id + 1);
        let flag = |key: &str| about[key].as_bool().unwrap_or(false);
        self.added.push(
            json!({"id": id, "content": text, "single_word": flag("single_word"), "lstrip": flag("lstrip"),
            "rstrip": flag("rstrip"), "normalized": flag("normalized"), "special": special}),
        );
        Ok(())
    }
}
