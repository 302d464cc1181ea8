//! MUSE (`xx-yy.txt`: "source target" in lower case, repeated sources are alternatives in order of frequency) and tab-separated pairs.
use std::path::Path;

use anyhow::{Result, bail};

use super::Dictionary;
use crate::data::text_file::lines;

pub(super) fn load(path: &Path, tab_only: bool) -> Result<Dictionary> {
    let mut dictionary = Dictionary::default();
    let mut reader = lines(path)?;
    while let Some(line) = reader.next() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        match parse_line(&line, tab_only) {
            Some((word, equivalents)) => {
                let word = without_end(word);
                alternatives(equivalents).for_each(|equivalent| dictionary.insert(word, equivalent));
            }
            None => bail!(
                "{}:{}: expected a word, a {} and its equivalent, found {:?}",
                path.display(),
                reader.number(),
                if tab_only { "tab" } else { "space or a tab" },
                line.chars().take(60).collect::<String>()
            ),
        }
    }
    Ok(dictionary)
}

/// `casa, hogar` names two equivalents; a comma inside of a number is none between words.
fn alternatives(text: &str) -> impl Iterator<Item = &str> {
    let mut last = ' ';
    let parts = text.split(move |c: char| {
        let between = matches!(c, ';' | '；' | '、' | '，' | '،' | '؛') || c == ',' && !last.is_numeric();
        last = c;
        between
    });
    parts.map(|part| without_end(part.trim())).filter(|part| !part.is_empty())
}

/// Without the punctuation that lists leave at the end of a word; the stop of an abbreviation of several letters (`U.S.`) stays.
fn without_end(word: &str) -> &str {
    let cut = word.trim_end_matches([',', ';', ':', '，', '、', '；', '،', '؛', ' ']);
    match cut.strip_suffix('.') {
        Some(short) if !short.contains('.') && short.chars().any(char::is_alphabetic) => short,
        _ => cut,
    }
}

/// The pair in a line: the fields before and after the first tab or, without one, before and after the first space. Further tab-separated fields
/// (scores) are ignored.
pub fn parse_line(line: &str, tab_only: bool) -> Option<(&str, &str)> {
    let (word, rest) = match line.split_once('\t') {
        Some((word, rest)) => (word, rest.split('\t').next().unwrap_or_default()),
        None if tab_only => return None,
        None => line.trim().split_once(char::is_whitespace)?,
    };
    let (word, rest) = (word.trim(), rest.trim());
    (!word.is_empty() && !rest.is_empty()).then_some((word, rest))
}
