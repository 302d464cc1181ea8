//! Reads fastText's models for classification (`.bin`, and `.ftz` with product quantisation) and predicts with them as `fasttext` does (Joulin et al.
//! 2016, 2017; github.com/facebookresearch/fastText v0.9.2: `dictionary.cc`, `quantmatrix.cc`, `productquantizer.cc`, `loss.cc`).
//!
//! The file is mapped; vectors are read where they lie.
use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, bail, ensure};

mod matrix;

use super::map::Map;
use matrix::Matrix;

const MAGIC: i32 = 793_712_314;
const NEWEST: i32 = 12;
/// Ends every line that is judged.
const END: &[u8] = b"</s>";
/// What fastText adds to a probability before it takes its logarithm.
const EPSILON: f32 = 1e-5;

/// How labels are scored.
#[derive(Clone, Debug, PartialEq)]
enum Loss {
    Softmax,
    /// Each label by itself (negative sampling, one against all).
    Each,
    /// A Huffman tree: for each inner node its children, the root last; leaves come first.
    Tree(Vec<(usize, usize)>),
}

/// A model for classification.
pub struct FastText {
    map: Map,
    words: HashMap<Vec<u8>, i32>,
    labels: Vec<String>,
    /// Of the buckets that a pruned model has kept: their row behind the words.
    kept: Option<HashMap<i32, i32>>,
    dim: usize,
    bucket: u32,
    letters: (usize, usize),
    word_ngrams: usize,
    loss: Loss,
    input: Matrix,
    output: Matrix,
}

/// Reads little-endian numbers of a file, and knows where it is.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len());
        let end = end.with_context(|| {
            format!("the file ends at byte {}, {n} more were expected at {}", self.bytes.len(), self.at)
        })?;
        let found = &self.bytes[self.at..end];
        self.at = end;
        Ok(found)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().context("bytes of a number")
    }

    fn i32(&mut self) -> Result<i32> {
        Ok(i32::from_le_bytes(self.array()?))
    }

    fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    fn flag(&mut self) -> Result<bool> {
        match self.array::<1>()?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => bail!("byte {}: {other} where 0 or 1 was expected", self.at - 1),
        }
    }

    /// A count of things that each take `bytes` or more.
    fn count(&mut self, what: &str, value: i64, bytes: usize) -> Result<usize> {
        let left = (self.bytes.len() - self.at) as u64;
        let fits = u64::try_from(value).ok().filter(|n| n.saturating_mul(bytes as u64) <= left);
        Ok(fits
            .with_context(|| format!("{value} {what} do not fit in a file of {} bytes", self.bytes.len()))?
            as usize)
    }
}

impl FastText {
    /// Opens a model.
    ///
    /// # Errors
    /// A file that is none, is cut off or damaged, or holds word vectors instead of a classifier.
    pub fn open(path: &Path) -> Result<FastText> {
        let map = super::map::map_path(path)?;
        FastText::read(map)
            .with_context(|| format!("{}: is it a fastText model (.bin or .ftz)?", path.display()))
    }

    fn read(map: Map) -> Result<FastText> {
        let mut c = Cursor { bytes: &map, at: 0 };
        ensure!(c.i32()? == MAGIC, "it does not begin with fastText's number");
        let version = c.i32()?;
        ensure!(
            (11..=NEWEST).contains(&version),
            "its format is version {version}; 11 and {NEWEST} are read"
        );
        let mut args = [0; 12];
        for arg in &mut args {
            *arg = c.i32()?;
        }
        let _sampling_threshold = c.array::<8>()?;
        let [dim, _, _, _, _, word_ngrams, loss, kind, bucket, minn, maxn, _] = args;
        ensure!(kind == 3, "it holds word vectors, not a classifier");
        ensure!((1..=1 << 16).contains(&dim) && bucket >= 0, "dimension {dim}, {bucket} buckets");
        ensure!(
            (0..=64).contains(&word_ngrams) && maxn <= 64,
            "n-grams of {word_ngrams} words, {maxn} letters"
        );
        let maxn = if version == 11 { 0 } else { maxn.max(0) };
        let (words, labels, counts, kept) = read_dictionary(&mut c)?;
        let rows = words.len() + kept.as_ref().map_or(bucket as usize, HashMap::len);
        let quantised = c.flag()?;
        ensure!(quantised || kept.is_none(), "a pruned model must be quantised");
        let input = Matrix::read(&mut c, quantised, "input", (rows, dim as usize))?;
        let quantised = c.flag()? && quantised;
        let output = Matrix::read(&mut c, quantised, "output", (labels.len(), dim as usize))?;
        let loss = match loss {
            1 => Loss::Tree(tree(&counts)?),
            2 | 4 => Loss::Each,
            3 => Loss::Softmax,
            other => bail!("loss {other} is not known"),
        };
        let (letters, word_ngrams) = ((minn.max(0) as usize, maxn as usize), word_ngrams as usize);
        let (dim, bucket) = (dim as usize, bucket as u32);
        Ok(FastText { words, labels, kept, dim, bucket, letters, word_ngrams, loss, input, output, map })
    }

    /// The labels as the file has them (`__label__en`).
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The most probable label of a text (line breaks count as spaces) and its probability as `fasttext` prints it, that is, plus 1e-5; `None`
    /// where the model knows no piece of the text.
    pub fn predict(&self, text: &str) -> Option<(usize, f32)> {
        let hidden = self.hidden(text)?;
        if let Loss::Tree(nodes) = &self.loss {
            return self.best_leaf(nodes, &hidden);
        }
        let mut scores: Vec<f32> =
            (0..self.labels.len()).map(|row| self.output.dot(&self.map, row, &hidden)).collect();
        if self.loss == Loss::Softmax {
            let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            scores.iter_mut().for_each(|s| *s = (*s - most).exp());
            let sum: f32 = scores.iter().sum();
            scores.iter_mut().for_each(|s| *s /= sum);
        } else {
            scores.iter_mut().for_each(|s| *s = sigmoid(*s));
        }
        let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
        Some((best.0, best.1 + EPSILON))
    }

    /// The mean of the vectors of a text's words, pieces of words and runs of words.
    fn hidden(&self, text: &str) -> Option<Vec<f32>> {
        let (mut rows, mut hashes) = (vec![], vec![]);
        let space = |b: &u8| matches!(b, b' ' | b'\n' | b'\r' | b'\t' | 0x0b | 0x0c | 0);
        for word in text.as_bytes().split(space).filter(|w| !w.is_empty()).chain([END]) {
            let known = self.words.get(word).copied();
            if known.is_none() && word.starts_with(b"__label__") {
                continue;
            }
            rows.extend(known);
            if word != END && (known.is_none() || self.letters.1 > 0) {
                self.pieces(&[b"<", word, b">"].concat(), &mut rows);
            }
            hashes.push(hash(word) as i32);
        }
        for (i, first) in hashes.iter().enumerate() {
            let mut h = *first as u64;
            for next in hashes.iter().take(i + self.word_ngrams).skip(i + 1) {
                h = h.wrapping_mul(116_049_371).wrapping_add(*next as u64);
                self.push(h, &mut rows);
            }
        }
        let mut hidden = vec![0.0; self.dim];
        rows.iter().for_each(|row| self.input.add(&self.map, *row as usize, &mut hidden));
        let share = 1.0 / rows.len() as f32;
        hidden.iter_mut().for_each(|x| *x *= share);
        (!rows.is_empty()).then_some(hidden)
    }

    /// Rows of the runs of letters of `word`, which has its marks of beginning and end.
    fn pieces(&self, word: &[u8], rows: &mut Vec<i32>) {
        let continues = |i: usize| word.get(i).is_some_and(|b| b & 0xC0 == 0x80);
        for i in (0..word.len()).filter(|i| !continues(*i)) {
            let mut j = i;
            for n in 1..=self.letters.1 {
                if j >= word.len() {
                    break;
                }
                j += 1;
                while continues(j) {
                    j += 1;
                }
                let lone_mark = n == 1 && (i == 0 || j == word.len());
                if n >= self.letters.0 && !lone_mark {
                    self.push(hash(&word[i..j]) as u64, rows);
                }
            }
        }
    }

    fn push(&self, hash: u64, rows: &mut Vec<i32>) {
        if self.bucket == 0 {
            return;
        }
        let bucket = (hash % self.bucket as u64) as i32;
        let row = match &self.kept {
            Some(kept) => kept.get(&bucket).copied(),
            None => Some(bucket),
        };
        rows.extend(row.map(|r| self.words.len() as i32 + r));
    }

    fn best_leaf(&self, nodes: &[(usize, usize)], hidden: &[f32]) -> Option<(usize, f32)> {
        let leaves = self.labels.len();
        let mut best: Option<(usize, f32)> = None;
        let mut open = vec![((leaves + nodes.len()).checked_sub(1)?, 0.0f32)];
        while let Some((node, score)) = open.pop() {
            if best.is_some_and(|(_, most)| score <= most) {
                continue;
            }
            if node < leaves {
                best = Some((node, score));
                continue;
            }
            let (left, right) = nodes[node - leaves];
            let right_side = 1.0 / (1.0 + (-self.output.dot(&self.map, node - leaves, hidden)).exp());
            open.push((left, score + (1.0 - right_side + EPSILON).ln()));
            open.push((right, score + (right_side + EPSILON).ln()));
        }
        best.map(|(label, score)| (label, score.exp()))
    }
}

type Vocabulary = (HashMap<Vec<u8>, i32>, Vec<String>, Vec<i64>, Option<HashMap<i32, i32>>);

fn read_dictionary(c: &mut Cursor) -> Result<Vocabulary> {
    let (size, word_count, label_count) = (c.i32()?, c.i32()?, c.i32()?);
    let (_tokens, pruned) = (c.i64()?, c.i64()?);
    let size = c.count("words and labels", size as i64, 10)?;
    ensure!(
        word_count >= 0 && label_count > 0 && word_count as usize + label_count as usize == size,
        "{word_count} words and {label_count} labels among {size} entries"
    );
    let (mut words, mut labels, mut counts) = (HashMap::with_capacity(word_count as usize), vec![], vec![]);
    for i in 0..size as i32 {
        let rest = &c.bytes[c.at..];
        let length = rest.iter().position(|b| *b == 0).context("a word without an end")?;
        let word = c.take(length)?.to_vec();
        c.take(1)?;
        let (count, kind) = (c.i64()?, c.array::<1>()?[0]);
        let is_label = i >= word_count;
        ensure!(kind == u8::from(is_label), "entry {i} is of kind {kind}: words come first, then labels");
        if is_label {
            labels.push(String::from_utf8(word).with_context(|| format!("label {}", i - word_count))?);
            counts.push(count);
        } else {
            ensure!(words.insert(word, i).is_none(), "word {i} occurs twice");
        }
    }
    if pruned < 0 {
        return Ok((words, labels, counts, None));
    }
    let n = c.count("kept buckets", pruned, 8)?;
    let mut kept = HashMap::with_capacity(n);
    for _ in 0..n {
        let (bucket, row) = (c.i32()?, c.i32()?);
        ensure!((0..n as i32).contains(&row), "bucket {bucket} has row {row} of {n}");
        ensure!(kept.insert(bucket, row).is_none(), "bucket {bucket} occurs twice");
    }
    Ok((words, labels, counts, Some(kept)))
}

/// The inner nodes of the Huffman tree over labels, which are sorted by falling counts.
///
/// # Errors
/// Counts that are none: with them a node would lead to itself.
fn tree(counts: &[i64]) -> Result<Vec<(usize, usize)>> {
    let leaves = counts.len();
    const NONE: i64 = 1_000_000_000_000_000;
    let all = counts.iter().fold(0i64, |sum, n| sum.saturating_add(*n));
    ensure!(counts.iter().all(|n| *n >= 0) && all < NONE, "its labels' counts are no counts");
    let mut count = counts.to_vec();
    count.resize(2 * leaves - 1, NONE);
    let mut nodes = Vec::with_capacity(leaves - 1);
    let (mut leaf, mut node) = (leaves, leaves);
    for i in leaves..2 * leaves - 1 {
        let mut least = || {
            if leaf > 0 && count.get(node).is_none_or(|n| count[leaf - 1] < *n) {
                leaf -= 1;
                leaf
            } else {
                node += 1;
                node - 1
            }
        };
        let pair = (least(), least());
        count[i] = count[pair.0].saturating_add(count[pair.1]);
        nodes.push(pair);
    }
    Ok(nodes)
}

/// FNV-1a, whose bytes are sign-extended as `int8_t` is.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(2_166_136_261, |h: u32, b| (h ^ (*b as i8 as u32)).wrapping_mul(16_777_619))
}

/// By a table of 512 values in -8..8, as fastText does.
fn sigmoid(x: f32) -> f32 {
    if x < -8.0 {
        return 0.0;
    }
    if x > 8.0 {
        return 1.0;
    }
    let step = ((x + 8.0) * 512.0 / 8.0 / 2.0) as i32;
    let at = step as f32 * 2.0 * 8.0 / 512.0 - 8.0;
    1.0 / (1.0 + (-at).exp())
}

#[cfg(test)]
mod tests;
