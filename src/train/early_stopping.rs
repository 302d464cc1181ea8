//! Early stopping on the validation loss.
use serde::{Deserialize, Serialize};

/// What was best so far, and how long ago.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    /// The best loss and its step.
    pub best: Option<(f64, u64)>,
    /// Evaluations since without an improvement of at least min_delta.
    pub stale: usize,
}

/// What an evaluation means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Better than everything before: keep these parameters.
    pub improved: bool,
    /// Patience is at its end.
    pub stop: bool,
}

impl EarlyStopping {
    /// Takes note of an evaluation. `patience` 0 never stops.
    pub fn observe(&mut self, step: u64, loss: f64, patience: usize, min_delta: f64) -> Observed {
        let improved = self.best.is_none_or(|(best, _)| loss < best - min_delta);
        if improved {
            *self = EarlyStopping { best: Some((loss, step)), stale: 0 };
        } else {
            self.stale += 1;
        }
        Observed { improved, stop: patience > 0 && self.stale >= patience }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_counts_evaluations_without_a_real_improvement() {
        let mut e = EarlyStopping::default();
        let mut at = |step, loss| e.observe(step, loss, 2, 0.01);
        assert_eq!(at(1, 1.0), Observed { improved: true, stop: false });
        assert_eq!(at(2, 0.995), Observed { improved: false, stop: false });
        assert_eq!(at(3, 0.9), Observed { improved: true, stop: false });
        assert_eq!(at(4, 0.9), Observed { improved: false, stop: false });
        assert_eq!(at(5, 0.95), Observed { improved: false, stop: true });
        assert_eq!(e.best, Some((0.9, 3)));
    }
}
