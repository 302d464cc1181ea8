//! Where sentences end inside of a line.
use std::{collections::HashSet, ops::Range};

use super::rules::{Place, Rules};
use crate::data::{
    languages::charset::{closes, ends_sentence, is_format},
    markup,
};

/// A line, and what was found in it.
struct Line<'a> {
    text: &'a str,
    chars: Vec<(usize, char)>,
    /// Code, formulas, short quotations and remarks in brackets: no sentence ends inside.
    wholes: Vec<Range<usize>>,
    /// Where quotation marks stand that close a quotation in this line.
    closing: HashSet<usize>,
    rules: &'a Rules,
}

/// Offsets behind each sentence, but the last, of a line whose text begins at `from`, and of each of its `items`.
pub(super) fn boundaries(text: &str, from: usize, items: &[Range<usize>], rules: &Rules) -> Vec<usize> {
    let mut line = Line {
        text,
        chars: text.char_indices().collect(),
        wholes: markup::spans(text),
        closing: HashSet::new(),
        rules,
    };
    line.find_quotations();
    let mut ends: Vec<usize> = vec![];
    let mut start = from;
    for (i, &(at, c)) in line.chars.iter().enumerate() {
        if at < from || c.is_ascii_alphanumeric() && items.is_empty() {
            continue;
        }
        if items.iter().any(|item| item.start == at) && at > from {
            (start, _) = (at, ends.push(at));
        }
        if items.iter().any(|item| item.contains(&at)) {
            continue;
        }
        let Some(end) = line.end_at(i, start) else { continue };
        // The end of code or a quotation may be the end of a sentence.
        if line.wholes.iter().any(|w| w.contains(&at) && w.end > end) {
            continue;
        }
        debug_assert!(end >= at + c.len_utf8());
        if end < text.len() {
            ends.push(end);
            start = end;
        }
    }
    ends.dedup();
    ends
}

impl Line<'_> {
    fn char(&self, i: usize) -> Option<char> {
        self.chars.get(i).map(|x| x.1)
    }

    /// The offset of character `i`, or of the end.
    fn offset(&self, i: usize) -> usize {
        self.chars.get(i).map_or(self.text.len(), |x| x.0)
    }

    /// Where the sentence from `start` ends that the character with number `i` ends, if it does.
    fn end_at(&self, i: usize, start: usize) -> Option<usize> {
        let (at, c) = self.chars[i];
        let next = self.char(i + 1);
        let asks =
            self.rules.semicolon_asks && matches!(c, ';' | '\u{37e}') || self.rules.colon_ends && c == ':';
        let spaced = asks || matches!(c, '.' | '!' | '?' | '…' | '།' | '༎' | '‼' | '‽' | '⁇' | '⁈' | '⁉');
        if !spaced {
            // These end a sentence with or without a space behind. In Burmese ၊ is a comma; Armenian's ՜ and ՞ stand inside of words.
            let ethiopic = c == '፡' && i > 0 && self.chars[i - 1].1 == '፡';
            let hard = (ethiopic || ends_sentence(c))
                && !matches!(c, '၊' | '՜' | '՞' | '๚' | '๛' | '༏' | '༐' | '༑' | '៖');
            let between = i > 0 && self.chars[i - 1].1.is_numeric() && next.is_some_and(char::is_numeric);
            let number = matches!(c, '．' | '۔') && between;
            let goes_on = next.is_some_and(|n| {
                ends_sentence(n)
                    || n == '…'
                    || closes(n) && !is_opening(n)
                    || self.closing.contains(&self.offset(i + 1))
            });
            return match (hard && !number, goes_on) {
                (false, _) => None,
                (true, false) => Some(at + c.len_utf8()),
                // Closing marks: the sentence ends behind them where white space follows.
                (true, true) => self.behind_closers(i, c),
            };
        }
        if ends_sentence(next.unwrap_or(' ')) {
            return None;
        }
        let end = self.behind_closers(i, c)?;
        let goes_on = c == '.' && (self.is_spaced_ellipsis(i) || self.goes_on_after(at, end, start));
        (!goes_on && !self.is_cited_behind(end, c == '.')).then_some(end)
    }

    /// The last of three full stops with spaces between.
    fn is_spaced_ellipsis(&self, i: usize) -> bool {
        let is = |back: usize, c: char| i.checked_sub(back).and_then(|j| self.char(j)) == Some(c);
        is(1, ' ') && is(2, '.') && is(3, ' ') && is(4, '.') && is(5, ' ') && !is(6, '.')
    }

    /// Whether the full stop at `at` belongs to an abbreviation or a number that the text at `end` goes on from.
    fn goes_on_after(&self, at: usize, end: usize, start: usize) -> bool {
        let before = |c: char| c.is_whitespace() || "([{\"'“‘«„".contains(c);
        let sentence = self.text.get(start..at).unwrap_or_default();
        let word = sentence.rsplit(before).next().unwrap_or_default();
        let dash = self.text[end..].trim_start().starts_with(['-', '–']);
        let rest = self.text[end..].trim_start().trim_start_matches(|c: char| !c.is_alphanumeric());
        let next = rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        let has_stop = rest[next.len()..].starts_with('.');
        self.rules.goes_on(&Place {
            sentence,
            word: word.trim_start_matches(['-', '–']),
            next,
            has_stop,
            dash,
        })
    }

    /// Whether a remark in brackets follows that belongs to the sentence, since the sentence goes on or stops behind it: `"It is." (Smith 55).`
    fn is_cited_behind(&self, end: usize, stop: bool) -> bool {
        let rest = self.text[end..].trim_start();
        let Some(inside) = rest.strip_prefix('(') else { return false };
        let Some((inside, after)) = inside.split_once(')') else { return false };
        let short = inside.split_whitespace().count() <= 3 && !inside.ends_with(['.', '!', '?']);
        let quoted = self.text[..end].ends_with(|c: char| closes(c));
        short && (quoted && after.starts_with(['.', '!', '?']) || stop && after.starts_with([',', ';', ':']))
    }

    /// The offset behind the closing marks and footnotes that follow character `i`, which is `c`, where white space follows and then something that
    /// may begin a sentence.
    fn behind_closers(&self, i: usize, c: char) -> Option<usize> {
        let mut j = i + 1;
        loop {
            let closing = |j: usize| self.closing.contains(&self.offset(j)) && j < self.chars.len();
            if self.char(j).is_some_and(|c| closes(c) && !is_opening(c) || is_format(c)) || closing(j) {
                j += 1;
            } else if self.char(j).is_some_and(char::is_whitespace)
                && self.char(j + 1) == Some('»')
                && closing(j + 1)
            {
                // French: « Oui. »
                j += 2;
            } else {
                break;
            }
        }
        while let Some(behind) = self.behind_footnote(j) {
            j = behind;
        }
        let end = self.offset(j);
        let rest = &self.text[end..];
        if !rest.starts_with(char::is_whitespace) {
            return None;
        }
        self.may_begin(rest.trim_start(), c).then_some(end)
    }

    /// `[1]`, `[a]`, also behind a space: the number of the character behind it.
    fn behind_footnote(&self, from: usize) -> Option<usize> {
        let open = if self.char(from) == Some(' ') { from + 1 } else { from };
        if self.char(open) != Some('[') {
            return None;
        }
        let close = (open + 2..open + 5).find(|j| self.char(*j) == Some(']'))?;
        let inside = self.chars.get(open + 1..close)?;
        let behind = self.char(close + 1);
        let sound =
            inside.iter().all(|x| x.1.is_numeric()) || inside.len() == 1 && inside[0].1.is_ascii_lowercase();
        (sound && behind.is_none_or(|c| c.is_whitespace() || c == '[')).then_some(close + 1)
    }

    /// Whether a sentence may begin with `rest`, where `end` ended the one before.
    fn may_begin(&self, rest: &str, end: char) -> bool {
        let Some(first) = rest.chars().next() else { return false };
        if is_small(first) {
            return end == '.' && self.rules.small_begins;
        }
        if matches!(first, ',' | ';' | ':' | ')' | ']' | '،' | '؛') {
            return rest.starts_with(",,") && end != '?' && end != '!';
        }
        if ends_sentence(first) {
            // An ellipsis that a sentence begins with.
            let behind = rest.trim_start_matches(['.', '…']);
            return behind.len() < rest.len() && behind.starts_with(char::is_alphabetic);
        }
        // Speech that is reported behind a dash: "Why?" - he asked.
        let behind = rest.trim_start_matches(['-', '–', '—']);
        !(behind.len() < rest.len() && behind.trim_start().starts_with(is_small))
    }

    /// Adds quotations and remarks in brackets to `wholes`, and their last marks to `closing`.
    fn find_quotations(&mut self) {
        // Ends of code may close a sentence too.
        self.closing.extend(
            self.wholes.iter().filter_map(|w| Some(self.text[..w.end].char_indices().next_back()?.0)),
        );
        let mut open: Vec<(&str, usize)> = vec![];
        for (i, &(at, c)) in self.chars.iter().enumerate() {
            // Most characters are letters and spaces.
            if c.is_ascii_alphanumeric() || c == ' ' {
                continue;
            }
            let letter = |j: Option<usize>| j.and_then(|j| self.char(j)).is_some_and(char::is_alphanumeric);
            let inside = letter(i.checked_sub(1)) && letter(Some(i + 1));
            // An apostrophe, Hebrew's mark of an abbreviation.
            if inside && matches!(c, '’' | '"') {
                continue;
            }
            // A quotation that was not closed before the next one.
            let again = c == '"'
                && letter(Some(i + 1))
                && i.checked_sub(1).is_none_or(|j| self.chars[j].1.is_whitespace());
            if again {
                open.retain(|(closing, _)| *closing != "\"");
            }
            if let Some(place) = open.iter().rposition(|(closing, _)| closing.contains(c)) {
                let start = open[place].1;
                open.truncate(place);
                if !matches!(c, ')' | ']' | '）') {
                    self.closing.insert(at);
                }
                if at - start <= WHOLE {
                    self.wholes.push(start..at + c.len_utf8());
                }
            } else if let Some(closing) = self.opens(i) {
                if open.len() == DEPTH {
                    open.remove(0);
                }
                open.push((closing, at));
            }
        }
    }

    /// What closes the quotation or remark that character `i` opens.
    fn opens(&self, i: usize) -> Option<&'static str> {
        let (at, c) = self.chars[i];
        Some(match c {
            '(' => ")",
            '[' => "]",
            '（' => "）",
            '「' => "」",
            '『' => "』",
            '《' => "》",
            '〈' => "〉",
            '【' => "】",
            '“' => "”",
            '„' => "“”",
            ',' if self.char(i + 1) == Some(',') => "“”",
            '«' => "»",
            '»' => "«",
            '‘' if self.text[at..].contains('’') => "’",
            '"' => "\"",
            _ => return None,
        })
    }
}

/// A small letter, before which no sentence begins. Georgian's letters are small to Unicode, which has capitals for headlines.
fn is_small(c: char) -> bool {
    c.is_lowercase() && !('ა'..='ჿ').contains(&c)
}

/// Marks that open quotations in the languages where they are not doubtful, and marks of emphasis that may.
fn is_opening(c: char) -> bool {
    matches!(c, '“' | '‘' | '«' | '„' | '‚' | '`' | '_')
}

/// Quotations and remarks inside of each other that are kept track of.
const DEPTH: usize = 32;

/// Longest quotation or remark in brackets, in bytes, that is kept whole.
const WHOLE: usize = 240;

/// The markers of the items of a list that stands in one line: `1. First. 2. Second.`, `a) this b) that`. Empty where there are not at least two, numbered
/// one after the other, at its beginning. In languages whose ordinals have a full stop, only behind an end of a sentence.
pub(super) fn items(line: &str, rules: &Rules) -> Vec<Range<usize>> {
    let mut found: Vec<(Range<usize>, Item)> = vec![];
    let mut bullet = None;
    let mut at = 0;
    let mut last = "";
    for token in line.split_whitespace() {
        let start = at + line[at..].find(token).unwrap_or(0);
        at = start + token.len();
        if token.chars().all(|c| BULLETS.contains(c)) {
            bullet = Some(start);
            continue;
        }
        let from = bullet.take();
        let is_first = last.is_empty();
        let before = std::mem::replace(&mut last, token);
        let Some(item) = Item::of(token, from.is_some()) else {
            if is_first {
                return vec![];
            }
            continue;
        };
        let follows = match found.last() {
            None => is_first,
            Some((_, last)) => {
                item.number == last.number + 1 && (item.end, item.bullet) == (last.end, last.bullet)
            }
        };
        let behind_end = before.ends_with(['.', '!', '?', ';', ',']);
        let doubtful = rules.ordinals && item.end == "." && !behind_end;
        let begins =
            line[at..].trim_start().chars().next().is_some_and(|c| c.is_alphabetic() && !is_small(c));
        if follows && (is_first || begins && !doubtful) {
            found.push((from.unwrap_or(start)..at, item));
        }
    }
    if found.len() < 2 { vec![] } else { found.into_iter().map(|(range, _)| range).collect() }
}

const BULLETS: &str = "•⁃‣◦";

/// What marks an item of a list.
struct Item<'a> {
    number: u32,
    /// `.`, `)` or `.)`
    end: &'a str,
    bullet: bool,
}

impl Item<'_> {
    fn of(token: &str, bullet: bool) -> Option<Item<'_>> {
        let name = token.trim_start_matches(|c| BULLETS.contains(c));
        let bullet = bullet || name.len() < token.len();
        let body = name.trim_end_matches(['.', ')']);
        let end = &name[body.len()..];
        let number = match body.as_bytes() {
            [letter @ b'a'..=b'z'] => u32::from(letter - b'a') + 1000,
            digits if (1..=2).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit) => {
                body.parse().ok()?
            }
            _ => return None,
        };
        [".", ")", ".)"].contains(&end).then_some(Item { number, end, bullet })
    }
}
