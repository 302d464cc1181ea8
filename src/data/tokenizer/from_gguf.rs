//! The tokenizer inside a GGUF file, as the tokenizer.json that Hugging Face would have.
use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::Tokenizer;
use crate::data::gguf::{Gguf, GgufValue};

/// `tokenizer.ggml.token_type` values.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// How Qwen 2 cuts text before its merges: letters with a sign before them, single digits, signs with the line's end, spaces.
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub(super) fn load(gguf: &Gguf) -> Result<Tokenizer> {
    let tokens = gguf.texts("tokenizer.ggml.tokens").context("it has no `tokenizer.ggml.tokens`")?;
    let kinds: Vec<u64> = match gguf.array("tokenizer.ggml.token_type") {
        Some(list) => {
            list.iter().map(integer).collect::<Option<_>>().context("`token_type` holds no integers")?
        }
        None => vec![1; tokens.len()],
    };
    ensure!(kinds.len() == tokens.len(), "{} token types for {} tokens", kinds.len(), tokens.len());
    let added: Vec<Value> = (0..tokens.len())
        .filter(|&i| [UNKNOWN, CONTROL, USER_DEFINED].contains(&kinds[i]))
        .map(|i| {
            let special = kinds[i] != USER_DEFINED;
            json!({"id": i, "content": tokens[i], "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": special})
        })
        .collect();
    let kind = gguf.text("tokenizer.ggml.model").unwrap_or("absent");
    let parts = match kind {
        "gpt2" => byte_level(gguf, &tokens)?,
        "llama" => sentence_piece(gguf, &tokens)?,
        other => bail!(
            "its tokenizer is `{other}`; `gpt2` (byte-level BPE) and `llama` (SentencePiece BPE) can be read"
        ),
    };
    let mut json = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
                          "post_processor": null});
    for (key, value) in parts {
        json[key] = value;
    }
    let mut tokenizer = Tokenizer::new(json, config(gguf, &tokens, kind)?)?;
    // A turn may end with another token than a text does.
    for key in ["eot_token_id", "eom_token_id"] {
        if let Some(id) = gguf.integer(&format!("tokenizer.ggml.{key}")) {
            ensure!((id as usize) < tokens.len(), "{key} {id} is beyond the {} tokens", tokens.len());
            tokenizer.add_eos(&json!(id));
        }
    }
    Ok(tokenizer)
}

/// What tokenizer_config.json would say.
fn config(gguf: &Gguf, tokens: &[&str], kind: &str) -> Result<Value> {
    let mut config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false,
                            "add_bos_token": gguf.flag("tokenizer.ggml.add_bos_token").unwrap_or(kind == "llama")});
    for (key, field) in
        [("bos_token", "bos_token_id"), ("eos_token", "eos_token_id"), ("unk_token", "unknown_token_id")]
    {
        let Some(id) = gguf.integer(&format!("tokenizer.ggml.{field}")) else { continue };
        let token = tokens
            .get(id as usize)
            .with_context(|| format!("{field} {id} is beyond the {} tokens", tokens.len()))?;
        config[key] = json!(token);
    }
    if let Some(template) = gguf.text("tokenizer.chat_template") {
        config["chat_template"] = json!(template);
    }
    Ok(config)
}

type Parts = Vec<(&'static str, Value)>;

fn byte_level(gguf: &Gguf, tokens: &[&str]) -> Result<Parts> {
    let merges = gguf.texts("tokenizer.ggml.merges").context("it has no `tokenizer.ggml.merges`")?;
    let merges: Vec<Value> = merges
        .iter()
        .map(|m| {
            m.split_once(' ')
                .map(|(a, b)| json!([a, b]))
                .with_context(|| format!("merge {m:?} is not two parts"))
        })
        .collect::<Result<_>>()?;
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let mut normalizer = Value::Null;
    let pre = gguf.text("tokenizer.ggml.pre").unwrap_or("default");
    let pre_tokenizer = match pre {
        "smollm" => json!({"type": "Sequence", "pretokenizers": [digits, bytes]}),
        "default" | "gpt-2" | "gpt2" => bytes.clone(),
        // Qwen 2 to 3, as their tokenizer.json has it.
        "qwen2" => {
            normalizer = json!({"type": "NFC"});
            let split = json!({"type": "Split", "pattern": {"Regex": QWEN2_WORDS}, "behavior": "Isolated", "invert": false});
            let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
            json!({"type": "Sequence", "pretokenizers": [split, bytes]})
        }
        other => bail!(
            "pre-tokeniser `{other}` is not supported (smollm, qwen2, default and gpt-2 are): use the Hugging Face directory"
        ),
    };
    Ok(vec![
        ("normalizer", normalizer),
        ("pre_tokenizer", pre_tokenizer),
        ("decoder", bytes),
        ("model", bpe(tokens, merges, false)),
    ])
}

fn bpe(tokens: &[&str], merges: Vec<Value>, byte_fallback: bool) -> Value {
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(i, t)| (t.to_string(), json!(i))).collect();
    let unk = if byte_fallback { json!("<unk>") } else { Value::Null };
    json!({"type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": null,
           "end_of_word_suffix": null, "fuse_unk": byte_fallback, "byte_fallback": byte_fallback, "ignore_merges": false,
           "vocab": vocab, "merges": merges})
}

/// SentencePiece merges whichever neighbours form the best-scored piece: the pairs of every piece, best piece first.
fn sentence_piece(gguf: &Gguf, tokens: &[&str]) -> Result<Parts> {
    let scores = gguf.array("tokenizer.ggml.scores").context("it has no `tokenizer.ggml.scores`")?;
    ensure!(scores.len() == tokens.len(), "{} scores for {} tokens", scores.len(), tokens.len());
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(i, t)| (*t, i)).collect();
    let mut pairs: Vec<(f64, usize, usize)> = vec![];
    for (token, score) in tokens.iter().zip(scores) {
        let GgufValue::Float(score) = score else { bail!("a score is not a number") };
        let mut own: Vec<(usize, usize)> = token
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| Some((*ids.get(&token[..at])?, *ids.get(&token[at..])?)))
            .collect();
        own.sort();
        pairs.extend(own.into_iter().map(|(a, b)| (*score, a, b)));
    }
    pairs.sort_by(|x, y| y.0.total_cmp(&x.0));
    let merges = pairs.iter().map(|&(_, a, b)| json!([tokens[a], tokens[b]])).collect();
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prepend = gguf.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let normalizers =
        if prepend { vec![json!({"type": "Prepend", "prepend": "▁"}), replace] } else { vec![replace] };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prepend {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(vec![
        ("normalizer", json!({"type": "Sequence", "normalizers": normalizers})),
        ("pre_tokenizer", Value::Null),
        ("decoder", json!({"type": "Sequence", "decoders": decoders})),
        ("model", bpe(tokens, merges, true)),
    ])
}

fn integer(value: &GgufValue) -> Option<u64> {
    match value {
        GgufValue::Unsigned(x) => Some(*x),
        GgufValue::Signed(x) => u64::try_from(*x).ok(),
        _ => None,
    }
}
