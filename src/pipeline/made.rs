//! What came of a stage.
use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use super::manifest::Counts;

/// What a stage says at its end.
#[derive(Clone, Debug, Default)]
pub struct Made {
    /// What came in and out.
    pub counts: Option<Counts>,
    /// For the manifest: rates, losses and other results.
    pub summary: Value,
    /// Other parts are still at work: the last of them finishes.
    pub unfinished: bool,
    /// A line for the screen.
    pub line: Option<String>,
}

impl Made {
    /// With a summary.
    pub fn new(summary: impl Serialize) -> Result<Made> {
        Ok(Made { summary: serde_json::to_value(summary)?, ..Made::default() })
    }

    /// With counts.
    pub fn counting(self, counts: Counts) -> Made {
        Made { counts: Some(counts), ..self }
    }

    /// With a line for the screen.
    pub fn saying(self, line: String) -> Made {
        Made { line: Some(line), ..self }
    }
}

/// What [`run`](super::stage::run) found to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// Nothing: the same result was there.
    Unchanged,
    /// The work, to its end.
    Made,
    /// A part of the work; others are still to be done.
    Part,
}
