//! Thai words by maximal matching against a word list, within the borders of character clusters: compatible with PyThaiNLP's `newmm`.
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
    path::Path,
    sync::LazyLock,
};

use anyhow::{Result, ensure};
use fancy_regex::Regex;

use super::is_space;
use crate::data::text_file::read_lines;

/// Thai character clusters (Theeramunkong et al. 2000, with newmm's improvements), tried in this order. `c` is a consonant, `t` an optional
/// tone mark, `k` an optional silenced consonant.
const CLUSTERS: &str = "เc็ck เcctาะk เccีtยะk เccีtย(?=[เ-ไก-ฮ]|$)k เcc็ck เcิc์ck เcิtck เcีtยะ?k เcืtอะ?k \
     เc[ิีุู]tย(?=[เ-ไก-ฮ]|$)k เctา?ะ?k cัtวะk c[ัื]tc[ุิะ]?k c[ิุู]์ c[ะ-ู]tk cรรc์ c็ ct[ะาำ]?k ck แc็c แcc์ แctะ \
     แcc็c แccc์ โctะ [เ-ไ]ct ก็ อึ หึ";

static CLUSTER: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let rules: Vec<&str> = CLUSTERS.split_whitespace().collect();
    let pattern = rules.join("|").replace('k', "(?:cc?[ุูิ]?[์])?").replace('c', "[ก-ฮ]").replace('t', "[่-๋]?");
    Regex::new(&format!(r"\A(?:{pattern})")).ok()
});

/// What is not Thai: Latin letters, numbers, spaces, line breaks, and all else up to a space.
static FOREIGN: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"\A(?:[-a-zA-Z]+|\d+(?:[,\.]\d+)*|[ \t]+|\r?\n|[^\x{0E00}-\x{0E7F} \t\r\n]+)").ok()
});

/// Beyond so many words in question the search goes on with what it has.
const LARGEST_GRAPH: usize = 50;

/// A word list to segment with.
pub struct ThaiWords {
    words: usize,
    /// Node and letter to node; 0 is the root.
    next: HashMap<(u32, char), u32>,
    ends: HashSet<u32>,
}

impl ThaiWords {
    /// Reads a word list, a word a line.
    pub fn open(path: &Path) -> Result<ThaiWords> {
        let mut out = ThaiWords { words: 0, next: HashMap::new(), ends: HashSet::new() };
        let mut nodes = 0;
        for line in read_lines(path)? {
            let mut node = 0;
            for c in line.trim_matches(is_space).chars() {
                node = *out.next.entry((node, c)).or_insert_with(|| {
                    nodes += 1;
                    nodes
                });
            }
            out.words += usize::from(node != 0 && out.ends.insert(node));
        }
        ensure!(
            out.words > 0,
            "{}: no words: expected a Thai word list, a word a line, as words_th.txt of PyThaiNLP",
            path.display()
        );
        Ok(out)
    }

    /// Words in the list.
    pub fn len(&self) -> usize {
        self.words
    }

    /// Never: such a list is refused.
    pub fn is_empty(&self) -> bool {
        self.words == 0
    }

    /// Lengths in characters of the words that begin at `at`, shortest first.
    fn prefixes(&self, text: &[char], at: usize) -> Vec<usize> {
        let (mut node, mut out) = (0, vec![]);
        for (i, c) in text[at..].iter().enumerate() {
            let Some(next) = self.next.get(&(node, *c)) else { break };
            node = *next;
            out.extend(self.ends.contains(&node).then_some(i + 1));
        }
        out
    }

    /// The words of `text`; spaces are words too.
    pub fn words(&self, text: &str) -> Vec<String> {
        let text = Text::new(text);
        let n = text.chars.len();
        let mut out = vec![];
        let mut graph: HashMap<usize, Vec<usize>> = HashMap::new();
        let mut size = 0;
        let mut open = BinaryHeap::from([Reverse(0)]);
        let mut done = 0;
        while let Some(Reverse(at)) = open.pop().filter(|at| at.0 < n) {
            for length in self.prefixes(&text.chars, at) {
                let end = at + length;
                if !text.borders[end] {
                    continue;
                }
                graph.entry(at).or_default().push(end);
                size += 1;
                if !open.iter().any(|o| o.0 == end) {
                    open.push(Reverse(end));
                }
                if size > LARGEST_GRAPH {
                    break;
                }
            }
            match (open.len(), open.peek()) {
                // All paths meet here: the shortest is taken.
                (1, Some(Reverse(goal))) => {
                    for end in shortest_path(&graph, done, *goal) {
                        out.push(text.slice(done, end));
                        done = end;
                    }
                }
                (0, _) => {
                    done = self.unknown_end(&text, at);
                    out.push(text.slice(at, done));
                    open.push(Reverse(done));
                }
                _ => continue,
            }
            size = 0;
            graph.clear();
        }
        out
    }

    /// Where what is no known word ends.
    fn unknown_end(&self, text: &Text, at: usize) -> usize {
        if let Some(length) = text.foreign(at) {
            return at + length;
        }
        let short = |pos: usize, length: usize| {
            length <= 2 && text.chars[pos..pos + length].iter().all(|c| matches!(c, 'ก'..='ฮ'))
        };
        let begins = |pos: usize| {
            let good = |l: &usize| text.borders[pos + l] && !short(pos, *l);
            self.prefixes(&text.chars, pos).iter().any(good) || text.foreign(pos).is_some()
        };
        let n = text.chars.len();
        (at + 1..n).find(|pos| text.borders[*pos] && begins(*pos)).unwrap_or(n)
    }
}

/// A text by characters.
struct Text<'a> {
    text: &'a str,
    chars: Vec<char>,
    /// First byte of each character, and the text's length.
    bytes: Vec<usize>,
    /// Whether a cluster ends before each character.
    borders: Vec<bool>,
}

impl<'a> Text<'a> {
    fn new(text: &'a str) -> Text<'a> {
        let chars: Vec<char> = text.chars().collect();
        let bytes: Vec<usize> = text.char_indices().map(|c| c.0).chain([text.len()]).collect();
        let mut out = Text { text, borders: vec![false; chars.len() + 1], chars, bytes };
        let mut at = 0;
        while at < out.chars.len() {
            at += out.matched(&CLUSTER, at).filter(|n| *n > 0).unwrap_or(1);
            out.borders[at] = true;
        }
        out
    }

    /// Characters that `pattern` matches from `at` on.
    fn matched(&self, pattern: &LazyLock<Option<Regex>>, at: usize) -> Option<usize> {
        let rest = self.text.get(self.bytes[at]..)?;
        let found = LazyLock::force(pattern).as_ref()?.find(rest).ok()??;
        Some(found.as_str().chars().count())
    }

    fn foreign(&self, at: usize) -> Option<usize> {
        self.matched(&FOREIGN, at)
    }

    fn slice(&self, from: usize, to: usize) -> String {
        self.text.get(self.bytes[from]..self.bytes[to]).unwrap_or_default().to_string()
    }
}

/// The positions behind `start` on a path of fewest words; of several the one found first.
fn shortest_path(graph: &HashMap<usize, Vec<usize>>, start: usize, goal: usize) -> Vec<usize> {
    let mut before = HashMap::from([(start, start)]);
    let mut queue = VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for &next in graph.get(&at).map_or(&[][..], Vec::as_slice) {
            if before.contains_key(&next) {
                continue;
            }
            before.insert(next, at);
            queue.push_back(next);
            if next == goal {
                let back = |at: &usize| before.get(at).copied().filter(|b| b != at);
                let mut path: Vec<usize> = std::iter::successors(Some(goal), back).collect();
                path.pop();
                path.reverse();
                return path;
            }
        }
    }
    vec![goal]
}
