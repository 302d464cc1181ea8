//! Parallel sentences as they stand: for looking at, or learning from, what a model makes of both sides.
use std::{collections::HashSet, path::Path};

use anyhow::{Result, ensure};

use super::{super::record::ParallelPair, super::row_shard::RowSet, clean, each_pair};

/// Sentences with their translations, and what was left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sentences {
    /// Source and translation, with the place that they come from.
    pub pairs: Vec<(String, [String; 2])>,
    /// Pairs with an empty side.
    pub empty: usize,
    /// Pairs that occurred before.
    pub repeated: usize,
}

/// The sentences of `source`: a folder or `.jsonl` file of stage `parallel`; a file of lines with another, `target`; or a tab-separated one (further columns are ignored).
///
/// # Errors
/// Files that cannot be read or have unequal numbers of lines, a line without a tab; a folder or rows of something else; a `target` beside rows, which have both sides.
pub fn sentences(source: &Path, target: Option<&Path>) -> Result<Sentences> {
    let mut found = Sentences::default();
    let mut seen = HashSet::new();
    let mut take = |place: String, a: &str, b: &str| {
        let pair = [clean(a), clean(b)];
        if pair.iter().any(String::is_empty) {
            found.empty += 1;
        } else if seen.insert(xxhash_rust::xxh3::xxh3_128(pair.join("\t").as_bytes())) {
            found.pairs.push((place, pair));
        } else {
            found.repeated += 1;
        }
    };
    if source.is_dir() || source.extension().is_some_and(|e| e == "jsonl") {
        ensure!(
            target.is_none(),
            "{} has rows of both sides: the second file, {}, says nothing beside it",
            source.display(),
            target.unwrap_or(source).display()
        );
        for row in RowSet::open(source)?.iter::<ParallelPair>() {
            let ParallelPair { id, source, target, .. } = row?;
            take(id, &source, &target);
        }
    } else {
        let blank = each_pair(source, target, &mut |number, a, b| {
            take(format!("{}:{number}", source.display()), a, b);
        })?;
        found.empty += blank;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn empty_and_repeated_pairs_are_counted_and_unequal_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, text: &str| {
            fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name)
        };
        let one = at("both.tsv", "one\tuno\n\ntwo \tdos\tx\nthree\t \ntwo\tdos\n");
        let found = sentences(&one, None).unwrap();
        let texts: Vec<_> = found.pairs.iter().map(|(_, [a, b])| (a.as_str(), b.as_str())).collect();
        assert_eq!(texts, [("one", "uno"), ("two", "dos")]);
        assert_eq!((found.empty, found.repeated), (2, 1));
        assert!(found.pairs[1].0.ends_with("both.tsv:3"), "{:?}", found.pairs);
        let (a, b) = (at("a.en", "one\n\ntwo\n"), at("b.es", "uno\nnada\ndos\n"));
        let moses = sentences(&a, Some(&b)).unwrap();
        assert_eq!((moses.pairs.len(), moses.empty), (2, 1));
        let error = |a: &Path, b: Option<&Path>| format!("{:#}", sentences(a, b).unwrap_err());
        let short = error(&a, Some(&at("c.es", "uno\ndos\n")));
        assert!(short.contains("c.es has 2 lines") && short.contains("line 3 has no counterpart"), "{short}");
        assert!(error(&a, None).contains("a.en:1: no tab"));
        let rows = at(
            "rows.jsonl",
            "{\"id\":\"x:1\",\"source_language\":\"en\",\"target_language\":\"es\",\"source\":\"one\",\"target\":\"uno\"}\n",
        );
        assert_eq!(sentences(&rows, None).unwrap().pairs, [("x:1".into(), ["one".into(), "uno".into()])]);
        assert!(error(&rows, Some(&b)).contains("b.es, says nothing beside it"));
    }
}
