//! Text to token ids and back: Hugging Face's tokenizer.json, or the tokenizer inside a GGUF file (rebuilt as the same JSON).
mod class;
mod from_gguf;
mod pre_tokenizers;
pub mod sentencepiece;
mod sound;
mod specials;
mod to_gguf;

use std::path::Path;

use crate::data::files::FileContext;
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use tokenizers::Tokenizer as Inner;

pub(super) use self::sound::probe;
use super::{contained::caught::caught, files::write_atomic, gguf::Gguf};

/// A tokenizer with its begin and end tokens.
pub struct Tokenizer {
    /// Recognises special tokens in text.
    full: Inner,
    /// Takes the letters of special tokens for plain text.
    plain: Inner,
    /// (text, id) of every special token.
    specials: Vec<(String, u32)>,
    json: Value,
    config: Value,
    bos: Option<u32>,
    add_bos: bool,
    eos: Vec<u32>,
}

impl Tokenizer {
    /// Loads the tokenizer of a Hugging Face directory, a tokenizer.json, or a `.gguf` file.
    pub fn load(path: &Path) -> Result<Tokenizer> {
        let context = || format!("load the tokenizer of {}", path.display());
        if path.extension().is_some_and(|e| e == "gguf") {
            return Tokenizer::from_gguf(&Gguf::open(path)?);
        }
        if path.is_dir() && !path.join("tokenizer.json").exists() && path.join(sentencepiece::FILE).exists() {
            return sentencepiece::load(path).with_context(context);
        }
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
        let text = crate::data::json::read_text(&file).at(&file, || {
            format!("read {}: the model's tokenizer.json must stand beside its weights", file.display())
        })?;
        let json: Value =
            serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
        sound::try_apart(&text).with_context(context)?;
        let dir = file.parent().unwrap_or(Path::new("."));
        let read = |name: &str| -> Result<Value> {
            let path = dir.join(name);
            if !path.exists() {
                return Ok(Value::Null);
            }
            let text = crate::data::json::read_text(&path).reading(&path)?;
            serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
        };
        let mut json = json;
        let mut config = read("tokenizer_config.json")?;
        specials::declare(
            &mut json,
            &mut config,
            &read("special_tokens_map.json")?,
            &read("added_tokens.json")?,
        )
        .with_context(context)?;
        class::settle(&mut json, &config, &read("config.json")?["model_type"]);
        if let Some(template) = template_file(dir)? {
            config["chat_template"] = json!(template);
        }
        let mut tokenizer = Tokenizer::new(json, config).with_context(context)?;
        tokenizer.add_eos(&read("generation_config.json")?["eos_token_id"]);
        tokenizer.add_eos(&read("config.json")?["eos_token_id"]);
        if tokenizer.bos.is_none() {
            tokenizer.bos = read("config.json")?["bos_token_id"].as_u64().map(|x| x as u32);
        }
        ensure!(
            tokenizer.eos.iter().all(|&id| (id as usize) < tokenizer.vocab_size()),
            "an end token of {:?} is beyond the vocabulary of {}",
            tokenizer.eos,
            tokenizer.vocab_size()
        );
        Ok(tokenizer)
    }

    /// The tokenizer in an open GGUF file.
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer> {
        from_gguf::load(gguf).with_context(|| format!("load the tokenizer of {}", gguf.path.display()))
    }

    /// From the JSON of tokenizer.json and of tokenizer_config.json (null if there is none).
    fn new(mut json: Value, config: Value) -> Result<Tokenizer> {
        // What the file says of cutting and padding belongs to whoever saved it; transformers leaves it out as well.
        json["truncation"] = Value::Null;
        json["padding"] = Value::Null;
        let full = sound::read(&json)?;
        let mut plain = full.clone();
        plain.set_encode_special_tokens(true);
        let mut specials: Vec<(String, u32)> = full
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, t)| t.special && !t.content.is_empty())
            .map(|(id, t)| (t.content, id))
            .collect();
        specials.sort_by_key(|s| s.1);
        let named = |key: &str| -> Option<u32> {
            let value = &config[key];
            full.token_to_id(value.as_str().or(value["content"].as_str())?)
        };
        let (bos, eos) = (named("bos_token"), named("eos_token"));
        // What an empty text becomes shows whether the post-processor adds a begin token.
        let empty = caught(|| full.encode("", true).map_err(|e| anyhow!("{e}")))?;
        let processed = empty.get_ids().first().copied();
        let add_bos = config["add_bos_token"]
            .as_bool()
            .unwrap_or(processed.is_some() && processed == bos.or(processed));
        let bos = bos.or(processed.filter(|_| add_bos));
        let eos = eos.into_iter().collect();
        Ok(Tokenizer { full, plain, specials, json, config, bos, add_bos, eos })
    }

    fn add_eos(&mut self, value: &Value) {
        let ids = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        for id in ids.iter().filter_map(|v| v.as_u64()) {
            if !self.eos.contains(&(id as u32)) {
                self.eos.push(id as u32);
            }
        }
    }

    /// The ids of plain text: nothing in it is taken for a special token. With `add_bos` the begin token stands first, if any.
    pub fn encode(&self, text: &str, add_bos: bool) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = self.bos.filter(|_| add_bos && self.add_bos).into_iter().collect();
        ids.extend(run(&self.plain, text)?);
        Ok(ids)
    }

    /// The bytes of `text` that its first tokens `kept` stand for.
    ///
    /// # Errors
    /// Ids that the tokenizer does not have.
    pub fn common_bytes(&self, text: &str, kept: &[u32]) -> Result<usize> {
        Ok(common_bytes(text, &self.decode(kept)?))
    }

    /// The ids of text in which special tokens count as such (templates).
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        run(&self.full, text)
    }

    /// As [`Tokenizer::encode_with_special`], with the place of each token in the text, but special tokens inside `contents`, parts of the
    /// text that somebody else wrote, are taken for plain letters.
    pub fn encode_template(&self, text: &str, contents: &[&str]) -> Result<Vec<PlacedToken>> {
        let mut out = vec![];
        let suspicious = contents.iter().any(|c| self.specials.iter().any(|(s, _)| c.contains(s.as_str())));
        if !suspicious {
            placed(&self.full, text, 0, &mut out)?;
            return Ok(out);
        }
        let guarded: Vec<(usize, usize)> = contents
            .iter()
            .filter(|c| !c.trim().is_empty())
            .flat_map(|c| text.match_indices(c.trim()).map(|(at, m)| (at, at + m.len())).collect::<Vec<_>>())
            .collect();
        let (mut start, mut at) = (0, 0);
        while at < text.len() {
            let inside = guarded.iter().any(|&(from, to)| from <= at && at < to);
            let special = self
                .specials
                .iter()
                .filter(|(s, _)| text[at..].starts_with(s.as_str()))
                .max_by_key(|(s, _)| s.len());
            if let (false, Some((s, id))) = (inside, special) {
                placed(&self.plain, &text[start..at], start, &mut out)?;
                out.push(PlacedToken { id: *id, start: at, end: at + s.len() });
                at += s.len();
                start = at;
            } else {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
            }
        }
        placed(&self.plain, &text[start..], start, &mut out)?;
        Ok(out)
    }

    /// The text of ids; special tokens are left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        caught(|| self.full.decode(ids, true).map_err(|e| anyhow!("decode: {e}")))
    }

    /// The text of ids with that of special tokens; empty for ids that there are none of.
    pub fn decode_all(&self, ids: &[u32]) -> String {
        self.full.decode(ids, false).unwrap_or_default()
    }

    /// One token as people read it: its decoded text, or its entry in the vocabulary where that is not text of its own.
    pub fn token_text(&self, id: u32) -> String {
        let decode = || self.full.decode(&[id], false).map_err(|e| anyhow!("{e}"));
        let decoded = caught(decode).unwrap_or_default();
        let odd = decoded.is_empty() || decoded.contains('\u{fffd}');
        if odd { self.full.id_to_token(id).unwrap_or_else(|| format!("<{id}?>")) } else { decoded }
    }

    /// Begin-of-sequence id.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }
    /// True if plain prompts begin with the begin token.
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }
    /// End-of-sequence ids; the first is the tokenizer's own.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }
    /// The text of the begin and the first end token.
    pub fn bos_eos_text(&self) -> (String, String) {
        let text = |id: Option<u32>| id.and_then(|id| self.full.id_to_token(id)).unwrap_or_default();
        (text(self.bos), text(self.eos.first().copied()))
    }
    /// The texts that templates know by name (`bos_token`, `pad_token` ...): those that tokenizer_config.json sets.
    pub fn special_texts(&self) -> Vec<(String, String)> {
        specials::texts(&self.config)
    }
    /// Number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.full.get_vocab_size(true)
    }
    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.full.token_to_id(token)
    }
    /// tokenizer_config.json, or null.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Writes tokenizer.json and tokenizer_config.json into `dir`.
    pub fn save(&self, dir: &Path) -> Result<()> {
        write_atomic(&dir.join("tokenizer.json"), self.json.to_string().as_bytes())?;
        if self.config.is_null() {
            return Ok(());
        }
        write_atomic(&dir.join("tokenizer_config.json"), format!("{:#}\n", self.config).as_bytes())
    }
}

/// The chat template that stands in a file of its own, which wins over tokenizer_config.json's as in transformers: a text, or a list of
/// names and texts where `additional_chat_templates/` holds more.
fn template_file(dir: &Path) -> Result<Option<Value>> {
    let read = |path: &Path| -> Result<Option<String>> {
        match crate::data::json::read_text(path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).reading(path),
        }
    };
    let default = read(&dir.join("chat_template.jinja"))?;
    let Ok(more) = std::fs::read_dir(dir.join("additional_chat_templates")) else {
        return Ok(default.map(Value::String));
    };
    let mut list: Vec<Value> =
        default.map(|text| json!({"name": "default", "template": text})).into_iter().collect();
    let mut paths: Vec<_> = more.flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths.iter().filter(|p| p.extension().is_some_and(|e| e == "jinja")) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        list.push(json!({"name": name, "template": read(path)?}));
    }
    Ok((!list.is_empty()).then_some(Value::Array(list)))
}

/// A token and the bytes of the text that it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedToken {
    /// Its id.
    pub id: u32,
    /// Where its text begins.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
}

/// The tokens of `text`, which begins at byte `base` of the whole.
fn placed(tokenizer: &Inner, text: &str, base: usize, out: &mut Vec<PlacedToken>) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let encoding = caught(|| tokenizer.encode(text, false).map_err(|e| anyhow!("{e}")))
        .with_context(|| format!("tokenize {:?}...", head(text)))?;
    let pieces = encoding.get_ids().iter().zip(encoding.get_offsets());
    out.extend(pieces.map(|(&id, &(start, end))| PlacedToken { id, start: base + start, end: base + end }));
    Ok(())
}

fn run(tokenizer: &Inner, text: &str) -> Result<Vec<u32>> {
    if text.is_empty() {
        return Ok(vec![]);
    }
    let encoding = caught(|| tokenizer.encode_fast(text, false).map_err(|e| anyhow!("{e}")))
        .with_context(|| format!("tokenize {:?}...", head(text)))?;
    Ok(encoding.get_ids().to_vec())
}

fn head(text: &str) -> String {
    text.chars().take(40).collect()
}

/// The bytes of `text` that `decoded`, which is made of its first tokens, has in common with it.
fn common_bytes(text: &str, decoded: &str) -> usize {
    let same = text.bytes().zip(decoded.bytes()).take_while(|(a, b)| a == b).count();
    (0..=same).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0)
}

#[test]
fn a_cut_text_counts_its_own_bytes() {
    // What a character is cut into decodes to U+FFFD, which is not in the text.
    assert_eq!(common_bytes("один", "од\u{fffd}"), 4);
    assert_eq!(common_bytes("한국", "\u{fffd}"), 0);
    assert_eq!(common_bytes("plain", "plain"), 5);
}
