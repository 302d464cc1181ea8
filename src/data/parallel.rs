//! Parallel corpora: a Moses pair of files with equal numbers of lines, or one tab-separated file; `.gz` by suffix.
use std::{collections::HashSet, path::Path};

use anyhow::{Result, bail, ensure};

use super::{
    alarms::{translation_alarms, weight},
    language_id::{Coverage, contradicts, coverage},
    languages::{is_unspaced, name as language_name, same_language},
    random::RowRandom,
    record::ParallelPair,
    text_file::lines,
};

mod sentences;
mod shift;

pub use sentences::{Sentences, sentences};
pub use shift::Shift;

/// Which pairs are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Pairs at most (0: all), drawn at random.
    pub limit: usize,
    /// Words of either side at least (characters / 3 where words are not separated).
    pub min_words: usize,
    /// Words of either side at most.
    pub max_words: usize,
    /// Of the draw.
    pub seed: u64,
}

/// What happened to the lines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LineCounts {
    /// Lines read.
    pub lines: usize,
    /// A side was empty or the pair occurred before.
    pub duplicates: usize,
    /// Too short or too long.
    pub length: usize,
    /// An alarm (length ratio, wrong language, copied, loop).
    pub alarms: usize,
    /// Chosen.
    pub kept: usize,
    /// Of those with an alarm: the source reads as the target language and the other way round.
    pub swapped: usize,
    /// Where the sides seem to have lost each other, if they have.
    pub shift: Option<Shift>,
}

/// Reads `source` and `target` line by line; without `target`, `source` is tab-separated (further columns are ignored). The draw depends on
/// the pair and the seed alone, so that a larger limit keeps every pair of a smaller one.
pub fn read(
    source: &Path,
    target: Option<&Path>,
    languages: (&str, &str),
    selection: &Selection,
) -> Result<(Vec<ParallelPair>, LineCounts)> {
    let mut counts = LineCounts::default();
    let mut seen = HashSet::new();
    let mut found: Vec<(u64, ParallelPair)> = vec![];
    let mut all_lengths = vec![];
    let corpus = source.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    each_pair(source, target, &mut |number, a, b| {
        counts.lines += 1;
        let (a, b) = (clean(a), clean(b));
        all_lengths.push(((1.0 + weight(&a)).ln(), (1.0 + weight(&b)).ln()));
        let key = xxhash_rust::xxh3::xxh3_128(format!("{a}\t{b}").as_bytes());
        if a.is_empty() || b.is_empty() || !seen.insert(key) {
            counts.duplicates += 1;
            return;
        }
        let lengths = [length(&a, languages.0), length(&b, languages.1)];
        if lengths.iter().any(|n| !(selection.min_words..=selection.max_words).contains(n)) {
            counts.length += 1;
            return;
        }
        if !translation_alarms(&a, &b, languages.0, languages.1).is_empty() {
            counts.alarms += 1;
            counts.swapped += usize::from(is_swapped(&a, &b, languages));
            return;
        }
        let draw = RowRandom::new(selection.seed, "parallel", &format!("{a}\t{b}")).next_u64();
        let pair = ParallelPair {
            id: format!("{corpus}:{number}"),
            source_language: languages.0.into(),
            target_language: languages.1.into(),
            source: a,
            target: b,
        };
        found.push((draw, pair));
    })?;
    ensure!(
        counts.swapped * 2 <= counts.lines || counts.swapped < 2,
        "{} of {} lines have their languages the other way round: the source column reads as {}, the target column as {}; swap the files, columns or languages",
        counts.swapped,
        counts.lines,
        language_name(languages.1),
        language_name(languages.0)
    );
    counts.shift = shift::find(&all_lengths);
    found.sort_by(|a, b| (a.0, &a.1.id).cmp(&(b.0, &b.1.id)));
    if selection.limit > 0 {
        found.truncate(selection.limit);
    }
    counts.kept = found.len();
    Ok((found.into_iter().map(|(_, pair)| pair).collect(), counts))
}

/// Calls `f` with the number of each line and its two sides; the number of blank lines, which a tab-separated file may have.
fn each_pair(source: &Path, target: Option<&Path>, f: &mut dyn FnMut(usize, &str, &str)) -> Result<usize> {
    let mut left = lines(source)?;
    let Some(target) = target else {
        let mut blank = 0;
        while let Some(line) = left.next() {
            let line = line?;
            if line.is_empty() {
                blank += 1;
                continue;
            }
            let mut fields = line.split('\t');
            match (fields.next(), fields.next()) {
                (Some(a), Some(b)) => f(left.number(), a, b),
                _ => bail!(
                    "{}:{}: no tab in the line: expected source, tab, target (or give the target file too)",
                    source.display(),
                    left.number()
                ),
            }
        }
        ensure!(left.number() > 0, "{} is empty", source.display());
        return Ok(blank);
    };
    let mut right = lines(target)?;
    loop {
        match (left.next().transpose()?, right.next().transpose()?) {
            (Some(a), Some(b)) => f(left.number(), &a, &b),
            (None, None) => break,
            (a, _) => {
                let (short, long) = if a.is_some() { (target, source) } else { (source, target) };
                let n = left.number().min(right.number());
                bail!(
                    "{} has {n} lines and {} has more: line {} has no counterpart, so the files are no pair",
                    short.display(),
                    long.display(),
                    n + 1
                )
            }
        }
    }
    ensure!(left.number() > 0, "{} is empty", source.display());
    Ok(0)
}

/// Whether each side is surely in the other's language; of a language that no identifier knows, only that the other is not in its own.
fn is_swapped(a: &str, b: &str, (source, target): (&str, &str)) -> bool {
    let reads_as = |text: &str, expected: &str, other: &str| {
        contradicts(text, expected, &[other]).is_some_and(|found| same_language(found, other))
    };
    let source_is_other = || match coverage(target) {
        Coverage::Full => reads_as(a, source, target),
        _ => contradicts(a, source, &[target]).is_some(),
    };
    reads_as(b, target, source) && source_is_other()
}

fn clean(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn length(text: &str, language: &str) -> usize {
    if is_unspaced(language) { text.chars().count().div_ceil(3) } else { text.split(' ').count() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_the_other_way_round_are_seen_also_where_nothing_knows_the_target() {
        let english = "The committee will publish the final report next week, and members can send comments.";
        let spanish = "El comité publicará el informe final la semana que viene y los miembros pueden enviar comentarios.";
        for target in ["es", "ibo_Latn", "ceb_Latn"] {
            assert!(is_swapped(spanish, english, ("en", target)), "{target}");
            assert!(!is_swapped(english, spanish, ("en", target)), "{target}");
        }
    }
}
