//! What a training run is told, and what it tells.
use anyhow::{Result, ensure};
use serde_json::Value;

use crate::error::Error;

use super::{guard::GuardSettings, optimizer::OptimizerSettings, schedule::Schedule};

/// What the loop needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainerSettings {
    /// Passes over the documents.
    pub epochs: f64,
    /// Ends after so many steps, whatever the epochs; 0 is no limit.
    pub max_steps: u64,
    /// Documents of an optimizer step.
    pub batch_documents: usize,
    /// Tokens of a packed micro-batch at most.
    pub batch_tokens: usize,
    /// The peak learning rate.
    pub lr: f64,
    /// Its shape; `total` and `warmup` are filled in by [`train`](super::trainer::train).
    pub schedule: Schedule,
    /// Share of the steps that warm up.
    pub warmup_ratio: f64,
    /// AdamW and clipping.
    pub optimizer: OptimizerSettings,
    /// Every sentence counts the same, however long; else every token does.
    pub per_sentence: bool,
    /// Validate every so many steps; 0 is once an epoch.
    pub eval_every: u64,
    /// Stop after so many evaluations without improvement; 0 never.
    pub patience: usize,
    /// What counts as an improvement of the validation loss.
    pub min_delta: f64,
    /// What happens when the source language is being forgotten.
    pub guard: GuardSettings,
    /// Checkpoint every so many steps; 0 only when interrupted.
    pub checkpoint_every: u64,
    /// Of the documents' order.
    pub seed: u64,
    /// All settings, for the checkpoint: a run with others refuses to go on.
    pub identity: Value,
}

impl TrainerSettings {
    /// Errors on values that mean nothing, by their names in recipes.
    pub fn check(&self) -> Result<()> {
        let o = &self.optimizer;
        let share = |x: f64| (0.0..=1.0).contains(&x);
        let decay = |x: f64| (0.0..1.0).contains(&x);
        let at_least_0 = |x: f64| x >= 0.0 && x.is_finite();
        let above_0 = |x: f64| x > 0.0 && x.is_finite();
        let counts = [("batch-documents", self.batch_documents), ("batch-tokens", self.batch_tokens)];
        for (name, n) in counts {
            let message = || format!("train.{name} is 0: 1 or more was expected");
            ensure!(n > 0, Error::setting(format!("train.{name}"), message()));
        }
        for (name, x, fits, expected) in [
            ("epochs", self.epochs, above_0(self.epochs), "a number above 0"),
            ("lr", self.lr, above_0(self.lr), "a number above 0"),
            ("warmup-ratio", self.warmup_ratio, share(self.warmup_ratio), "a share from 0 to 1"),
            ("min-lr-ratio", self.schedule.min_ratio, share(self.schedule.min_ratio), "a share from 0 to 1"),
            ("beta1", o.beta1, decay(o.beta1), "0 or more and below 1"),
            ("beta2", o.beta2, decay(o.beta2), "0 or more and below 1"),
            ("eps", o.eps, above_0(o.eps), "a number above 0"),
            ("weight-decay", o.weight_decay, at_least_0(o.weight_decay), "0 or more"),
            ("clip", o.clip, at_least_0(o.clip), "0 or more"),
            ("lora-plus-ratio", o.lora_plus_ratio, above_0(o.lora_plus_ratio), "a number above 0"),
            ("min-delta", self.min_delta, at_least_0(self.min_delta), "0 or more"),
        ] {
            let message = || format!("train.{name} is {x}: {expected} was expected");
            ensure!(fits, Error::setting(format!("train.{name}"), message()));
        }
        Ok(())
    }
}

/// What happened, for whoever draws it.
#[derive(Clone, Debug, PartialEq)]
pub enum TrainEvent {
    /// An optimizer step is done.
    Step {
        /// Counted from 1.
        step: u64,
        /// Of all.
        total: u64,
        /// Mean over the step.
        loss: f64,
        /// Before clipping.
        grad_norm: f64,
        /// Of this step.
        lr: f64,
        /// Tokens that were run.
        tokens: usize,
        /// Their time.
        seconds: f64,
    },
    /// The validation loss was taken.
    Evaluation {
        /// After this step.
        step: u64,
        /// Mean over all validation documents.
        loss: f64,
        /// The best so far.
        improved: bool,
    },
    /// An earlier run is continued after this step.
    Resumed {
        /// Steps done before.
        step: u64,
    },
    /// The loss of held-out source rows was taken.
    Guard {
        /// After this step; 0 is before training.
        step: u64,
        /// Mean over all of them.
        loss: f64,
        /// Before training.
        before: f64,
        /// Factor on the loss weights of source rows from now on.
        weight: f32,
    },
    /// What the probe measured.
    Probe {
        /// After this step; 0 is before training.
        step: u64,
        /// Values by name.
        values: Vec<(String, f64)>,
    },
    /// Patience ended.
    StoppedEarly {
        /// After this step.
        step: u64,
    },
    /// The guard ended training.
    StoppedByGuard {
        /// After this step.
        step: u64,
    },
}

/// How it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TrainOutcome {
    /// Steps done.
    pub steps: u64,
    /// Loss of the last step.
    pub train_loss: f64,
    /// The best validation loss and its step.
    pub best: Option<(f64, u64)>,
    /// False if interrupted: a checkpoint was written, the same command goes on.
    pub finished: bool,
}
