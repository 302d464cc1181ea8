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
    /// Nats above the loss of held-out source rows before training.
    pub max_rise: f64,
    /// Bits per byte of plain text above those before training: decides where there is such a text.
    pub max_bits: f64,
}

/// The weight of source documents grows to this at most.
pub const MOST: f32 = 8.0;

/// What the guard remembers; part of every checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuardState {
    /// Loss of the source rows before the first step.
    pub before: Option<f64>,
    /// Bits per byte of the plain text before the first step.
    #[serde(default)]
    pub bits_before: Option<f64>,
    /// Factor on the loss weights of source documents.
    pub weight: f32,
}

impl Default for GuardState {
    fn default() -> GuardState {
        GuardState { before: None, bits_before: None, weight: 1.0 }
    }
}

impl GuardState {
    /// Takes note of the loss of source rows and of a plain text's bits per byte, whichever there is; true: training is to end. Where there is a text, it
    /// decides: the rows' loss is that of the base model's own answers, which any change of the answers' style raises.
    pub fn observe(&mut self, loss: Option<f64>, bits: Option<f64>, settings: &GuardSettings) -> bool {
        let rose = |before: &mut Option<f64>, now: Option<f64>, most: f64| {
            now.is_some_and(|now| now > *before.get_or_insert(now) + most)
        };
        let by_rows = rose(&mut self.before, loss, settings.max_rise);
        let by_text = rose(&mut self.bits_before, bits, settings.max_bits);
        if !(if bits.is_some() { by_text } else { by_rows }) {
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

    fn settings(reaction: Reaction) -> GuardSettings {
        GuardSettings { reaction, max_rise: 0.1, max_bits: 0.02 }
    }

    #[test]
    fn a_rise_beyond_the_limit_stops_or_reweights() {
        let mut log = GuardState::default();
        let mut stops = |x: f64| log.observe(Some(x), None, &settings(Reaction::Stop));
        assert!(!stops(1.0), "the first loss is the one before training");
        assert!(!stops(1.1) && stops(1.11));
        assert!(!log.observe(Some(9.0), None, &settings(Reaction::Log)));
        let weights: Vec<f32> = (0..5)
            .map(|_| {
                log.observe(Some(2.0), None, &settings(Reaction::Reweight));
                log.weight
            })
            .collect();
        assert_eq!(weights, [2.0, 4.0, 8.0, 8.0, 8.0]);
        assert!(is_source("q-1/S>S/en S>S") && !is_source("q-1/CS>S/es CS>S") && !is_source("x sft"));
    }

    #[test]
    fn a_plain_text_decides_where_there_is_one() {
        let mut state = GuardState::default();
        let mut stops =
            |loss: f64, bits: f64| state.observe(Some(loss), Some(bits), &settings(Reaction::Stop));
        assert!(!stops(1.0, 0.9));
        assert!(!stops(5.0, 0.91), "the rows' loss is only noted");
        assert!(stops(0.5, 0.93));
        assert_eq!((state.before, state.bits_before), (Some(1.0), Some(0.9)));
    }
}
