//! What can be checked of a tokenizer.json before the library reads it. The library trusts its file: some files make it panic, which
//! [`caught`](crate::data::contained::caught) turns into an error; those that make it abort, run for ever or read outside of its memory are
//! refused here (`docs/guarantees.md` lists them), and what this misses ends the child that tries the file first ([`probe`]).
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer as Inner;

use super::sentencepiece::charsmap::{Charsmap, from_base64};
use crate::data::contained::{self, Ask, Limits, caught::caught};

/// How often longer than its text what a file's replacements make of it may be.
const GROWTH: usize = 64;
/// Levels of lists and objects in a part of the file; real ones have up to 6. The library tries every kind at every level, so that each
/// level multiplies its time.
const DEPTH: usize = 12;
/// The longest text that is put before each text, bytes.
const LONGEST_PREFIX: usize = 1024;
/// Memory that reading a file may take, as a multiple of its bytes, beyond [`MEMORY`].
const FACTOR: u64 = 20;
/// Bytes.
const MEMORY: u64 = 256 << 20;

/// Texts that a tokenizer must cope with.
const PROBES: [&str; 4] = [
    "",
    "a",
    "Hello, world! 12345  tabs\tand\n\nlines ... don't <s></s> \u{1}",
    "déjà vu ŉ ǅ 日本語のテキスト ไทย العربية हिन्दी 👩‍👩‍👧 🇪🇸 \u{301}\u{200d}\u{feff} ﷺ \u{10ffff}",
];

/// Refuses what would do more harm than a panic.
pub(super) fn check(json: &Value) -> Result<()> {
    for part in ["normalizer", "pre_tokenizer", "post_processor", "decoder"] {
        let depth = depth(&json[part], DEPTH + 1);
        ensure!(depth <= DEPTH, "its {part} has more than {DEPTH} levels");
        component(&json[part]).with_context(|| format!("its {part}"))?;
        let grown = growth(&json[part]);
        ensure!(
            grown <= GROWTH,
            "its {part} can make a text {grown} times as long; up to {GROWTH} times is taken"
        );
    }
    Ok(())
}

/// Levels of lists and objects, as far as `most`.
fn depth(value: &Value, most: usize) -> usize {
    let deepest =
        |values: &mut dyn Iterator<Item = &Value>| values.map(|v| depth(v, most - 1)).max().unwrap_or(0);
    match value {
        _ if most == 0 => 0,
        Value::Array(items) => 1 + deepest(&mut items.iter()),
        Value::Object(map) => 1 + deepest(&mut map.values()),
        _ => 0,
    }
}

/// A component and those inside of it.
fn component(value: &Value) -> Result<()> {
    match value["type"].as_str() {
        Some("FixedLength") => ensure!(value["length"] != 0, "FixedLength: pieces of 0 letters"),
        Some("Precompiled") => {
            let text =
                value["precompiled_charsmap"].as_str().context("Precompiled: no `precompiled_charsmap`")?;
            let map = from_base64(text).context("Precompiled: `precompiled_charsmap` is not base64")?;
            Charsmap::parse(&map).context("Precompiled: its character map (precompiled_charsmap)")?;
        }
        Some("TemplateProcessing") => template(value)?,
        Some("Prepend") => {
            let length = value["prepend"].as_str().map_or(0, str::len);
            ensure!(length <= LONGEST_PREFIX, "Prepend: a text of {length} bytes before each text");
        }
        _ => {}
    }
    match value {
        Value::Array(items) => items.iter().try_for_each(component),
        Value::Object(map) => map.values().try_for_each(component),
        _ => Ok(()),
    }
}

/// Every special token that a template names is defined.
fn template(value: &Value) -> Result<()> {
    for piece in ["single", "pair"].iter().flat_map(|key| value[*key].as_array().into_iter().flatten()) {
        if let Some(id) = piece["SpecialToken"]["id"].as_str() {
            ensure!(
                !value["special_tokens"][id].is_null(),
                "TemplateProcessing: `{id}` is not in `special_tokens`"
            );
        }
    }
    Ok(())
}

/// How often longer all replacements in `value` together can make a text.
fn growth(value: &Value) -> usize {
    let own = match value["type"].as_str() {
        Some("Replace") => {
            let content = value["content"].as_str().map_or(0, str::len);
            match value["pattern"]["String"].as_str().map_or(0, str::len) {
                // A pattern may match between any two letters.
                0 => content + 1,
                length => content.div_ceil(length),
            }
        }
        _ => 1,
    };
    let product = |values: &mut dyn Iterator<Item = &Value>| {
        values.fold(own.max(1), |all, v| all.saturating_mul(growth(v)))
    };
    match value {
        Value::Array(items) => product(&mut items.iter()),
        Value::Object(map) => product(&mut map.values()),
        _ => 1,
    }
}

/// The library's tokenizer from JSON that was checked.
pub(super) fn read(json: &Value) -> Result<Inner> {
    check(json)?;
    caught(|| match Inner::deserialize(json) {
        Ok(inner) => Ok(inner),
        Err(e) => bail!("not a tokenizer: {e}"),
    })
}

/// Loads the bytes of a tokenizer.json, and takes some texts there and back. For a child process: it may end this one.
pub(in crate::data) fn probe(bytes: &[u8]) -> Result<()> {
    let mut json: Value = serde_json::from_slice(bytes)?;
    // Those of the file are not used.
    json["truncation"] = Value::Null;
    json["padding"] = Value::Null;
    let inner = read(&json)?;
    for text in PROBES {
        for special in [false, true] {
            let ids = inner.encode(text, special).map_err(|e| anyhow::anyhow!("encode {text:?}: {e}"))?;
            inner
                .decode(ids.get_ids(), !special)
                .map_err(|e| anyhow::anyhow!("decode {:?}: {e}", ids.get_ids()))?;
        }
    }
    Ok(())
}

/// Tries a file in a child first, if there is a program for it.
pub(super) fn try_apart(text: &str) -> Result<()> {
    let Ok(Some(program)) = contained::program() else { return Ok(()) };
    let size = text.len() as u64;
    let limits = Limits { memory: MEMORY + FACTOR * size, seconds: 10.0 + size as f64 / 1e6 };
    contained::ask_once(&program, limits, Ask::Tokenizer, text.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refusal(part: &str, value: Value) -> String {
        check(&json!({part: value})).map_or_else(|e| format!("{e:#}"), |()| "taken".into())
    }

    #[test]
    fn what_would_do_more_than_panic_is_refused_by_name() {
        let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let many = vec![replace(json!({"Regex": "."}), "xxxxxxxxxx"); 9];
        let mut nested = json!({"type": "Lowercase"});
        for _ in 0..10 {
            nested = json!({"type": "Sequence", "normalizers": [nested]});
        }
        for (part, value, what) in [
            ("pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "0 letters"),
            (
                "pre_tokenizer",
                json!({"type": "Sequence", "pretokenizers": [{"type": "FixedLength", "length": 0}]}),
                "0 letters",
            ),
            ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": ""}), "it is empty"),
            (
                "normalizer",
                json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}),
                "leads to unit",
            ),
            ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "§"}), "base64"),
            ("normalizer", json!({"type": "Precompiled"}), "no `precompiled"),
            ("normalizer", json!({"type": "Sequence", "normalizers": many}), "times as long"),
            ("decoder", replace(json!({"String": "a"}), &"b".repeat(65)), "65 times"),
            ("normalizer", json!({"type": "Prepend", "prepend": "x".repeat(2000)}), "2000 bytes"),
            ("normalizer", nested, "12 levels"),
            (
                "post_processor",
                json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<no>", "type_id": 0}}],
                "pair": [], "special_tokens": {}}),
                "`<no>`",
            ),
            ("normalizer", replace(json!({"String": " "}), "▁"), "taken"),
            ("normalizer", Value::Null, "taken"),
        ] {
            let error = refusal(part, value.clone());
            assert!(error.contains(what), "{value}: {error}");
        }
    }

    #[test]
    fn panics_of_the_library_are_errors() {
        let model = json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": "##long",
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"<unk>": 0, "h": 1, "e": 2, "he": 3}, "merges": [["h", "e"]]});
        let file = json!({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": null, "model": model});
        let error = format!("{:#}", read(&file).unwrap_err());
        assert!(error.contains("the library that reads it failed"), "{error}");
    }
}
