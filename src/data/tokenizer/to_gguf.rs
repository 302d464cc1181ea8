//! A tokenizer as the metadata of a GGUF file: the inverse of `from_gguf`, with the types of tokens that llama.cpp's converter gives them.
use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    Tokenizer,
    from_gguf::{CONTROL, ENDS, UNKNOWN, USER_DEFINED},
    pre_tokenizers,
};
use crate::data::gguf::writer::Metadata;

/// More values of `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// What llama.cpp's converter gives tokens beside SentencePiece's own.
const ADDED_SCORE: f32 = -1000.0;

/// The names of special tokens in tokenizer_config.json and in GGUF files (one is misspelt there).
const NAMED: [(&str, &str); 4] =
    [("unk_token", "unknown"), ("sep_token", "seperator"), ("pad_token", "padding"), ("mask_token", "mask")];

/// What both tokenizers must cut alike: words, numbers, signs, spaces, line ends, scripts, parts of characters.
const PROBE: &str = "Hello world, it's 12345 o'clock: I'LL be there 07/2024!!  two  spaces \n\n and\ttabs\r\n camelCase fooBAR_baz2 \
    Straße 日本語のテキスト。한국어 中文，文本 x=f(y); // a[0]->b | c ^ ~d $5 + <f> ١٢٣ ½ ελλάδα हिन्दी ภาษาไทย 🚀🌫\u{fe0f} ...'''``";

impl Tokenizer {
    /// Puts `tokenizer.*` into the metadata of a model whose embedding has `rows` rows; gives notes on what is left out, for people.
    ///
    /// # Errors
    /// A tokenizer that GGUF files, or llama.cpp, have no name for; ids beyond the rows.
    pub fn to_gguf(&self, rows: usize, m: &mut Metadata) -> Result<Vec<String>> {
        let model = &self.json["model"];
        ensure!(
            model["type"] == "BPE",
            "its model is {}: only BPE, byte-level or SentencePiece's, has a place in the GGUF files of decoders",
            model["type"]
        );
        let mut tokens = self.tokens(rows)?;
        if model["byte_fallback"] == true {
            m.text("tokenizer.ggml.model", "llama");
            m.text("tokenizer.ggml.pre", "default");
            m.numbers("tokenizer.ggml.scores", &self.scores(&mut tokens)?);
            m.flag("tokenizer.ggml.add_space_prefix", self.has_space_prefix()?);
        } else {
            m.text("tokenizer.ggml.model", "gpt2");
            m.text("tokenizer.ggml.pre", pre_tokenizers::name_of(&self.json)?);
            let merges: Vec<String> =
                merges(model)?.into_iter().map(|[a, b]| spelled(&a) + " " + &spelled(&b)).collect();
            m.texts("tokenizer.ggml.merges", &merges);
        }
        let (texts, kinds): (Vec<String>, Vec<i32>) = tokens.into_iter().unzip();
        m.texts("tokenizer.ggml.tokens", &texts);
        m.integers("tokenizer.ggml.token_type", &kinds);
        let unsaid = self.special_ids(&texts, &kinds, m)?;
        self.templates(m)?;
        Ok(self.stripping().into_iter().chain(unsaid).collect())
    }

    /// That `read`, the tokenizer which the file holds, cuts text as this one does.
    pub fn check_same(&self, read: &Tokenizer) -> Result<()> {
        let (own, theirs) = (self.encode(PROBE, true)?, read.encode(PROBE, true)?);
        let at = own.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
        ensure!(
            own == theirs,
            "the tokenizer in the GGUF file would cut text differently, from token {at} of a probe on ({:?}; {:?}): it has rules that such files do not hold",
            self.decode_all(&own[at.saturating_sub(1)..own.len().min(at + 2)]),
            self.decode_all(&theirs[at.saturating_sub(1)..theirs.len().min(at + 2)])
        );
        Ok(())
    }

    /// Text and type of each id below `rows`.
    fn tokens(&self, rows: usize) -> Result<Vec<(String, i32)>> {
        let mut out: Vec<Option<(String, i32)>> = vec![None; rows];
        let mut put = |text: &str, id: u64, kind: i32| {
            let place = out.get_mut(id as usize).with_context(|| {
                format!("token {text:?} has id {id}, but the model's embedding has {rows} rows")
            })?;
            *place = Some((text.to_string(), kind));
            anyhow::Ok(())
        };
        let vocab = self.json["model"]["vocab"].as_object().context("tokenizer.json: no vocabulary")?;
        for (text, id) in vocab {
            put(text, id.as_u64().with_context(|| format!("token {text:?} has the id {id}"))?, NORMAL)?;
        }
        let added = self.json["added_tokens"].as_array().map_or(&[][..], |list| list);
        for token in added {
            let (text, id) = (token["content"].as_str(), token["id"].as_u64());
            let (text, id) =
                text.zip(id).with_context(|| format!("added token {token} has no text or id"))?;
            let control = token["special"] == true || looks_special(text);
            put(text, id, if control { CONTROL as i32 } else { USER_DEFINED as i32 })?;
        }
        let filled = |(i, t): (usize, Option<_>)| t.unwrap_or_else(|| (format!("[PAD{i}]"), UNUSED));
        Ok(out.into_iter().enumerate().map(filled).collect())
    }

    /// A note on added tokens whose rules have no place in the file.
    fn stripping(&self) -> Option<String> {
        let bound = |t: &&Value| ["lstrip", "rstrip", "single_word"].iter().any(|flag| t[*flag] == true);
        let n = self.json["added_tokens"].as_array().map_or(0, |list| list.iter().filter(bound).count());
        (n > 0).then(|| {
            format!("{n} added tokens take the spaces beside them along, or stand as whole words alone, which GGUF files do not say: left out")
        })
    }

    /// SentencePiece's score of each token, by the order of merges: the first to be merged has 0, the next -1, and so on, as its own files of BPE have it; pieces that no merge makes come
    /// behind. Corrects types and texts to SentencePiece's.
    fn scores(&self, tokens: &mut [(String, i32)]) -> Result<Vec<f32>> {
        let model = &self.json["model"];
        let unknown =
            model["unk_token"].as_str().or_else(|| tokens.iter().find(|t| t.0 == "<unk>").map(|_| "<unk>"));
        let unknown = unknown.map(str::to_string);
        let mut order: HashMap<String, usize> = HashMap::new();
        for [a, b] in merges(model)? {
            let next = order.len();
            order.entry(a + &b).or_insert(next);
        }
        let mut behind = order.len();
        let mut scores = vec![];
        for (text, kind) in tokens {
            if Some(&*text) == unknown.as_ref() {
                *kind = UNKNOWN as i32;
            } else if *kind == NORMAL && is_byte(text) {
                *kind = BYTE;
            } else if *kind == USER_DEFINED as i32 {
                *text = text.replace('▁', " ");
            }
            scores.push(match *kind {
                NORMAL => {
                    let place = order.get(text.as_str()).copied().unwrap_or(behind);
                    behind += (place == behind) as usize;
                    -(place as f32)
                }
                kind if kind == BYTE || kind == UNKNOWN as i32 => 0.0,
                _ => ADDED_SCORE,
            });
        }
        Ok(scores)
    }

    /// Whether a space is put before the text.
    fn has_space_prefix(&self) -> Result<bool> {
        let scheme = |part: &Value| match (part["type"].as_str(), part["prepend_scheme"].as_str()) {
            (Some("Prepend"), _) => Ok(true),
            (Some("Metaspace"), Some("never")) => Ok(false),
            (Some("Metaspace"), Some(_)) => Ok(true),
            (Some("Metaspace"), None) => Ok(part["add_prefix_space"] != false),
            // Spaces become ▁, and Gemma's files cut what has none left.
            (Some("Replace" | "Split"), _) => Ok(false),
            (Some(other), _) => bail!(
                "tokenizer.json has the step {other}, which a SentencePiece tokenizer of a GGUF file does not have"
            ),
            (None, _) => Ok(false),
        };
        let steps = ["normalizer", "pre_tokenizer"]
            .into_iter()
            .flat_map(|part| pre_tokenizers::steps(&self.json[part]));
        steps.map(scheme).try_fold(false, |any, one| Ok(any | one?))
    }

    /// Gives a note on tokens that end an answer and have no place in the file.
    fn special_ids(&self, texts: &[String], kinds: &[i32], m: &mut Metadata) -> Result<Option<String>> {
        let key = |name: &str| format!("tokenizer.ggml.{name}_token_id");
        if let Some(id) = self.bos {
            m.count(&key("bos"), id as usize)?;
        }
        let named = self.special_texts();
        for (ours, theirs) in NAMED {
            let text = named.iter().find(|(name, _)| name == ours).map(|(_, text)| text);
            if let Some(id) = text.and_then(|text| self.id(text)) {
                m.count(&key(theirs), id as usize)?;
            }
        }
        let (first, more) = match self.eos.split_first() {
            Some((first, more)) => (Some(*first), more),
            None => (None, &[][..]),
        };
        if let Some(id) = first {
            m.count(&key("eos"), id as usize)?;
        }
        // llama.cpp ends at these whatever the file says.
        let by_text =
            |id: u32| kinds[id as usize] == CONTROL as i32 && ENDS.contains(&texts[id as usize].as_str());
        let unsaid: Vec<u32> = more.iter().copied().filter(|&id| !by_text(id)).collect();
        for (&id, name) in unsaid.iter().zip(["eot", "eom"]) {
            m.count(&key(name), id as usize)?;
        }
        let left = unsaid.get(2..).filter(|left| !left.is_empty());
        m.flag("tokenizer.ggml.add_bos_token", self.add_bos);
        if let Some(adds) = self.config["add_eos_token"].as_bool() {
            m.flag("tokenizer.ggml.add_eos_token", adds);
        }
        Ok(left.map(|ids| format!("tokens that end an answer and have no place in a GGUF file: {ids:?}")))
    }

    fn templates(&self, m: &mut Metadata) -> Result<()> {
        const KEY: &str = "tokenizer.chat_template";
        match &self.config["chat_template"] {
            Value::Null => {}
            Value::String(text) => m.text(KEY, text),
            Value::Array(list) => {
                let mut names = vec![];
                for entry in list {
                    let (name, text) = (entry["name"].as_str(), entry["template"].as_str());
                    let (name, text) = name.zip(text).context("a chat template has no name or no text")?;
                    if name == "default" {
                        m.text(KEY, text);
                        continue;
                    }
                    let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
                    let name: String = name.chars().map(letter).collect();
                    m.text(&format!("{KEY}.{name}"), text);
                    names.push(name);
                }
                m.texts("tokenizer.chat_templates", &names);
            }
            other => bail!("the chat template is neither a text nor a list: {other}"),
        }
        Ok(())
    }
}

/// Whether llama.cpp's converter takes an added token for a control token though the file does not call it special.
fn looks_special(text: &str) -> bool {
    let between = |open: &str, close: &str| text.starts_with(open) && text.ends_with(close);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}

/// `<0x0A>`
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The halves of each merge: newer files have pairs, older ones texts.
fn merges(model: &Value) -> Result<Vec<[String; 2]>> {
    let list = model["merges"].as_array().context("tokenizer.json: no merges")?;
    let one = |merge: &Value| {
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            other => other[0].as_str().zip(other[1].as_str()),
        };
        let (a, b) = pair.with_context(|| format!("tokenizer.json: merge {merge} is not two parts"))?;
        Ok([a.to_string(), b.to_string()])
    };
    list.iter().map(one).collect()
}

/// A half of a merge without spaces, which stand between the halves.
fn spelled(part: &str) -> String {
    part.replace(' ', "Ġ")
}
