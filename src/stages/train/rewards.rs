//! What a training on preferences has come to, by its log.
use std::{fmt, path::Path};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::page::points;
use crate::{pipeline::work_dir::METRICS, train::trainer::TrainOutcome};

/// Rewards before the first step and at the state that was kept; of held-out rows where there are any, else of the rows of a step.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Change {
    held_out: bool,
    margin_before: f64,
    margin: f64,
    accuracy: Option<f64>,
}

impl Change {
    /// Of the training in `out`; nothing where answers were learnt.
    ///
    /// # Errors
    /// A log that cannot be read.
    pub fn of(out: &Path, outcome: &TrainOutcome) -> Result<Option<Change>> {
        let path = out.join(METRICS);
        for (held_out, part) in [(true, "eval"), (false, "train")] {
            let margins = points(&path, &format!("{part}/rewards/margins"))?;
            let accuracies = points(&path, &format!("{part}/rewards/accuracies"))?;
            let kept = outcome.best.filter(|_| held_out).map_or(outcome.steps, |(_, step)| step) as f64;
            let at = |all: &[(f64, f64)]| all.iter().find(|p| p.0 == kept).map(|p| p.1);
            if let (Some(first), Some(margin)) = (margins.first(), at(&margins)) {
                let accuracy = at(&accuracies);
                return Ok(Some(Change { held_out, margin_before: first.1, margin, accuracy }));
            }
        }
        Ok(None)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let of = if self.held_out { "held-out rows" } else { "the rows of a step" };
        write!(f, "reward margin of {of} {:.3} before, {:.3} after", self.margin_before, self.margin)?;
        let Some(accuracy) = self.accuracy else { return Ok(()) };
        write!(f, "; the chosen reply has the higher reward in {:.0} %", 100.0 * accuracy)
    }
}
