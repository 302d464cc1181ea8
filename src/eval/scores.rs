//! `scores.jsonl` beside a task's samples: each row's numbers of each metric, so that what is costly is computed once.
//!
//! A line is `{"metric", "signature", "doc_id", "sample", "values"}`: `sample` is the hash of what the metric saw of the row. A number is taken from
//! the file where metric, signature and hash are the same, whatever else has changed. Lines are appended as they are computed, so that a killed
//! command goes on where it was; at the end they stand in one order, so that it makes no difference. The file is a cache: without it everything
//! is computed again.
use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use crate::data::files::FileContext;
use crate::error::Error;
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::json;

use crate::report::out::note;
use crate::{
    data::files::write_atomic,
    metrics::metric::{About, OpenMetric, Segment},
    pipeline::interrupt::interrupted,
    report::progress::Progress,
};

/// Rows that a model scores between two writes.
const CHUNK: usize = 256;
/// Where a line's numbers begin. They are read by themselves, since serde_json may lose the last bit of a number.
const VALUES: &str = ",\"values\":[";

/// Metric, signature, hash of the row.
type Key = (String, String, u64);

/// The numbers of a row, and where it stood.
struct Known {
    doc_id: usize,
    values: Vec<f64>,
}

/// What is kept of a task's rows.
pub struct ScoreFile {
    path: PathBuf,
    known: BTreeMap<Key, Known>,
    /// The file as it was read, without a line that a kill cut in two.
    text: String,
    /// Absent until there is something to write, and after a failure to.
    file: Option<File>,
    failed: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    metric: String,
    signature: String,
    doc_id: usize,
    sample: String,
}

impl ScoreFile {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// A line that is damaged, by its number.
    pub fn open(path: &Path) -> Result<ScoreFile> {
        let mut text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e).reading(path),
        };
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        let cut = whole < text.len();
        text.truncate(whole);
        let mut known = BTreeMap::new();
        for (i, line) in text.lines().enumerate() {
            let (key, row) = parse(line).with_context(|| {
                format!("{}:{}: delete the file, and its scores are computed again", path.display(), i + 1)
            })?;
            known.insert(key, row);
        }
        let mut scores = ScoreFile { path: path.into(), known, text, file: None, failed: false };
        if cut {
            let written = write_atomic(&scores.path, scores.text.as_bytes());
            scores.tell(written);
        }
        Ok(scores)
    }

    /// The numbers of `metric` for each row: those that are known, and the others computed and kept. `ids` are the rows' places in their file.
    ///
    /// # Errors
    /// A metric that fails or gives a number that is not finite; Ctrl-C.
    pub fn rows(
        &mut self,
        about: &About,
        metric: &dyn OpenMetric,
        segments: &[Segment],
        ids: &[usize],
        label: &str,
    ) -> Result<Vec<Vec<f64>>> {
        let signature = metric.signature();
        // What a metric does not look at does not decide whether its number is known.
        let seen =
            |s: &Segment| Segment { source: if about.needs.source { s.source } else { "" }, ..*s }.hash();
        let hashes = segments.iter().map(seen).collect::<Result<Vec<u64>>>()?;
        let key = |i: usize| (about.key.to_string(), signature.clone(), hashes[i]);
        let mut asked = HashSet::new();
        let missing: Vec<usize> = (0..segments.len())
            .filter(|&i| !self.known.contains_key(&key(i)) && asked.insert(hashes[i]))
            .collect();
        let chunk = if about.needs.model { CHUNK } else { missing.len().max(1) };
        let known = segments.len() - missing.len();
        let shown = about.needs.model && !missing.is_empty();
        let mut progress = shown.then(|| Progress::new(label, segments.len()));
        progress.iter_mut().for_each(|p| p.skip(known));
        for chosen in missing.chunks(chunk) {
            ensure!(!interrupted(), Error::interrupted("stopped: run the same command again to resume"));
            let some: Vec<Segment> = chosen.iter().map(|&i| segments[i]).collect();
            let rows = metric.rows(&some)?;
            ensure!(rows.len() == some.len(), "{}: {} rows for {}", about.name, rows.len(), some.len());
            let mut lines = String::new();
            for (&i, values) in chosen.iter().zip(rows) {
                ensure!(
                    values.len() == metric.width() && values.iter().all(|x| x.is_finite()),
                    "row {}: {} gives {values:?}: {} finite numbers were expected",
                    ids[i],
                    about.name,
                    metric.width()
                );
                let row = Known { doc_id: ids[i], values };
                lines += &line(&key(i), &row);
                self.known.insert(key(i), row);
            }
            self.append(&lines);
            progress.iter_mut().for_each(|p| p.advance(chosen.len()));
        }
        progress.iter_mut().for_each(Progress::finish);
        let found = |i: usize| {
            let values = self.known.get(&key(i)).map(|k| k.values.clone()).unwrap_or_default();
            ensure!(
                values.len() == metric.width(),
                "{}: row {} has {} numbers of {}, {} were expected: delete the file",
                self.path.display(),
                ids[i],
                values.len(),
                about.name,
                metric.width()
            );
            Ok(values)
        };
        (0..segments.len()).map(found).collect()
    }

    /// Writes the lines at the file's end.
    fn append(&mut self, lines: &str) {
        if self.failed || lines.is_empty() {
            return;
        }
        let mut write = || -> Result<()> {
            if self.file.is_none() {
                self.file = Some(OpenOptions::new().create(true).append(true).open(&self.path)?);
            }
            if let Some(file) = &mut self.file {
                file.write_all(lines.as_bytes())?;
            }
            Ok(())
        };
        let written = write();
        self.tell(written);
    }

    /// Puts the lines in order, whatever order they were computed in.
    pub fn finish(mut self) {
        self.file = None;
        let text: String = self.ordered().into_iter().map(|(key, row)| line(key, row)).collect();
        if !self.failed && text != self.text {
            let written = write_atomic(&self.path, text.as_bytes());
            self.tell(written);
        }
    }

    fn ordered(&self) -> Vec<(&Key, &Known)> {
        let mut all: Vec<_> = self.known.iter().collect();
        all.sort_by(|(a, x), (b, y)| (&a.0, &a.1, x.doc_id, a.2).cmp(&(&b.0, &b.1, y.doc_id, b.2)));
        all
    }

    /// Scores that cannot be kept are still scores: it is said once, and the command goes on.
    fn tell(&mut self, written: Result<()>) {
        if let Err(e) = written.with_context(|| format!("write {}", self.path.display())) {
            note!("warning: {e:#}: the scores are not kept and will be computed again");
            self.failed = true;
        }
    }
}

fn line((metric, signature, hash): &Key, row: &Known) -> String {
    let head = json!({"metric": metric, "signature": signature, "doc_id": row.doc_id, "sample": format!("{hash:016x}")});
    let values: Vec<String> = row.values.iter().map(f64::to_string).collect();
    format!("{}{VALUES}{}]}}\n", head.to_string().trim_end_matches('}'), values.join(","))
}

fn parse(line: &str) -> Result<(Key, Known)> {
    let (head, values) = line.split_once(VALUES).context("a line without `values`")?;
    let head: Head = serde_json::from_str(&format!("{head}}}")).context("not a line of scores")?;
    let hash = u64::from_str_radix(&head.sample, 16)
        .with_context(|| format!("`sample` is {:?}, no hash", head.sample))?;
    let numbers = values.strip_suffix("]}").context("the line does not end in `]}`")?;
    let mut values = vec![];
    for number in numbers.split(',') {
        match number.trim().parse::<f64>() {
            Ok(x) if x.is_finite() => values.push(x),
            _ => bail!("{number:?} among `values` is no number"),
        }
    }
    Ok(((head.metric, head.signature, hash), Known { doc_id: head.doc_id, values }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_keep_every_bit(
            values in proptest::collection::vec(proptest::num::f64::NORMAL | proptest::num::f64::ZERO | proptest::num::f64::SUBNORMAL, 1..4),
            signature in "\\PC{0,30}", hash: u64, doc_id: usize,
        ) {
            let key = ("bleu".to_string(), signature, hash);
            let text = line(&key, &Known { doc_id, values: values.clone() });
            let (again, row) = parse(text.trim_end_matches('\n')).unwrap();
            prop_assert_eq!((again, row.doc_id), (key, doc_id));
            let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&row.values), bits(&values));
        }

        #[test]
        fn any_line_gives_a_row_or_an_error(a in "\\PC{0,60}", b in "\\PC{0,20}") {
            let _ = parse(&a);
            let _ = parse(&format!("{{{a}{VALUES}{b}]}}"));
        }
    }
}
