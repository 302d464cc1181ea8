//! The source-language guard: is what the model was strong in being forgotten?
use serde::{Deserialize, Serialize};

/// What a rise beyond the limit does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Nothing but the log.
    Log,
    /// Training ends.
    Stop,
    /// Source documents weigh more.
    Reweight,
}

/// The guard's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GuardSettings {
    /// What a rise does.
    pub reaction: Reaction,
    /// Nats above the loss before training.
    pub max_rise: f64,
}

/// The weight of source documents grows to this at most.
pub const MOST: f32 = 8.0;

/// What the guard remembers; part of every checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuardState {
    /// Loss before the first step.
    pub before: Option<f64>,
    /// Factor on the loss weights of source documents.
    pub weight: f32,
}

impl Default for GuardState {
    fn default() -> GuardState {
        GuardState { before: None, weight: 1.0 }
    }
}

impl GuardState {
    /// Takes note of a loss; true: training is to end.
    pub fn observe(&mut self, loss: f64, settings: &GuardSettings) -> bool {
        let Some(before) = self.before else {
            self.before = Some(loss);
            return false;
        };
        if loss <= before + settings.max_rise {
            return false;
        }
        match settings.reaction {
            Reaction::Log => false,
            Reaction::Stop => true,
            Reaction::Reweight => {
                self.weight = (self.weight * 2.0).min(MOST);
                false
            }
        }
    }
}

/// Whether a document of a token shard, by its note, is a source-language question with the model's own source-language answer.
pub fn is_source(note: &str) -> bool {
    note.ends_with(" S>S")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rise_beyond_the_limit_stops_or_reweights() {
        let mut log = GuardState::default();
        let settings = |reaction| GuardSettings { reaction, max_rise: 0.1 };
        assert!(!log.observe(1.0, &settings(Reaction::Stop)), "the first loss is the one before training");
        assert!(!log.observe(1.1, &settings(Reaction::Stop)) && log.observe(1.11, &settings(Reaction::Stop)));
        assert!(!log.observe(9.0, &settings(Reaction::Log)));
        let weights: Vec<f32> = (0..5)
            .map(|_| {
                log.observe(2.0, &settings(Reaction::Reweight));
                log.weight
            })
            .collect();
        assert_eq!(weights, [2.0, 4.0, 8.0, 8.0, 8.0]);
        assert!(is_source("q-1/S>S/en S>S") && !is_source("q-1/CS>S/es CS>S") && !is_source("x sft"));
    }
}
