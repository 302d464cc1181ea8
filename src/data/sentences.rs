//! Lossless segmentation of text for translation: what to translate, sentence by sentence, and what to leave as it is.
//!
//! Translators lose sentences, line breaks, lists and code when given whole texts; given the pieces of [`split`], and [`join`]ed again,
//! everything between the sentences survives byte for byte, but for the space that one script wants behind a sentence and another does not.
use std::{ops::Range, sync::LazyLock};

use regex::Regex;

use super::{
    languages::charset::{closes, ends_sentence, is_format},
    markup,
};
use rules::{Rules, rules};

mod rules;

/// A piece of a text. The pieces' concatenation is the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextPiece<'a> {
    /// One sentence, without the white space around it.
    Sentence(&'a str),
    /// White space, line breaks, list markers, code, addresses alone on a line: never translated.
    Keep(&'a str),
}

/// A list marker or quote mark with its spaces, at the start of a line.
static MARKER: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"^[ \t]*(?:[-*+•–>#]+[ \t]+|\(?[0-9]{1,3}[.)][ \t]+|\(?[a-z][.)][ \t]+)+").ok()
});

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

fn split_lines<'a>(text: &'a str, rules: &Rules, out: &mut Vec<TextPiece<'a>>) {
    for line in text.split_inclusive('\n') {
        let marker = MARKER.as_ref().and_then(|m| m.find(line)).map_or(0, |m| m.end());
        if marker > 0 {
            out.push(TextPiece::Keep(&line[..marker]));
        }
        split_line(&line[marker..], rules, out);
    }
}

fn split_line<'a>(line: &'a str, rules: &Rules, out: &mut Vec<TextPiece<'a>>) {
    let mut start = 0;
    for end in boundaries(line, rules).into_iter().chain([line.len()]) {
        push_trimmed(&line[start..end], out);
        start = end;
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

/// Offsets behind each sentence end inside a line.
fn boundaries(line: &str, rules: &Rules) -> Vec<usize> {
    let chars: Vec<(usize, char)> = line.char_indices().collect();
    let whole = wholes(line, &chars);
    let mut ends = vec![];
    for (i, &(at, c)) in chars.iter().enumerate() {
        let Some(end) = end_at(line, &chars, i, rules) else { continue };
        // Nothing is cut inside of code, formulas and short quotations; the end of one may be the end of a sentence.
        if whole.iter().any(|w| w.contains(&at) && w.end > end) {
            continue;
        }
        debug_assert!(end >= at + c.len_utf8());
        ends.push(end);
    }
    ends.dedup();
    ends
}

/// Where the sentence ends that the character with number `i` ends, if it does.
fn end_at(line: &str, chars: &[(usize, char)], i: usize, rules: &Rules) -> Option<usize> {
    let (at, c) = chars[i];
    let next = chars.get(i + 1).map(|x| x.1);
    let asks = rules.semicolon_asks && matches!(c, ';' | '\u{37e}') || rules.colon_ends && c == ':';
    let spaced = asks || matches!(c, '.' | '!' | '?' | '…' | '།' | '༎' | '‼' | '‽' | '⁇' | '⁈' | '⁉');
    if !spaced {
        // These end a sentence with or without a space behind. In Burmese ၊ is a comma; Armenian's ՜ and ՞ stand inside of words.
        let ethiopic = c == '፡' && i > 0 && chars[i - 1].1 == '፡';
        let hard = (ethiopic || ends_sentence(c))
            && !matches!(c, '၊' | '՜' | '՞' | '๚' | '๛' | '༏' | '༐' | '༑' | '៖');
        let number = c == '．' && next.is_some_and(char::is_numeric);
        let goes_on = next.is_some_and(|n| ends_sentence(n) || n == '…' || closes(n) && !is_opening(n));
        return match (hard && !number, goes_on) {
            (false, _) => None,
            (true, false) => Some(at + c.len_utf8()),
            // Closing marks: the sentence ends behind them where white space follows.
            (true, true) => behind_closers(chars, i).filter(|(_, open)| *open).map(|(end, _)| end),
        };
    }
    let (end, open) = behind_closers(chars, i)?;
    if !open || ends_sentence(next.unwrap_or(' ')) {
        return None;
    }
    let quoted_before_full_stop = c == '.' && goes_on_after(line, at, end, rules);
    (!quoted_before_full_stop).then_some(end)
}

/// Whether the full stop at `at` belongs to an abbreviation or a number that the text at `end` goes on from.
fn goes_on_after(line: &str, at: usize, end: usize, rules: &Rules) -> bool {
    let before = |c: char| c.is_whitespace() || "([{\"'“‘«„".contains(c);
    let word = line[..at].rsplit(before).next().unwrap_or_default();
    let next = line[end..].trim_start().trim_start_matches(|c: char| !c.is_alphanumeric());
    let rest = next;
    let next = rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    rules.goes_on(word, next, rest[next.len()..].starts_with('.'))
}

/// The offset behind the closing marks that follow character `i`, and whether white space and something that may begin a sentence is there.
fn behind_closers(chars: &[(usize, char)], i: usize) -> Option<(usize, bool)> {
    let mut j = i + 1;
    while chars.get(j).is_some_and(|x| closes(x.1) && !is_opening(x.1) || is_format(x.1)) {
        j += 1;
    }
    let (space, after) = (chars.get(j)?, chars.get(j + 1));
    let begins = after.is_some_and(|a| !is_small(a.1) && !a.1.is_whitespace() && !ends_sentence(a.1));
    Some((space.0, space.1.is_whitespace() && begins))
}

/// A small letter, before which no sentence begins. Georgian's letters are small to Unicode, which has capitals for headlines.
fn is_small(c: char) -> bool {
    c.is_lowercase() && !('ა'..='ჿ').contains(&c)
}

/// Marks that open quotations in the languages where they are not doubtful, and marks of emphasis that may.
fn is_opening(c: char) -> bool {
    matches!(c, '“' | '‘' | '«' | '„' | '‚' | '`' | '_')
}

/// Longest quotation or remark in brackets, in bytes, that is kept whole.
const WHOLE: usize = 240;

/// Parts of a line in which no sentence ends: code and formulas, short quotations and remarks in brackets.
fn wholes(line: &str, chars: &[(usize, char)]) -> Vec<Range<usize>> {
    let mut out = markup::spans(line);
    let mut open: Vec<(char, usize)> = vec![];
    for &(at, c) in chars {
        let closing = match c {
            '(' => Some(')'),
            '[' => Some(']'),
            '（' => Some('）'),
            '「' => Some('」'),
            '『' => Some('』'),
            '“' => Some('”'),
            '„' if line[at..].contains('”') => Some('”'),
            '„' => Some('“'),
            '«' => Some('»'),
            '‘' if line[at..].contains('’') => Some('’'),
            '"' if !open.iter().any(|(c, _)| *c == '"') => Some('"'),
            _ => None,
        };
        if let Some(place) = open.iter().rposition(|(closing, _)| *closing == c)
            && (c != '’' || !line[at + c.len_utf8()..].starts_with(char::is_alphanumeric))
        {
            let start = open[place].1;
            open.truncate(place);
            if at - start <= WHOLE {
                out.push(start..at + c.len_utf8());
            }
        } else if let Some(closing) = closing {
            open.push((closing, at));
        }
    }
    out
}

#[cfg(test)]
mod tests;
