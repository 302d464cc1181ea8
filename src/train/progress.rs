//! Whether a training learns anything: its losses against those before the first step.
use serde::{Deserialize, Serialize};

/// Steps over which the training loss is averaged.
const WINDOW: usize = 5;
/// A training loss so far above its start, nats, is none of a batch's chance.
const RISE: f64 = 0.5;
/// As near to ln V, as a share of it, a model says nothing but that every token is as likely.
const UNIFORM: f64 = 0.002;

/// What is remembered; part of every checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The validation loss before the first step.
    pub start: Option<f64>,
    /// The training loss of the first step, taken before its update.
    pub first: Option<f64>,
    /// The training losses of the last few steps.
    pub recent: Vec<f64>,
}

impl Progress {
    /// Takes note of a step's loss.
    pub fn observe(&mut self, loss: f64) {
        self.first.get_or_insert(loss);
        self.recent.push(loss);
        if self.recent.len() > WINDOW {
            self.recent.remove(0);
        }
    }

    /// Whether a model with this validation loss has learnt nothing: it is above the one before the first step, or that of a model over `vocabulary`
    /// tokens that says the same of each.
    pub fn is_no_better(&self, loss: f64, vocabulary: usize) -> bool {
        // An untrained model is measured twice with the same bits; rounding is no loss.
        self.start.is_some_and(|start| loss > start * (1.0 + 1e-6)) || is_uniform(loss, vocabulary)
    }

    /// What is wrong with a training that ended with this best validation loss, if it had any, over `vocabulary` tokens.
    pub fn warning(&self, best: Option<f64>, vocabulary: usize) -> Option<String> {
        let collapsed = |loss: f64| match is_uniform(loss, vocabulary) {
            true => " (the logarithm of the vocabulary: it says the same of every token)",
            false => "",
        };
        if let (Some(start), Some(best)) = (self.start, best) {
            let why = collapsed(best);
            return self.is_no_better(best, vocabulary).then(|| {
                format!(
                    "the validation loss was {start:.4} before the first step and at best {best:.4} after it{why}: the training has diverged, or learnt \
                     nothing. What was written is no better than the model before; lower the learning rate, or look at the data"
                )
            });
        }
        let recent = self.recent.iter().sum::<f64>() / self.recent.len().max(1) as f64;
        let first = self.first.filter(|first| recent > first + RISE || is_uniform(recent, vocabulary))?;
        let why = collapsed(recent);
        Some(format!(
            "the training loss went from {first:.4} to {recent:.4}{why}: the training has diverged, or learnt nothing; lower the learning rate, or look at \
             the data"
        ))
    }
}

/// Whether a loss is that of a model that gives every token the same probability.
fn is_uniform(loss: f64, vocabulary: usize) -> bool {
    let uniform = (vocabulary as f64).ln();
    (loss - uniform).abs() < UNIFORM * uniform
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(losses: &[f64], start: Option<f64>) -> Progress {
        let mut progress = Progress { start, ..Progress::default() };
        losses.iter().for_each(|loss| progress.observe(*loss));
        progress
    }

    #[test]
    fn a_rise_is_told_and_a_fall_or_chance_is_not() {
        assert_eq!(after(&[2.0, 1.9, 2.3, 1.8], None).warning(None, 1000), None);
        assert_eq!(after(&[2.0; 30], Some(2.0)).warning(Some(2.0), 1000), None, "a learning rate of 0");
        assert_eq!(after(&[2.0, 1.0], Some(2.0)).warning(Some(1.9), 1000), None);
        let rising: Vec<f64> = (0..60).map(|i| 2.0 + i as f64 * 0.2).collect();
        assert!(after(&rising, None).warning(None, 1000).unwrap().contains("went from 2.0000"));
        let collapsed = [vec![9.0], vec![6.9078; 200]].concat();
        assert!(after(&collapsed, None).warning(None, 1000).unwrap().contains("logarithm of the vocabulary"));
        let told = after(&[2.0, 1.0], Some(2.0)).warning(Some(2.1), 1000).unwrap();
        assert!(told.contains("2.0000 before the first step and at best 2.1000"), "{told}");
        let told = after(&[9.0, 7.0], Some(9.0)).warning(Some(6.9077), 1000).unwrap();
        assert!(told.contains("logarithm of the vocabulary"), "{told}");
        let no_better = |start, loss| after(&[2.0], start).is_no_better(loss, 1000);
        assert!(
            no_better(Some(2.0), 2.1)
                && !no_better(None, 9.0)
                && no_better(Some(9.0), 6.908)
                && !no_better(Some(9.0), 6.5)
        );
    }
}
