//! dictd databases as FreeDict ships them: `X.index` (headword, offset and size in base-64 digits) and `X.dict` or `X.dict.dz` (gzip).
//!
//! An entry is `headword /pronunciation/ <word class>` on its first line, then its equivalents: `a, b` or, numbered, `1. a, b`. Indented lines are
//! notes; other lines (those of Wiktionary's FreeDicts) are explanations in the source language.
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{Dictionary, key_of, normal};
use crate::data::text_file::read_bytes;

/// No real dictionary is larger when unpacked (the largest FreeDict, German, has 70 MB).
const LIMIT: u64 = 1 << 30;
/// An equivalent of more words is an explanation.
const MOST_WORDS: usize = 5;

/// Reads the database that `path` belongs to: the `.index`, the `.dict`, the `.dict.dz`, or their common name.
pub(super) fn load(path: &Path) -> Result<Dictionary> {
    let name = path.file_name().map(|n| n.to_string_lossy().to_string()).unwrap_or_default();
    let stem = [".index", ".dict.dz", ".dict"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(&name);
    let beside = |suffix: &str| -> PathBuf { path.with_file_name(format!("{stem}{suffix}")) };
    let index = beside(".index");
    ensure!(index.exists(), "dictd dictionary {}: {} is missing beside it", path.display(), index.display());
    let text = [beside(".dict"), beside(".dict.dz")].into_iter().find(|p| p.exists()).with_context(|| {
        format!("dictd dictionary {}: neither .dict nor .dict.dz beside it", index.display())
    })?;
    let index_bytes = read_bytes(&index, LIMIT)?;
    let text_bytes = read_bytes(&text, LIMIT)?;
    parse(&index_bytes, &text_bytes)
        .map_err(|e| e.context(format!("read {} and {}", index.display(), text.display())))
}

/// Parses the bytes of an index and of an unpacked text.
pub fn parse(index: &[u8], text: &[u8]) -> Result<Dictionary> {
    // By key: the equivalents of headwords in lower case, and of capitalised ones. Where both are there the second is another word (`polish`,
    // `Polish`) or, in some FreeDicts, a phrase cut short (`All` for All Saints' Day).
    let mut found: HashMap<String, [Vec<String>; 2]> = HashMap::new();
    let mut order = vec![];
    for (number, line) in index.split(|b| *b == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let row = index_row(line).map_err(|e| anyhow!("line {} of the index: {e}", number + 1))?;
        let (word, offset, size) = row;
        if word.starts_with("00database") || word.starts_with("00-database") {
            continue;
        }
        let Some(bytes) = offset.checked_add(size).and_then(|end| text.get(offset..end)) else {
            bail!(
                "line {} of the index: {word:?} lies at {offset}..+{size}, but the text has {} bytes (cut off?)",
                number + 1,
                text.len()
            );
        };
        let entry = String::from_utf8_lossy(bytes);
        let Some((headword, equivalents)) = equivalents(&entry) else { continue };
        let key = key_of(&headword);
        if key != key_of(&word) {
            continue;
        }
        let known = found.entry(key.clone()).or_insert_with(|| {
            order.push(key);
            Default::default()
        });
        known[usize::from(headword != headword.to_lowercase())].extend(equivalents);
    }
    let mut dictionary = Dictionary::default();
    for key in &order {
        if let Some([lower, capital]) = found.get(key) {
            for equivalent in if lower.is_empty() { capital } else { lower } {
                dictionary.insert(key, equivalent);
            }
        }
    }
    Ok(dictionary)
}

fn index_row(line: &[u8]) -> Result<(String, usize, usize)> {
    let mut fields = line.split(|b| *b == b'\t');
    let word = fields.next().unwrap_or_default();
    let (Some(offset), Some(size)) = (fields.next(), fields.next()) else {
        bail!("expected headword, offset and size between tabs, found {:?}", String::from_utf8_lossy(line));
    };
    Ok((String::from_utf8_lossy(word).to_string(), number(offset)?, number(size)?))
}

/// A big-endian number in the digits A-Z a-z 0-9 + /.
fn number(digits: &[u8]) -> Result<usize> {
    let mut value = 0usize;
    ensure!(!digits.is_empty(), "a number is missing");
    for digit in digits {
        let d = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => bail!("{:?} is not a base-64 number", String::from_utf8_lossy(digits)),
        };
        value =
            value.checked_mul(64).and_then(|v| v.checked_add(d as usize)).context("a number is too large")?;
    }
    Ok(value)
}

/// The headword and the equivalents of one entry; `None` for an entry without a headword.
pub fn equivalents(entry: &str) -> Option<(String, Vec<String>)> {
    let mut lines = entry.lines();
    let headword = headword(lines.next()?);
    if headword.is_empty() {
        return None;
    }
    let mut senses: Vec<String> = vec![];
    let mut open = false;
    for (i, line) in lines.filter(|l| !l.trim().is_empty() && !l.starts_with([' ', '\t'])).enumerate() {
        let (numbered, text) = without_number(line);
        if i == 0 || numbered {
            senses.push(text.to_string());
        } else if let Some(last) = senses.last_mut().filter(|_| open) {
            // The sense before ended in a comma: it was wrapped.
            last.push(' ');
            last.push_str(text);
        } else {
            open = false;
            continue;
        }
        open = line.trim_end().ends_with(',');
    }
    let mut out = vec![];
    for sense in &senses {
        for piece in without_brackets(sense).split([',', ';', '、', '，']) {
            let piece = clean(piece);
            let words = piece.split(' ').count();
            let odd = piece.contains([':', '"', '/', '=', '“']) || !piece.chars().any(char::is_alphabetic);
            if !piece.is_empty() && !odd && words <= MOST_WORDS && !out.contains(&piece) {
                out.push(piece);
            }
        }
    }
    Some((headword, out))
}

/// `water /wɔːtər/ <n>` without pronunciation and word class.
fn headword(line: &str) -> String {
    let end =
        line.find(" /").into_iter().chain(line.find(" <")).chain(line.find(" [")).min().unwrap_or(line.len());
    normal(&line[..end])
}

/// Whether the line begins with `1. ` or `12) `, and what follows.
fn without_number(line: &str) -> (bool, &str) {
    let digits = line.bytes().take_while(u8::is_ascii_digit).count();
    let rest = &line[digits..];
    match rest.strip_prefix(". ").or_else(|| rest.strip_prefix(") ")) {
        Some(text) if (1..=2).contains(&digits) => (true, text),
        _ => (false, line),
    }
}

/// Without notes in (), [], <>, {}; a bracket that is never closed ends the text.
fn without_brackets(text: &str) -> String {
    let mut out = String::new();
    let mut depth = 0usize;
    for c in text.chars() {
        match c {
            '(' | '[' | '<' | '{' => depth += 1,
            ')' | ']' | '>' | '}' => depth = depth.saturating_sub(1),
            _ if depth == 0 => out.push(c),
            _ => {}
        }
    }
    out
}

/// Without numbers at the end (`брат 2.`), stress marks on Cyrillic letters (`ка́нджа`), `~` for a space, and punctuation at the ends.
fn clean(piece: &str) -> String {
    let mut out = String::new();
    let mut last = ' ';
    for c in normal(&piece.replace('~', " ")).chars() {
        let stress = matches!(c, '\u{300}' | '\u{301}') && ('\u{400}'..='\u{52f}').contains(&last);
        if !stress && !matches!(c, '\u{200b}' | '\u{feff}' | '\u{ad}') {
            out.push(c);
            last = c;
        }
    }
    let out = out.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == ' ');
    let ends = |c: char| c.is_whitespace() || matches!(c, '!' | '?' | '.' | '-' | '\'' | '*' | '…' | '。');
    normal(out.trim_matches(ends))
}
