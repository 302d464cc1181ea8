//! Lossless segmentation of text for translation: what to translate, sentence by sentence, and what to leave as it is.
//!
//! Translators lose sentences, line breaks, lists and code when given whole texts; given the pieces of [`split`], and [`join`]ed again,
//! everything between the sentences survives byte for byte, but for the space that one script wants behind a sentence and another does not.
use std::sync::LazyLock;

use regex::Regex;

use rules::{Rules, rules};

mod line;
mod rules;

/// A piece of a text. The pieces' concatenation is the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextPiece<'a> {
    /// One sentence, without the white space around it.
    Sentence(&'a str),
    /// White space, line breaks, list markers, code, addresses alone on a line: never translated.
    Keep(&'a str),
}

/// A list marker or quote mark with its spaces, at the start of a line or of an item.
static MARKER: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"^[ \t]*(?:[-*+•–>#]+[ \t]+|[•⁃‣]|\(?[0-9]{1,3}(?:\.\)|[.)])[ \t]+|\(?[a-z](?:\.\)|[.)])[ \t]+)+",
    )
    .ok()
});

/// The bytes of the marker at the beginning of `text`.
fn marker(text: &str, rules: &Rules) -> usize {
    let found = MARKER.as_ref().and_then(|m| m.find(text)).map_or(0, |m| m.end());
    if rules.counts_items(&text[..found], &text[found..]) { found } else { 0 }
}

/// Splits `text`, which is in `language`.
pub fn split<'a>(text: &'a str, language: &str) -> Vec<TextPiece<'a>> {
    let rules = rules(language);
    let mut pieces = vec![];
    // Odd parts lie between ``` fences; an unpaired last fence opens code up to the end.
    let mut rest = text;
    while let Some(open) = rest.find("```") {
        let close = rest[open + 3..].find("```").map_or(rest.len(), |i| open + 3 + i + 3);
        split_lines(&rest[..open], &rules, &mut pieces);
        pieces.push(TextPiece::Keep(&rest[open..close]));
        rest = &rest[close..];
    }
    split_lines(rest, &rules, &mut pieces);
    pieces
}

/// Puts the pieces of [`split`] together, the sentences replaced in order. Between two sentences of a line a space is added where the first was written
/// with none behind it and its translation wants one (`です。` to `book.`), and left out where it is the other way round.
pub fn join(pieces: &[TextPiece], sentences: &[String]) -> String {
    let mut translated = sentences.iter();
    let mut out = String::new();
    // The sentence last written: its end before and after translation.
    let mut last: Option<(char, char)> = None;
    for (i, piece) in pieces.iter().enumerate() {
        match piece {
            TextPiece::Keep(text) => {
                let spaces = !text.is_empty() && text.chars().all(|c| c == ' ' || c == '\u{3000}');
                let between = matches!(pieces.get(i + 1), Some(TextPiece::Sentence(_)));
                let superfluous = last.is_some_and(|(from, to)| from != to && is_wide(to) && !is_wide(from));
                if !(spaces && between && superfluous) {
                    out.push_str(text);
                }
                last = None;
            }
            TextPiece::Sentence(text) => {
                let new = translated.next().map_or(*text, |s| s.trim());
                if last.is_some_and(|(from, to)| from != to && !is_wide(to)) {
                    out.push(' ');
                }
                out.push_str(new);
                last = text.chars().next_back().zip(new.chars().next_back());
            }
        }
    }
    out
}

/// An end of a sentence as wide as an ideograph, behind which no space is written.
fn is_wide(c: char) -> bool {
    matches!(c, '。' | '！' | '？' | '｡' | '．' | '」' | '』' | '）' | '】' | '》')
}

/// The sentences alone.
pub fn sentences<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let sentence = |p| if let TextPiece::Sentence(s) = p { Some(s) } else { None };
    split(text, language).into_iter().filter_map(sentence).collect()
}

/// Unicode's mandatory breaks; a carriage return too, by itself or before a line feed.
fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

fn split_lines<'a>(text: &'a str, rules: &Rules, out: &mut Vec<TextPiece<'a>>) {
    for line in text.split_inclusive(is_line_end) {
        // Items of a list inside of a line, behind the first.
        let items = line::items(line, rules);
        let mut start = 0;
        for end in line::boundaries(line, marker(line, rules), &items, rules).into_iter().chain([line.len()])
        {
            let is_item = start == 0 || items.iter().any(|item| item.start == start);
            let body = start + if is_item { marker(&line[start..end], rules) } else { 0 };
            if body > start {
                out.push(TextPiece::Keep(&line[start..body]));
            }
            push_trimmed(&line[body..end], out);
            start = end;
        }
    }
}

/// White space and invisible characters around become `Keep`; a piece without letters is kept as it is.
fn push_trimmed<'a>(text: &'a str, out: &mut Vec<TextPiece<'a>>) {
    // Joiners and marks of direction inside of a sentence are its own; at its ends only what is no mark of direction goes.
    let blank = |c: char| c.is_whitespace() || matches!(c, '\u{feff}' | '\u{200b}' | '\u{2060}');
    let body = text.trim_matches(blank);
    if body.is_empty() {
        if !text.is_empty() {
            out.push(TextPiece::Keep(text));
        }
        return;
    }
    let lead = text.len() - text.trim_start_matches(blank).len();
    let end = lead + body.len();
    if lead > 0 {
        out.push(TextPiece::Keep(&text[..lead]));
    }
    let address = !body.contains(char::is_whitespace) && (body.contains("://") || body.starts_with("www."));
    let translatable = body.chars().any(char::is_alphabetic) && !address;
    out.push(if translatable { TextPiece::Sentence(body) } else { TextPiece::Keep(body) });
    if end < text.len() {
        out.push(TextPiece::Keep(&text[end..]));
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
