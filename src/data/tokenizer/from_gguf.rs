//! The tokenizer inside a GGUF file, as the tokenizer.json that Hugging Face would have.
use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::{Tokenizer, pre_tokenizers};
use crate::data::gguf::{Gguf, GgufValue};

/// `tokenizer.ggml.token_type` values.
pub(super) const UNKNOWN: u64 = 2;
pub(super) const CONTROL: u64 = 3;
pub(super) const USER_DEFINED: u64 = 4;

/// Texts of control tokens that end a turn, whatever the file says of them: llama.cpp's list.
pub(super) const ENDS: [&str; 21] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
];

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
    let different: HashSet<&str> = tokens.iter().copied().collect();
    ensure!(different.len() == tokens.len(), "{} of its tokens occur twice", tokens.len() - different.len());
    let kind = gguf.text("tokenizer.ggml.model").unwrap_or("absent");
    let (parts, add_bos) = match kind {
        "gpt2" => byte_level(gguf, &tokens)?,
        "llama" => (sentence_piece(gguf, &tokens)?, true),
        other => bail!(
            "its tokenizer is `{other}` ({}); `gpt2` (byte-level BPE) and `llama` (SentencePiece BPE) can be read: use the model's Hugging Face directory",
            what_is(other)
        ),
    };
    let mut json = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
                          "post_processor": null});
    for (key, value) in parts {
        json[key] = value;
    }
    let mut tokenizer = Tokenizer::new(json, config(gguf, &tokens, add_bos)?)?;
    // A turn may end with another token than a text does.
    for key in ["eot_token_id", "eom_token_id"] {
        if let Some(id) = gguf.integer(&format!("tokenizer.ggml.{key}")) {
            ensure!((id as usize) < tokens.len(), "{key} {id} is beyond the {} tokens", tokens.len());
            tokenizer.add_eos(&json!(id));
        }
    }
    // Where the file names no end of a turn, its control tokens' own texts do.
    if gguf.integer("tokenizer.ggml.eot_token_id").is_none() {
        for i in (0..tokens.len()).filter(|&i| kinds[i] == CONTROL && ENDS.contains(&tokens[i])) {
            tokenizer.add_eos(&json!(i));
        }
    }
    Ok(tokenizer)
}

/// What tokenizer_config.json would say.
fn config(gguf: &Gguf, tokens: &[&str], add_bos: bool) -> Result<Value> {
    let mut config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false,
                            "add_bos_token": gguf.flag("tokenizer.ggml.add_bos_token").unwrap_or(add_bos)});
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

/// A kind of tokenizer that is not read, for messages.
fn what_is(kind: &str) -> &'static str {
    match kind {
        "bert" => "WordPiece, of encoders",
        "t5" => "SentencePiece unigram, of T5",
        "rwkv" => "RWKV's own",
        "none" | "no_vocab" => "there is none in the file",
        "absent" => "the file does not say",
        _ => "unknown here",
    }
}

type Parts = Vec<(&'static str, Value)>;

/// The parts of tokenizer.json, and whether plain prompts begin with the begin token.
fn byte_level(gguf: &Gguf, tokens: &[&str]) -> Result<(Parts, bool)> {
    let merges = gguf.texts("tokenizer.ggml.merges").context("it has no `tokenizer.ggml.merges`")?;
    let merges: Vec<Value> = merges
        .iter()
        .map(|m| {
            m.split_once(' ')
                .map(|(a, b)| json!([a, b]))
                .with_context(|| format!("merge {m:?} is not two parts"))
        })
        .collect::<Result<_>>()?;
    let pre = pre_tokenizers::by_name(gguf.text("tokenizer.ggml.pre").unwrap_or("default"))?;
    let mut model = bpe(tokens, merges, false);
    model["ignore_merges"] = json!(pre.ignore_merges);
    let decoder =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let parts = vec![
        ("normalizer", pre.normalizer),
        ("pre_tokenizer", pre.pre_tokenizer),
        ("decoder", decoder),
        ("model", model),
    ];
    Ok((parts, pre.add_bos))
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
