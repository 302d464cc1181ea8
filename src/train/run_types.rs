//! What a training run is told, and what it tells.
use serde_json::Value;

use super::{
    guard::GuardSettings,
    on_policy::Answered,
    optimizer::OptimizerSettings,
    preference::{Preference, Rewards},
    schedule::Schedule,
    shares::Shard,
};

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
    /// Its shape; `total`, `warmup` and `decay` are filled in by [`train`](super::trainer::train).
    pub schedule: Schedule,
    /// Share of the steps that warm up.
    pub warmup_ratio: f64,
    /// Share of the steps over which [`ScheduleKind::Wsd`](super::schedule::ScheduleKind::Wsd) falls.
    pub decay_ratio: f64,
    /// The optimizer and clipping.
    pub optimizer: OptimizerSettings,
    /// What is learnt from preferences; none where answers are learnt.
    pub preference: Option<Preference>,
    /// Gradients of micro-batches are summed in one order, whatever the number of ranks.
    pub fixed_order: bool,
    /// Gradients are sent to other ranks in bf16.
    pub narrow_sums: bool,
    /// What ranks keep in parts.
    pub shard: Shard,
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
    /// Checkpoints that stay while it runs, the newest.
    pub keep_checkpoints: usize,
    /// Of the documents' order.
    pub seed: u64,
    /// All settings, for the checkpoint: a run with others refuses to go on.
    pub identity: Value,
}

/// A setting that a resumed run may change: it decides in which order gradients are added, that is, the last bits, and how much memory is needed.
pub const CHANGEABLE: &str = "batch-tokens";

/// Another: with how many ranks, unless gradients are summed in a fixed order.
pub const RANKS: &str = "ranks";

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
        /// Of preferences: means over the step.
        rewards: Option<Rewards>,
        /// Of an on-policy objective: the step's answers.
        answered: Option<Answered>,
    },
    /// The validation loss was taken.
    Evaluation {
        /// After this step.
        step: u64,
        /// Mean over all validation documents.
        loss: f64,
        /// The best so far.
        improved: bool,
        /// Of preferences: means over all validation documents.
        rewards: Option<Rewards>,
    },
    /// An earlier run is continued after this step.
    Resumed {
        /// Steps done before.
        step: u64,
    },
    /// From here on it computes otherwise, so that its last bits are not an undisturbed run's.
    Differs {
        /// In what.
        why: String,
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
    /// The guard's plain text was measured.
    GuardText {
        /// After this step; 0 is before training.
        step: u64,
        /// Bits per UTF-8 byte.
        bits: f64,
        /// Before training.
        before: f64,
        /// Factor on the loss weights of source rows from now on.
        weight: f32,
    },
    /// Some documents are too long for a batch: no evaluation runs them.
    LeftOut {
        /// What they are for.
        name: &'static str,
        /// How many.
        documents: usize,
        /// Of all.
        of: usize,
        /// Tokens of the longest.
        longest: usize,
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
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainOutcome {
    /// Steps done.
    pub steps: u64,
    /// Loss of the last step.
    pub train_loss: f64,
    /// The best validation loss and its step; `None` too where it is above the one before training.
    pub best: Option<(f64, u64)>,
    /// The validation loss before the first step.
    pub start: Option<f64>,
    /// What is wrong with the result, if anything is seen to be.
    pub warning: Option<String>,
    /// The token budgets that were used, each with the steps done before.
    pub budgets: Vec<(u64, usize)>,
    /// The numbers of ranks that were used, each with the steps done before; empty where one alone, or the order of sums is fixed.
    pub ranks: Vec<(u64, usize)>,
    /// False if interrupted: a checkpoint was written, the same command goes on.
    pub finished: bool,
}
