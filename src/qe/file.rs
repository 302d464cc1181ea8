//! Scores made elsewhere: a tab-separated file of source, translation, score.
use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, bail};

use super::Scorer;
use crate::data::text_file::lines;

/// Scores by sentence pair.
pub struct FileScorer {
    name: String,
    scores: HashMap<(String, String), f64>,
}

impl FileScorer {
    /// Reads `path`.
    pub fn load(path: &Path) -> Result<FileScorer> {
        let mut reader = lines(path)?;
        let mut scores = HashMap::new();
        while let Some(line) = reader.next() {
            let line = line?;
            let place = format!("{}:{}", path.display(), reader.number());
            let fields: Vec<&str> = line.split('\t').collect();
            let [source, translation, score] = fields[..] else {
                bail!(
                    "{place}: expected source, translation and score between tabs, found {} fields",
                    fields.len()
                )
            };
            let x: f64 = score.trim().parse().with_context(|| format!("{place}: {score:?} is no number"))?;
            if !x.is_finite() {
                bail!("{place}: the score {score} is not finite");
            }
            scores.insert((source.to_string(), translation.to_string()), x);
        }
        Ok(FileScorer { name: format!("file {}", path.display()), scores })
    }
}

impl Scorer for FileScorer {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn score(&mut self, pairs: &[(String, String)]) -> Result<Vec<f64>> {
        let find = |pair: &(String, String)| {
            let found = self.scores.get(pair).copied();
            found.with_context(|| format!("{} has no score for {:?} -> {:?}", self.name, pair.0, pair.1))
        };
        pairs.iter().map(find).collect()
    }
}
