//! Text to pieces exactly as SentencePiece itself does it (Kudo and Richardson 2018), where no model's ids are needed: spBLEU counts
//! pieces. The tokenizers beside it normalise user-perceived characters one by one, as transformers does; SentencePiece takes the longest match.
use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, HashMap},
    path::Path,
};

use crate::data::files::FileContext;
use anyhow::{Context, Result, bail, ensure};

use super::{charsmap::Charsmap, proto};

/// What an unknown character costs beside the worst piece.
const UNKNOWN_PENALTY: f32 = 10.0;

/// A SentencePiece model (unigram or BPE) that splits text.
pub struct Pieces {
    model: proto::Model,
    charsmap: Option<Charsmap>,
    /// Index of every piece that text can give.
    index: HashMap<String, usize>,
    /// Bytes of the longest of them.
    longest: usize,
    /// Taken as they stand, before anything else; the longest first.
    user_defined: Vec<String>,
    /// The lowest and the highest score of a normal piece.
    range: (f32, f32),
}

/// A part of the normalised text: where it ends and whether it is a known piece.
struct Part {
    end: usize,
    known: bool,
}

impl Pieces {
    /// Reads a `.model` file; errors name it.
    pub fn open(path: &Path) -> Result<Pieces> {
        let bytes = std::fs::read(path).reading(path)?;
        Pieces::parse(&bytes)
            .with_context(|| format!("{} is not a usable SentencePiece model", path.display()))
    }

    /// From the file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Pieces> {
        let model = proto::Model::parse(bytes)?;
        ensure!(
            matches!(model.kind, proto::UNIGRAM | proto::BPE),
            "its model type is {}; 1 (unigram) and 2 (BPE) can be read",
            model.kind
        );
        ensure!(
            model.pieces.iter().any(|p| p.kind == proto::UNKNOWN),
            "none of its pieces is for unknown text"
        );
        let charsmap = match model.charsmap.is_empty() {
            true => None,
            false => {
                Some(Charsmap::parse(&model.charsmap).context("its character map (precompiled_charsmap)")?)
            }
        };
        let (mut index, mut user_defined, mut range) =
            (HashMap::new(), vec![], (f32::MAX, f32::MIN_POSITIVE));
        for (i, piece) in model.pieces.iter().enumerate() {
            match piece.kind {
                proto::NORMAL => range = (range.0.min(piece.score), range.1.max(piece.score)),
                proto::USER_DEFINED => user_defined.push(piece.text.clone()),
                proto::UNUSED => {}
                _ => continue,
            }
            if let Some(other) = index.insert(piece.text.clone(), i) {
                bail!("pieces {other} and {i} are both {:?}", piece.text);
            }
        }
        user_defined.sort_by_key(|t| Reverse(t.len()));
        let longest = index.keys().map(String::len).max().unwrap_or(0);
        Ok(Pieces { model, charsmap, index, longest, user_defined, range })
    }

    /// The pieces of a text; unknown characters are pieces of their own letters, those in a row one piece.
    pub fn encode(&self, text: &str) -> Vec<String> {
        let text = self.normalize(text);
        let parts = if self.model.kind == proto::UNIGRAM { self.unigram(&text) } else { self.bpe(&text) };
        let mut out: Vec<String> = Vec::with_capacity(parts.len());
        let (mut start, mut after_unknown) = (0, false);
        for Part { end, known } in parts {
            let part = &text[start..end];
            match out.last_mut() {
                _ if !known && self.model.byte_fallback => {
                    out.extend(part.bytes().map(|b| format!("<0x{b:02X}>")));
                }
                Some(last) if !known && after_unknown => last.push_str(part),
                _ => out.push(part.into()),
            }
            (start, after_unknown) = (end, !known);
        }
        out
    }

    /// The user-defined piece that `text` begins with.
    fn user_defined(&self, text: &str) -> Option<&str> {
        self.user_defined.iter().map(String::as_str).find(|t| text.starts_with(t))
    }

    /// What the beginning of `text` (not empty) is replaced by, and the bytes it takes.
    fn replace<'a>(&'a self, text: &'a str) -> (&'a str, usize) {
        if let Some(own) = self.user_defined(text) {
            return (own, own.len());
        }
        let first = text.chars().next().map_or(0, char::len_utf8);
        self.charsmap.as_ref().and_then(|map| map.longest(text)).unwrap_or((&text[..first], first))
    }

    fn normalize(&self, text: &str) -> String {
        let model = &self.model;
        let mut rest = text;
        if model.remove_extra_whitespaces {
            while let (" ", length) = self.replace(rest) {
                rest = &rest[length..];
            }
        }
        if rest.is_empty() {
            return String::new();
        }
        let space = if model.escape_whitespaces { "▁" } else { " " };
        let mut out = String::with_capacity(text.len() + 8);
        if model.add_dummy_prefix && !model.space_behind {
            out.push_str(space);
        }
        let mut after_space = model.remove_extra_whitespaces;
        while !rest.is_empty() {
            let (mut new, length) = self.replace(rest);
            if after_space {
                new = new.trim_start_matches(' ');
            }
            for (i, part) in new.split(' ').enumerate() {
                out.push_str(if i > 0 { space } else { "" });
                out.push_str(part);
            }
            if !new.is_empty() {
                after_space = model.remove_extra_whitespaces && new.ends_with(' ');
            }
            rest = &rest[length..];
        }
        if model.remove_extra_whitespaces {
            out.truncate(out.trim_end_matches(space).len());
        }
        if model.add_dummy_prefix && model.space_behind {
            out.push_str(space);
        }
        out
    }

    /// The most probable segmentation (Kudo 2018), in SentencePiece's precision, since sums that are equal but for it decide.
    fn unigram(&self, text: &str) -> Vec<Part> {
        #[derive(Clone, Copy)]
        struct Best {
            score: f32,
            start: usize,
            known: bool,
        }
        let mut ends: Vec<Option<Best>> = vec![None; text.len() + 1];
        for (start, first) in text.char_indices() {
            let before = ends[start].map_or(0.0, |b| b.score);
            let after_first = start + first.len_utf8();
            let mut single = false;
            let mut offer = |end: usize, score: f64, known: bool| {
                if ends[end].is_none_or(|best| score > f64::from(best.score)) {
                    ends[end] = Some(Best { score: score as f32, start, known });
                }
            };
            let limit = text.len().min(start + self.longest);
            for end in (after_first..=limit).filter(|&end| text.is_char_boundary(end)) {
                let Some(&id) = self.index.get(&text[start..end]) else { continue };
                let piece = &self.model.pieces[id];
                let score = match piece.kind {
                    proto::UNUSED => continue,
                    // So much that nothing else is chosen.
                    proto::USER_DEFINED => f64::from((end - start) as f32 * self.range.1) - 0.1,
                    _ => f64::from(piece.score),
                };
                offer(end, score + f64::from(before), true);
                single |= end == after_first;
            }
            if !single {
                offer(after_first, f64::from(self.range.0 - UNKNOWN_PENALTY + before), false);
            }
        }
        let (mut out, mut end) = (vec![], text.len());
        while let Some(best) = ends[end] {
            out.push(Part { end, known: best.known });
            end = best.start;
        }
        out.reverse();
        out
    }

    /// Merges the neighbours that form the best-scored piece, the leftmost of equals first, until there are none (Sennrich et al. 2016).
    fn bpe(&self, text: &str) -> Vec<Part> {
        let mut symbols = self.symbols(text);
        let mut agenda = BinaryHeap::new();
        // How pieces that must not come out were made.
        let mut split: HashMap<&str, usize> = HashMap::new();
        let mut consider = |symbols: &[Symbol], left: Option<usize>, agenda: &mut BinaryHeap<Pair>| {
            let Some((left, right)) = left.and_then(|left| Some((left, symbols[left].next?))) else { return };
            let (a, b) = (&symbols[left], &symbols[right]);
            if a.fixed || b.fixed {
                return;
            }
            let piece = &text[a.start..b.end];
            if let Some(&id) = self.index.get(piece) {
                let known = &self.model.pieces[id];
                // -0.0 and 0.0 are equal scores.
                agenda.push(Pair { score: known.score + 0.0, left, right, size: piece.len() });
                if known.kind == proto::UNUSED {
                    split.insert(piece, a.end - a.start);
                }
            }
        };
        (0..symbols.len()).for_each(|i| consider(&symbols, Some(i), &mut agenda));
        while let Some(Pair { left, right, size, .. }) = agenda.pop() {
            let (a, b) = (symbols[left], symbols[right]);
            let stale =
                a.end == a.start || b.end == b.start || b.end - a.start != size || a.next != Some(right);
            if stale {
                continue;
            }
            symbols[left] = Symbol { end: b.end, next: b.next, ..a };
            symbols[right].end = b.start;
            if let Some(next) = b.next {
                symbols[next].previous = Some(left);
            }
            consider(&symbols, a.previous, &mut agenda);
            consider(&symbols, Some(left), &mut agenda);
        }
        let whole = symbols.iter().filter(|s| s.end > s.start);
        whole.flat_map(|s| self.without_unused(text, s.start, s.end, &split)).collect()
    }

    /// A merged part, with unused pieces in it taken apart again; `split` has the bytes of their left halves.
    fn without_unused(
        &self,
        text: &str,
        start: usize,
        end: usize,
        split: &HashMap<&str, usize>,
    ) -> Vec<Part> {
        let (mut out, mut open) = (vec![], vec![(start, end)]);
        while let Some((start, end)) = open.pop() {
            let piece = &text[start..end];
            let id = self.index.get(piece);
            let unused = id.is_some_and(|&id| self.model.pieces[id].kind == proto::UNUSED);
            match split.get(piece).filter(|_| unused) {
                Some(&left) => open.extend([(start + left, end), (start, start + left)]),
                None => out.push(Part { end, known: id.is_some() }),
            }
        }
        out
    }

    /// The characters and user-defined pieces of a text.
    fn symbols(&self, text: &str) -> Vec<Symbol> {
        let mut out: Vec<Symbol> = vec![];
        let mut start = 0;
        while let Some(first) = text[start..].chars().next() {
            let own = self.user_defined(&text[start..]);
            let end = start + own.map_or(first.len_utf8(), str::len);
            let at = out.len();
            let next = (end < text.len()).then_some(at + 1);
            out.push(Symbol { start, end, previous: at.checked_sub(1), next, fixed: own.is_some() });
            start = end;
        }
        out
    }
}

/// A part of the text while pairs are merged; empty once it has become part of the one before.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
    /// Never merged.
    fixed: bool,
}

/// Two neighbours of `size` bytes in all that form a piece.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    size: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Pair) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Pair) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Pair) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}
