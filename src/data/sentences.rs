//! Lossless segmentation of text for translation: what to translate, sentence by sentence, and what to leave as it is.
//!
//! Translators lose sentences, line breaks, lists and code when given whole texts; given the pieces of [`split`], and [`join`]ed again,
//! everything between the sentences survives byte for byte.
use std::sync::LazyLock;

use regex::Regex;

/// A piece of a text. The pieces' concatenation is the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextPiece<'a> {
    /// One sentence, without the white space around it.
    Sentence(&'a str),
    /// White space, line breaks, list markers, code, addresses alone on a line: never translated.
    Keep(&'a str),
}

/// Words before a full stop that do not end a sentence (English and languages with the same habits).
const ABBREVIATIONS: &[&str] = &[
    "mr", "mrs", "ms", "dr", "prof", "st", "vs", "etc", "e.g", "i.e", "fig", "no", "vol", "inc", "ltd", "jr",
    "sr", "approx", "p", "pp", "cf", "al", "sra", "srta", "ud", "uds", "pág", "núm", "z.b", "d.h", "bzw",
    "usw",
];

/// A list marker or quote mark with its spaces, at the start of a line.
static MARKER: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"^[ \t]*(?:[-*+•–>#]+[ \t]+|\(?[0-9]{1,3}[.)][ \t]+|\(?[a-z][.)][ \t]+)+").ok()
});

/// Splits `text`.
pub fn split(text: &str) -> Vec<TextPiece<'_>> {
    let mut pieces = vec![];
    // Odd parts lie between ``` fences; an unpaired last fence opens code up to the end.
    let mut rest = text;
    while let Some(open) = rest.find("```") {
        let close = rest[open + 3..].find("```").map_or(rest.len(), |i| open + 3 + i + 3);
        split_lines(&rest[..open], &mut pieces);
        pieces.push(TextPiece::Keep(&rest[open..close]));
        rest = &rest[close..];
    }
    split_lines(rest, &mut pieces);
    pieces
}

/// Puts the pieces of [`split`] together, the sentences replaced in order.
pub fn join(pieces: &[TextPiece], sentences: &[String]) -> String {
    let mut translated = sentences.iter();
    let mut out = String::new();
    for piece in pieces {
        match piece {
            TextPiece::Keep(text) => out.push_str(text),
            TextPiece::Sentence(text) => out.push_str(translated.next().map_or(text, |s| s.trim())),
        }
    }
    out
}

/// The sentences alone.
pub fn sentences(text: &str) -> Vec<&str> {
    let sentence = |p| if let TextPiece::Sentence(s) = p { Some(s) } else { None };
    split(text).into_iter().filter_map(sentence).collect()
}

fn split_lines<'a>(text: &'a str, out: &mut Vec<TextPiece<'a>>) {
    for line in text.split_inclusive('\n') {
        let marker = MARKER.as_ref().and_then(|m| m.find(line)).map_or(0, |m| m.end());
        if marker > 0 {
            out.push(TextPiece::Keep(&line[..marker]));
        }
        split_line(&line[marker..], out);
    }
}

fn split_line<'a>(line: &'a str, out: &mut Vec<TextPiece<'a>>) {
    let mut start = 0;
    for end in boundaries(line).into_iter().chain([line.len()]) {
        push_trimmed(&line[start..end], out);
        start = end;
    }
}

/// White space around becomes `Keep`; a piece without letters is kept as it is.
fn push_trimmed<'a>(text: &'a str, out: &mut Vec<TextPiece<'a>>) {
    let body = text.trim();
    if body.is_empty() {
        if !text.is_empty() {
            out.push(TextPiece::Keep(text));
        }
        return;
    }
    let lead = text.len() - text.trim_start().len();
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

/// Offsets behind each sentence end inside a line.
fn boundaries(line: &str) -> Vec<usize> {
    let mut ends = vec![];
    let chars: Vec<(usize, char)> = line.char_indices().collect();
    for (i, &(at, c)) in chars.iter().enumerate() {
        let next = chars.get(i + 1).map(|x| x.1);
        match c {
            // These end a sentence with or without a space behind.
            '。' | '！' | '？' | '។' | '।' if !next.is_some_and(|n| "」』”’）)。！？".contains(n)) =>
            {
                ends.push(at + c.len_utf8());
            }
            '.' | '!' | '?' | '…' => {
                // Closing quotes and brackets belong to the sentence.
                let mut j = i + 1;
                while chars.get(j).is_some_and(|x| "\"'”’»)]".contains(x.1)) {
                    j += 1;
                }
                let (Some(space), Some(after)) = (chars.get(j), chars.get(j + 1)) else { continue };
                let starts = !after.1.is_lowercase() && !after.1.is_whitespace();
                if space.1.is_whitespace() && starts && !(c == '.' && is_abbreviation(&line[..at])) {
                    ends.push(space.0);
                }
            }
            _ => {}
        }
    }
    ends
}

/// Whether the word that `before` ends with is an abbreviation or an initial.
fn is_abbreviation(before: &str) -> bool {
    let word = before.rsplit(|c: char| c.is_whitespace() || "([\"'“".contains(c)).next().unwrap_or_default();
    let mut letters = word.chars();
    let initial = letters.next().is_some_and(char::is_uppercase) && letters.next().is_none() && word != "I";
    initial || ABBREVIATIONS.contains(&word.to_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sentences_end_where_readers_end_them() {
        for (text, expected) in [
            ("Hello there. How are you?", vec!["Hello there.", "How are you?"]),
            ("Dr. Smith paid 3.50 dollars. He left.", vec!["Dr. Smith paid 3.50 dollars.", "He left."]),
            ("J. R. Tolkien wrote it. Yes!", vec!["J. R. Tolkien wrote it.", "Yes!"]),
            ("He said \"Stop.\" Then he ran.", vec!["He said \"Stop.\"", "Then he ran."]),
            ("これは本です。あれも本です。", vec!["これは本です。", "あれも本です。"]),
            ("¿Qué es? ¡Nada! Ya.", vec!["¿Qué es?", "¡Nada!", "Ya."]),
            ("version 2.0 is out", vec!["version 2.0 is out"]),
            ("1. First item\n2. Second item", vec!["First item", "Second item"]),
            ("Use this:\n```\nlet x = 1;\n```\nDone.", vec!["Use this:", "Done."]),
            ("See\nhttps://example.org/a.b\nnow", vec!["See", "now"]),
            ("3 + 4 = 7", vec![]),
        ] {
            assert_eq!(sentences(text), expected, "{text}");
        }
    }

    #[test]
    fn joining_keeps_lists_code_and_line_breaks() {
        let text = "- One. Two.\n\n```py\nx = 1\n```\n  * Three\n";
        let upper: Vec<String> = sentences(text).iter().map(|s| s.to_uppercase()).collect();
        assert_eq!(join(&split(text), &upper), "- ONE. TWO.\n\n```py\nx = 1\n```\n  * THREE\n");
    }

    proptest! {
        #[test]
        fn pieces_concatenate_to_the_text(text in "[a-zA-Z.!?`\\n\\t 。¿0-9)\"-]{0,80}|\\PC{0,60}") {
            let pieces = split(&text);
            let whole: String = pieces.iter().map(|p| match p { TextPiece::Sentence(s) | TextPiece::Keep(s) => *s }).collect();
            prop_assert_eq!(&whole, &text);
            let own: Vec<String> = sentences(&text).iter().map(|s| s.to_string()).collect();
            prop_assert_eq!(join(&pieces, &own), text);
        }
    }
}
