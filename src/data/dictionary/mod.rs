//! Bilingual dictionaries: MUSE text, tab-separated text, dictd (FreeDict).
mod dictd;
mod text;

use std::{collections::HashMap, path::Path};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use super::{languages::charset::is_apostrophe, words::turkic_lowercase};

pub use dictd::{equivalents, parse as parse_dictd};

/// How a dictionary is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DictionaryFormat {
    /// By the file's name: `.index`, `.dict` and `.dict.dz` are dictd, `.tsv` is tab-separated, the rest is MUSE
    #[default]
    Auto,
    /// One pair per line, separated by a space or a tab
    Muse,
    /// One pair of words or phrases per line, separated by a tab
    Tsv,
    /// dictd: .index with .dict or .dict.dz beside it (FreeDict)
    Dictd,
}

/// Words and phrases of one language with their equivalents in another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dictionary {
    /// By key: lower case, NFC, single spaces.
    entries: HashMap<String, Vec<String>>,
    /// Words of the longest phrase that begins with a word, by [`first_key`].
    longest: HashMap<String, usize>,
}

impl Dictionary {
    /// Reads a dictionary. Errors name the file and the line.
    pub fn load(path: &Path, format: DictionaryFormat) -> Result<Dictionary> {
        let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
        let is_dictd = [".index", ".dict", ".dict.dz"].iter().any(|s| name.ends_with(s))
            || (!path.exists() && path.with_file_name(format!("{name}.index")).exists());
        let format = match format {
            DictionaryFormat::Auto if is_dictd => DictionaryFormat::Dictd,
            DictionaryFormat::Auto if name.trim_end_matches(".gz").ends_with(".tsv") => DictionaryFormat::Tsv,
            other => other,
        };
        let dictionary = match format {
            DictionaryFormat::Dictd => dictd::load(path)?,
            _ => text::load(path, format == DictionaryFormat::Tsv)?,
        };
        ensure!(
            !dictionary.is_empty(),
            "{} holds no dictionary entry: is it of another format?",
            path.display()
        );
        Ok(dictionary)
    }

    /// Adds an equivalent of `word` behind those it has.
    pub fn insert(&mut self, word: &str, equivalent: &str) {
        let key = key_of(word);
        let equivalent = normal(equivalent);
        if key.is_empty() || equivalent.is_empty() {
            return;
        }
        let words = key.split(' ').count();
        let longest = self.longest.entry(first_key(&key)).or_default();
        *longest = words.max(*longest);
        let known = self.entries.entry(key).or_default();
        if !known.contains(&equivalent) {
            known.push(equivalent);
        }
    }

    /// The equivalents of a word or phrase, most frequent first; empty if there is none. Case does not matter.
    pub fn lookup(&self, word: &str) -> &[String] {
        if let Some(found) = self.entries.get(word) {
            return found;
        }
        let key = key_of(word);
        // Looked up already, and without an I that Turkic languages have two of.
        if key == word {
            return &[];
        }
        let turkic = || {
            let has_i = word.contains(['I', 'İ']);
            has_i.then(|| self.entries.get(&key_of(&turkic_lowercase(word)))).flatten()
        };
        self.entries.get(&key).or_else(turkic).map_or(&[], Vec::as_slice)
    }

    /// The longest phrase that `words` begins with: its number of words and its equivalents.
    pub fn longest_match(&self, words: &[&str]) -> Option<(usize, &[String])> {
        let longest = *self.longest.get(&first_key(words.first()?))?;
        (1..=longest.min(words.len())).rev().find_map(|n| {
            let found = if n == 1 { self.lookup(words[0]) } else { self.lookup(&words[..n].join(" ")) };
            (!found.is_empty()).then_some((n, found))
        })
    }

    /// Words of the longest phrase.
    pub fn max_words(&self) -> usize {
        self.longest.values().copied().max().unwrap_or_default()
    }

    /// Number of words and phrases.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Without equivalents that equal their word (noise in lists made automatically) and without words or equivalents of one letter.
    pub fn filtered(self, drop_identical: bool, drop_one_char: bool) -> Dictionary {
        let mut out = Dictionary::default();
        let single = |s: &str| s.chars().nth(1).is_none() && s.chars().all(|c| (c as u32) < 0x2E80);
        for (word, equivalents) in self.entries {
            for equivalent in &equivalents {
                let identical = drop_identical && key_of(equivalent) == word;
                let short = drop_one_char && (single(&word) || single(equivalent));
                if !identical && !short {
                    out.insert(&word, equivalent);
                }
            }
        }
        out
    }

    /// The other direction. Words that share an equivalent become its equivalents, in alphabetical order.
    pub fn invert(&self) -> Dictionary {
        let mut pairs: Vec<(&String, &String)> =
            self.entries.iter().flat_map(|(word, all)| all.iter().map(move |e| (e, word))).collect();
        pairs.sort();
        let mut out = Dictionary::default();
        for (equivalent, word) in pairs {
            out.insert(equivalent, word);
        }
        out
    }
}

/// NFC, single spaces, no space at the ends.
fn normal(text: &str) -> String {
    if !text.contains(char::is_whitespace) && is_nfc_quick(text.chars()) == IsNormalized::Yes {
        return text.into();
    }
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.extend(word.nfc());
    }
    out
}

/// Lower case, NFC, one form of apostrophe, no soft hyphens.
fn key_of(word: &str) -> String {
    if word.is_ascii() && !word.contains(char::is_whitespace) {
        return word.to_ascii_lowercase();
    }
    let mut lower = word.to_lowercase();
    if lower.contains(|c: char| c == '\u{ad}' || (c != '\'' && is_apostrophe(c))) {
        let plain = |c: char| if is_apostrophe(c) { '\'' } else { c };
        lower = lower.chars().filter(|c| *c != '\u{ad}').map(plain).collect();
    }
    normal(&lower)
}

/// The key of the first word of a text, with all that an I becomes as one letter.
fn first_key(text: &str) -> String {
    let first = text.split(' ').next().unwrap_or_default();
    let key = key_of(first);
    if key.is_ascii() {
        key
    } else {
        key.chars().filter(|c| *c != '\u{307}').map(|c| if c == 'ı' { 'i' } else { c }).collect()
    }
}
