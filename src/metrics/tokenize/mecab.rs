//! MeCab (Kudo et al. 2004) on its compiled dictionaries: the cheapest path through all words that the text may consist of. Equal to
//! `mecab -Owakati` (MeCab 0.996), and with a dictionary whose `dicrc` sets penalties for spaces, to MeCab-ko (0.996/ko-0.9.2); where two
//! paths cost the same, the order in which nodes are tried decides, and it is MeCab's.
mod dictionary;

use std::path::Path;

use anyhow::Result;

use self::dictionary::{CharCategories, Connections, MecabDictionary, MecabToken, Settings};

/// Words longer than this are not looked up (MeCab's bound on a length).
const LONGEST: usize = 65_535;
/// Unknown words of at most so many characters more than one are grouped (MeCab's `max-grouping-size`).
const LONGEST_GROUP: usize = 24;

/// A dictionary with which text is split into words.
pub struct Mecab {
    words: MecabDictionary,
    connections: Connections,
    categories: CharCategories,
    /// By category.
    unknown: Vec<Vec<MecabToken>>,
    settings: Settings,
}

#[derive(Clone, Copy)]
struct Node {
    token: MecabToken,
    start: u32,
    end: u32,
    cost: i64,
    /// The node before on the cheapest path.
    previous: u32,
    /// The next node that ends where this one does.
    sibling: Option<u32>,
}

const BOUNDARY: MecabToken = MecabToken { left: 0, right: 0, part_of_speech: 0, cost: 0 };

impl Mecab {
    /// Opens the folder of a compiled dictionary: `sys.dic`, `unk.dic`, `matrix.bin`, `char.bin`, and `dicrc` for its settings.
    pub fn open(path: &Path) -> Result<Mecab> {
        let words = MecabDictionary::open(&path.join("sys.dic"))?;
        let unknown_words = MecabDictionary::open(&path.join("unk.dic"))?;
        let connections = Connections::open(&path.join("matrix.bin"))?;
        words.check(&connections)?;
        unknown_words.check(&connections)?;
        let categories = CharCategories::open(&path.join("char.bin"))?;
        let unknown = categories.names().map(|name| unknown_words.exactly(name.as_bytes())).collect();
        let settings = Settings::read(&path.join("dicrc"))?;
        Ok(Mecab { words, connections, categories, unknown, settings })
    }

    /// Words in the dictionary.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether the dictionary has no words.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The words of `text`, without the spaces between them.
    pub fn words<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let n = text.len();
        let boundary = Node { token: BOUNDARY, start: 0, end: 0, cost: 0, previous: 0, sibling: None };
        let mut nodes = vec![boundary];
        // The last node that ends at each byte.
        let mut ends: Vec<Option<u32>> = vec![None; n + 1];
        ends[0] = Some(0);
        let mut found = vec![];
        for at in 0..n {
            let Some(left) = ends[at] else { continue };
            found.clear();
            self.lookup(text.as_bytes(), at, &mut found);
            // MeCab puts each node before those found earlier.
            for (start, end, token) in found.iter().rev() {
                let spaced = *start > at;
                let (cost, previous) = self.cheapest(&nodes, left, token, spaced);
                let id = nodes.len() as u32;
                nodes.push(Node {
                    token: *token,
                    start: *start as u32,
                    end: *end as u32,
                    cost,
                    previous,
                    sibling: ends[*end],
                });
                ends[*end] = Some(id);
            }
        }
        let last = ends.iter().rev().flatten().next().copied().unwrap_or(0);
        let mut at = self.cheapest(&nodes, last, &BOUNDARY, false).1;
        let mut out = vec![];
        while at != 0 {
            let node = &nodes[at as usize];
            out.extend(text.get(node.start as usize..node.end as usize));
            at = node.previous;
        }
        out.reverse();
        out
    }

    /// Cost of the cheapest path to a node with `token` behind `left` and its siblings, and the node before it. The first of equals wins.
    fn cheapest(&self, nodes: &[Node], left: u32, token: &MecabToken, spaced: bool) -> (i64, u32) {
        let penalty = if spaced { self.settings.space_penalty(token.part_of_speech) } else { 0 };
        let own = i64::from(token.cost) + penalty;
        let mut best = (i64::MAX, 0);
        let mut next = Some(left);
        while let Some(id) = next {
            let node = &nodes[id as usize];
            let cost = node.cost + self.connections.cost(node.token.right, token.left) + own;
            if cost < best.0 {
                best = (cost, id);
            }
            next = node.sibling;
        }
        best
    }

    /// The nodes that may begin at byte `at` (behind spaces): start, end, token.
    fn lookup(&self, text: &[u8], at: usize, out: &mut Vec<(usize, usize, MecabToken)>) {
        let text = &text[..text.len().min(at + LONGEST)];
        let start = at + self.categories.run(self.categories.space(), &text[at..]).0;
        if start == text.len() {
            return;
        }
        self.words.prefixes(&text[start..], &mut |length, token| out.push((start, start + length, token)));
        let (category, width) = self.categories.of(&text[start..]);
        if !out.is_empty() && !category.always {
            return;
        }
        let unknown = self.unknown.get(category.number).map_or(&[][..], Vec::as_slice);
        let add = |end: usize, out: &mut Vec<_>| {
            out.extend(unknown.iter().filter(|_| end <= text.len()).map(|t| (start, end, *t)));
        };
        let mut end = start + width;
        let mut group_end = None;
        if category.groups {
            let (bytes, chars) = self.categories.run(category, &text[end.min(text.len())..]);
            if chars <= LONGEST_GROUP {
                add(end + bytes, out);
            }
            group_end = Some(end + bytes);
        }
        for _ in 0..category.length {
            if group_end == Some(end) {
                break;
            }
            add(end, out);
            if end >= text.len() {
                break;
            }
            let (next, width) = self.categories.of(&text[end..]);
            if !category.is_kind_of(next) {
                break;
            }
            end += width;
        }
        if out.is_empty() {
            add(end, out);
        }
    }
}
