//! Translation edit rate (Snover et al. 2006) as sacrebleu 2.6.0 and Tercom compute it: insertions, deletions, substitutions and shifts of
//! words, over the reference's length. The search for shifts is Tercom's greedy one with all its limits.
use num_traits::Float;

use super::{
    ngrams::WordIds,
    tokenize::{TercomOptions, split, tercom},
};

const LONGEST_SHIFT: usize = 10;
const FARTHEST_SHIFT: usize = 50;
const MOST_CANDIDATES: usize = 1000;
const BEAM: usize = 25;
/// A cell that the beam leaves out.
const NEVER: u32 = 1 << 30;

/// Numbers of a row of counts: edits, words of the reference.
pub const WIDTH: usize = 2;

/// sacrebleu's signature.
pub fn signature(options: &TercomOptions) -> String {
    let yes = |on| if on { "yes" } else { "no" };
    format!(
        "nrefs:1|case:{}|tok:tercom|norm:{}|punct:{}|asian:{}|version:2.6.0",
        if options.case_sensitive { "mixed" } else { "lc" },
        yes(options.normalized),
        yes(!options.no_punct),
        yes(options.asian_support)
    )
}

/// Edits, and words of the reference.
pub fn statistics(hypothesis: &str, reference: &str, options: &TercomOptions) -> [u64; WIDTH] {
    let (hypothesis, reference) = (tercom(hypothesis, options), tercom(reference, options));
    let mut ids = WordIds::default();
    let (h, r) = (ids.of(split(&hypothesis)), ids.of(split(&reference)));
    [edits(h, &r), r.len() as u64]
}

/// The score (percent, 0 is best, may exceed 100) of summed rows of counts, in the precision of the sums; none where there are no words at
/// all in the references: then it is 100 if there are edits, else 0.
pub fn compute<T: Float>(sums: &[T]) -> Option<T> {
    let &[edits, length] = sums else { return None };
    let hundred = T::from(100.0).unwrap_or(T::zero());
    (length > T::zero()).then(|| hundred * (edits / length))
}

/// The score without reference words.
pub fn without_reference(edits: f64) -> f64 {
    if edits > 0.0 { 100.0 } else { 0.0 }
}

fn edits(mut hypothesis: Vec<u32>, reference: &[u32]) -> u64 {
    if reference.is_empty() {
        return hypothesis.len() as u64;
    }
    let (mut shifts, mut candidates) = (0, 0);
    let mut table = Table::new(hypothesis.len(), reference);
    table.fill(&hypothesis, 0);
    while let Some((gain, shifted)) = best_shift(&hypothesis, &mut table, &mut candidates) {
        if candidates >= MOST_CANDIDATES || gain <= 0 {
            break;
        }
        shifts += 1;
        hypothesis = shifted;
        table.fill(&hypothesis, 0);
    }
    shifts + u64::from(table.distance())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Edit {
    Keep,
    Substitute,
    /// A word of the hypothesis that the reference lacks.
    Delete,
    /// A word of the reference that the hypothesis lacks.
    Insert,
}

/// Edit distances of all prefixes of a hypothesis to all prefixes of the reference, near the diagonal.
struct Table<'a> {
    reference: &'a [u32],
    rows: usize,
    costs: Vec<u32>,
    edits: Vec<Edit>,
}

impl<'a> Table<'a> {
    fn new(length: usize, reference: &'a [u32]) -> Table<'a> {
        let columns = reference.len() + 1;
        let mut costs = vec![NEVER; (length + 1) * columns];
        (0..columns).for_each(|j| costs[j] = j as u32);
        Table { reference, rows: length, costs, edits: vec![Edit::Insert; (length + 1) * columns] }
    }

    fn distance(&self) -> u32 {
        self.costs.last().copied().unwrap_or(0)
    }

    /// Computes the rows behind the first `known` words of `hypothesis`, which has as many words as the table has rows.
    fn fill(&mut self, hypothesis: &[u32], known: usize) {
        let width = self.reference.len();
        let columns = width + 1;
        let ratio = width as f64 / self.rows as f64;
        // Where the lengths differ wildly, the beam still overlaps with that of the row before.
        let beam =
            if (BEAM as f64) < ratio / 2.0 { (ratio / 2.0 + BEAM as f64).ceil() as usize } else { BEAM };
        for (i, word) in hypothesis.iter().enumerate().skip(known).map(|(i, w)| (i + 1, w)) {
            let diagonal = (i as f64 * ratio).floor() as usize;
            let last = if i == self.rows { columns } else { columns.min(diagonal + beam) };
            let (before, costs) = self.costs.split_at_mut(i * columns);
            let (before, costs) = (&before[(i - 1) * columns..], &mut costs[..columns]);
            let edits = &mut self.edits[i * columns..(i + 1) * columns];
            costs.fill(NEVER);
            for j in diagonal.saturating_sub(beam)..last {
                if j == 0 {
                    (costs[0], edits[0]) = (before[0] + 1, Edit::Delete);
                    continue;
                }
                let same = self.reference[j - 1] == *word;
                let mut best =
                    if same { (before[j - 1], Edit::Keep) } else { (before[j - 1] + 1, Edit::Substitute) };
                // Of equals the first of: keep or substitute, delete, insert.
                for other in [(before[j] + 1, Edit::Delete), (costs[j - 1] + 1, Edit::Insert)] {
                    if other.0 < best.0 {
                        best = other;
                    }
                }
                if best.0 < NEVER {
                    (costs[j], edits[j]) = best;
                }
            }
        }
    }

    /// For each word of the reference the word of the hypothesis it stands beside (or before the first: -1), and whether it is wrong; for
    /// each word of the hypothesis whether it is wrong.
    fn alignment(&self) -> (Vec<isize>, Vec<bool>, Vec<bool>) {
        let (mut beside, mut wrong_r, mut wrong_h) = (vec![], vec![], vec![]);
        let (mut i, mut j) = (self.rows, self.reference.len());
        while i > 0 || j > 0 {
            let edit = if i == 0 {
                Edit::Insert
            } else if j == 0 {
                Edit::Delete
            } else {
                self.edits[i * (self.reference.len() + 1) + j]
            };
            if edit != Edit::Delete {
                beside.push(i as isize - 1);
                wrong_r.push(edit != Edit::Keep);
                j -= 1;
            }
            if edit != Edit::Insert {
                wrong_h.push(edit != Edit::Keep);
                i -= 1;
            }
        }
        beside.reverse();
        wrong_r.reverse();
        wrong_h.reverse();
        (beside, wrong_r, wrong_h)
    }
}

/// The shift that lowers the distance most, and by how much. `table` is that of `hypothesis`.
fn best_shift(hypothesis: &[u32], table: &mut Table, candidates: &mut usize) -> Option<(i64, Vec<u32>)> {
    let reference = table.reference;
    let before = i64::from(table.distance());
    let (beside, wrong_r, wrong_h) = table.alignment();
    let mut trial =
        Table { reference, rows: table.rows, costs: table.costs.clone(), edits: table.edits.clone() };
    let mut trial_words = hypothesis.to_vec();
    let mut best: Option<((i64, usize, isize, isize), Vec<u32>)> = None;
    for (start, at, length) in common_runs(hypothesis, reference) {
        let right = |wrong: &[bool], from: usize| !wrong[from..from + length].iter().any(|w| *w);
        let inside = (start as isize..(start + length) as isize).contains(&beside[at]);
        if right(&wrong_h, start) || right(&wrong_r, at) || inside {
            continue;
        }
        // Behind the word before the run's place in the reference, then behind each of the run's.
        let mut tried = None;
        for place in 0..=length {
            let target = match (at + place).checked_sub(1) {
                None => 0,
                Some(i) => match beside.get(i) {
                    Some(word) => (word + 1) as usize,
                    None => break,
                },
            };
            if tried == Some(target) {
                continue;
            }
            tried = Some(target);
            let shifted = shift(hypothesis, start, length, target);
            // The rows of the words that the last trial began with are still right.
            let known = shifted.iter().zip(&trial_words).take_while(|(a, b)| a == b).count();
            trial.fill(&shifted, known.min(table.rows.saturating_sub(1)));
            let gain = before - i64::from(trial.distance());
            *candidates += 1;
            let rank = (gain, length, -(start as isize), -(target as isize));
            trial_words.clone_from(&shifted);
            if best.as_ref().is_none_or(|b| rank > b.0) {
                best = Some((rank, shifted));
            }
        }
        if *candidates >= MOST_CANDIDATES {
            break;
        }
    }
    best.map(|(rank, words)| (rank.0, words))
}

/// Runs of words that both have, at different places that are not too far apart: start in the hypothesis, in the reference, length.
fn common_runs<'a>(h: &'a [u32], r: &'a [u32]) -> impl Iterator<Item = (usize, usize, usize)> + 'a {
    (0..h.len()).flat_map(move |i| {
        let near = i.saturating_sub(FARTHEST_SHIFT)..r.len().min(i + FARTHEST_SHIFT + 1);
        near.flat_map(move |j| {
            let same = h[i..].iter().zip(&r[j..]).take(LONGEST_SHIFT).take_while(|(a, b)| a == b).count();
            (1..=same).map(move |length| (i, j, length))
        })
    })
}

/// `words` with the run of `length` at `start` moved to `target`, a position in `words`.
fn shift(words: &[u32], start: usize, length: usize, target: usize) -> Vec<u32> {
    let (run, end) = (&words[start..start + length], start + length);
    if target < start {
        [&words[..target], run, &words[target..start], &words[end..]].concat()
    } else if target > end {
        [&words[..start], &words[end..target], run, &words[target..]].concat()
    } else {
        // Within the run itself: Tercom moves it behind as many words as the target is past its start.
        let to = words.len().min(length + target);
        [&words[..start], &words[end..to], run, &words[to..]].concat()
    }
}
