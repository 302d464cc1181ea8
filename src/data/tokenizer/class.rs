//! What a tokenizer's class means: of a LlamaTokenizer, transformers 5 takes the tokens and merges of tokenizer.json and splits text by the class's own rules
//! (`tokenization_llama.py`), whatever the file says; of every other class here the file is what counts.
use serde_json::{Value, json};

/// Families for which `AutoTokenizer` puts another class in the place of LlamaTokenizer.
const OTHERS: [&str; 2] = ["mistral", "qwen2"];

/// Puts the class's rules into tokenizer.json.
pub(super) fn settle(json: &mut Value, config: &Value, model_type: &Value) {
    let class = config["tokenizer_class"].as_str().unwrap_or_default();
    let is_llama = class.strip_suffix("Fast").unwrap_or(class) == "LlamaTokenizer";
    let other = model_type.as_str().is_some_and(|t| OTHERS.contains(&t));
    // A byte-level file under this name is Llama 3's, and is taken as it is.
    let byte_level = ["pre_tokenizer", "decoder"].iter().any(|part| has_byte_level(&json[*part]));
    if !is_llama || other || byte_level || json["model"]["type"] != "BPE" {
        return;
    }
    let prefix = config["add_prefix_space"].as_bool().unwrap_or(true);
    let scheme = match (prefix, config["legacy"] == true) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    json["normalizer"] = Value::Null;
    json["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json["decoder"] = json!({"type": "Sequence", "decoders": decoders});
    for (key, value) in
        [("fuse_unk", json!(true)), ("byte_fallback", json!(true)), ("unk_token", Value::Null)]
    {
        json["model"][key] = value;
    }
}

fn has_byte_level(part: &Value) -> bool {
    match part {
        Value::Object(map) => part["type"] == "ByteLevel" || map.values().any(has_byte_level),
        Value::Array(list) => list.iter().any(has_byte_level),
        _ => false,
    }
}
