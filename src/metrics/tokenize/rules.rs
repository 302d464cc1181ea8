//! Tokenizers that are rules: mteval's 13a and 14 (international), Chinese characters, and Tercom's normaliser.
use std::sync::LazyLock;

use regex::Regex;

use super::{is_space, split};

/// mteval-v13a.
pub(super) fn v13a(line: &str) -> String {
    let mut line = line.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    if line.contains('&') {
        line = unescape(line);
    }
    joined(&western(&format!(" {line} ")))
}

/// 13a's spacing after each Chinese character got spaces around it.
pub(super) fn zh(line: &str) -> String {
    let mut spaced = String::with_capacity(2 * line.len());
    for c in line.trim_matches(is_space).chars() {
        if is_chinese(c) { spaced.extend([' ', c, ' ']) } else { spaced.push(c) }
    }
    joined(&western(&spaced))
}

static INTERNATIONAL: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [(r"(\P{N})(\p{P})", "$1 $2 "), (r"(\p{P})(\P{N})", " $1 $2"), (r"(\p{S})", " $1 ")]
        .into_iter()
        .filter_map(|(pattern, to)| Some((Regex::new(pattern).ok()?, to)))
        .collect()
});

/// mteval-v14's international tokenization: spaces around punctuation that no digit touches, and around symbols.
pub(super) fn intl(line: &str) -> String {
    let spaced = INTERNATIONAL
        .iter()
        .fold(line.to_string(), |line, (rule, to)| rule.replace_all(&line, *to).into_owned());
    joined(&spaced)
}

fn unescape(mut line: String) -> String {
    for (entity, c) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        line = line.replace(entity, c);
    }
    line
}

fn joined(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in split(text) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

/// Spaces around punctuation, as mteval and Tercom set them. Only ASCII moves, so the rules work on bytes.
fn western(line: &str) -> String {
    periods(&punctuation(line.as_bytes()))
}

/// Spaces around ASCII punctuation and symbols other than `'` `,` `-` `.`
fn punctuation(line: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 * line.len());
    for b in line {
        match b {
            b'{'..=b'~' | b'['..=b'`' | b' '..=b'&' | b'('..=b'+' | b':'..=b'@' | b'/' => {
                out.extend([b' ', *b, b' ']);
            }
            _ => out.push(*b),
        }
    }
    out
}

/// Three rules one after the other, each from left to right without overlaps: period and comma get spaces unless a digit stands before them;
/// unless a digit stands behind them; a dash behind a digit gets them.
fn periods(line: &[u8]) -> String {
    let mark = |b: &u8| matches!(b, b'.' | b',');
    let digit = |b: &u8| b.is_ascii_digit();
    let line = pairs(line, |a, b| !digit(a) && mark(b), |a, b| [a, b' ', b, b' ']);
    let line = pairs(&line, |a, b| mark(a) && !digit(b), |a, b| [b' ', a, b' ', b]);
    let line = pairs(&line, |a, b| digit(a) && *b == b'-', |a, b| [a, b' ', b, b' ']);
    String::from_utf8_lossy(&line).into_owned()
}

fn pairs(line: &[u8], found: impl Fn(&u8, &u8) -> bool, to: impl Fn(u8, u8) -> [u8; 4]) -> Vec<u8> {
    let mut out = Vec::with_capacity(line.len() + line.len() / 4 + 8);
    let mut rest = line;
    while let [a, tail @ ..] = rest {
        rest = tail;
        match tail {
            [b, behind @ ..] if found(a, b) => {
                out.extend(to(*a, *b));
                rest = behind;
            }
            _ => out.push(*a),
        }
    }
    out
}

/// The ranges of sacrebleu's tokenizer_zh. Two of them are beyond 16 bits there and, compared as Python strings, mean U+2001..U+2A6D and
/// U+2F81..U+2FA1; the same is done here.
fn is_chinese(c: char) -> bool {
    matches!(c as u32,
        0x3400..=0x4DB5 | 0x4E00..=0x9FA5 | 0x9FA6..=0x9FBB | 0xF900..=0xFA2D | 0xFA30..=0xFA6A | 0xFA70..=0xFAD9
        | 0x2001..=0x2A6D | 0x2F81..=0x2FA1 | 0xFF00..=0xFFEF | 0x2E80..=0x2EFF | 0x3000..=0x303F | 0x31C0..=0x31EF
        | 0x2F00..=0x2FDF | 0x2FF0..=0x2FFF | 0x3100..=0x312F | 0x31A0..=0x31BF | 0xFE10..=0xFE1F | 0xFE30..=0xFE4F
        | 0x3200..=0x32FF | 0x3300..=0x33FF)
}

/// How Tercom prepares a line (Snover et al. 2006; sacrebleu's `--ter-*` options).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TercomOptions {
    /// Set spaces around punctuation
    pub normalized: bool,
    /// Delete punctuation
    pub no_punct: bool,
    /// With `normalized`, split Asian characters too; with `no_punct`, delete Asian punctuation too
    pub asian_support: bool,
    /// Do not lower-case
    pub case_sensitive: bool,
}

/// The words of a line as Tercom sees them, each separated by one space.
pub fn tercom(line: &str, options: &TercomOptions) -> String {
    let line = line.trim_end_matches(is_space);
    let mut line = if options.case_sensitive { line.to_string() } else { line.to_lowercase() };
    if options.normalized {
        line = unescape(line.replace("\n-", "").replace('\n', " "));
        let padded = punctuation(format!(" {line} ").as_bytes());
        line = periods(String::from_utf8_lossy(&padded).replace("'s ", " 's ").as_bytes());
        if options.asian_support {
            let spaced = |c: char| if is_tercom_asian(c) { vec![' ', c, ' '] } else { vec![c] };
            line = line.chars().flat_map(spaced).collect();
        }
    }
    if options.no_punct {
        line.retain(|c| {
            let western = matches!(c, '.' | ',' | '?' | ':' | ';' | '!' | '"' | '(' | ')');
            !(western || options.asian_support && is_asian_punctuation(c))
        });
    }
    joined(&line)
}

/// The ranges that sacrebleu's Tercom tokenizer splits, U+3200..U+3F22 as it is written there. Its rules for runs of kana are anchored at
/// the start of the line, which is always a space: they do nothing.
fn is_tercom_asian(c: char) -> bool {
    is_asian_punctuation(c)
        || matches!(c, '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}' | '\u{31c0}'..='\u{31ef}' | '\u{2e80}'..='\u{2eff}'
            | '\u{3300}'..='\u{33ff}' | '\u{f900}'..='\u{faff}' | '\u{fe30}'..='\u{fe4f}' | '\u{3200}'..='\u{3f22}')
}

fn is_asian_punctuation(c: char) -> bool {
    matches!(c, '\u{3001}' | '\u{3002}' | '\u{3008}'..='\u{3011}' | '\u{3014}'..='\u{301f}' | '\u{ff61}'..='\u{ff65}' | '\u{30fb}'
        | '\u{ff0e}' | '\u{ff0c}' | '\u{ff1f}' | '\u{ff1a}' | '\u{ff1b}' | '\u{ff01}' | '\u{ff02}' | '\u{ff08}' | '\u{ff09}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex::Regex;

    use super::western;

    proptest! {
        /// mteval's rules as the regular expressions they are written as.
        #[test]
        fn the_byte_rules_are_the_regular_expressions(line in "[a-c0-2 .,'/{&<\\-éñ。\n]{0,40}") {
            let rules = [
                (r"([\{-\~\[-` -\&\(-\+\:-\@\/])", " $1 "),
                (r"([^0-9])([\.,])", "$1 $2 "),
                (r"([\.,])([^0-9])", " $1 $2"),
                (r"([0-9])(-)", "$1 $2 "),
            ];
            let expected = rules.iter().fold(line.clone(), |line, (rule, to)| {
                Regex::new(rule).unwrap().replace_all(&line, *to).into_owned()
            });
            prop_assert_eq!(western(&line), expected);
        }
    }
}
