//! What became of the rows of a file: read, kept, dropped by reason. Printed and kept in manifests, so that nothing is lost silently.
use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What to do with a row that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadRow {
    /// Stop, with the row's file and line.
    #[default]
    Fail,
    /// Leave it out, and count it.
    Skip,
}

/// Counts of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows that were found.
    pub read: usize,
    /// Rows that go on.
    pub kept: usize,
    dropped: BTreeMap<String, (usize, String)>,
    notes: BTreeMap<String, (usize, String)>,
}

impl Tally {
    /// A row that is left out, for `reason`; `place` is where it stands.
    pub fn drop(&mut self, reason: &str, place: &str) {
        self.dropped.entry(reason.into()).or_insert_with(|| (0, place.into())).0 += 1;
    }

    /// Something about a row that is kept: a part of it that is left out.
    pub fn note(&mut self, what: &str, place: &str) {
        self.notes.entry(what.into()).or_insert_with(|| (0, place.into())).0 += 1;
    }

    /// Rows that were dropped.
    pub fn dropped(&self) -> usize {
        self.dropped.values().map(|d| d.0).sum()
    }

    /// How many were dropped for each reason.
    pub fn reasons(&self) -> impl Iterator<Item = (&str, usize)> {
        self.dropped.iter().map(|(reason, (n, _))| (reason.as_str(), *n))
    }

    /// The counts of another file as well.
    pub fn add(&mut self, other: &Tally) {
        self.read += other.read;
        self.kept += other.kept;
        for (mine, theirs) in [(&mut self.dropped, &other.dropped), (&mut self.notes, &other.notes)] {
            for (reason, (n, place)) in theirs {
                mine.entry(reason.clone()).or_insert_with(|| (0, place.clone())).0 += n;
            }
        }
    }

    /// Whether every row went on whole.
    pub fn is_whole(&self) -> bool {
        self.dropped.is_empty() && self.notes.is_empty()
    }

    /// For manifests.
    pub fn to_json(&self) -> Value {
        let counts = |map: &BTreeMap<String, (usize, String)>| -> BTreeMap<String, usize> {
            map.iter().map(|(k, v)| (k.clone(), v.0)).collect()
        };
        json!({"read": self.read, "kept": self.kept, "dropped": counts(&self.dropped), "notes": counts(&self.notes)})
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} rows read, {} kept", self.read, self.kept)?;
        for (reason, (n, place)) in &self.dropped {
            write!(f, "; {n} dropped: {reason} (first: {place})")?;
        }
        for (what, (n, place)) in &self.notes {
            write!(f, "; {n} x {what} (first: {place})")?;
        }
        Ok(())
    }
}
