//! Preference training: direct preference optimization (DPO, Rafailov et al. 2023) of packed pairs.
//!
//! A unit of documents (a chosen and a rejected reply) lies in one micro-batch. One forward pass gives the log-probability of each reply; the loss couples
//! them, and its derivative with respect to a reply's log-probability is the weight of the reply's tokens in the backward pass that every training has:
//! d loss / d logits of a token = weight (softmax - onehot). What is divided by is counted over the whole step, whatever its micro-batches.
mod loss;
mod measured;

use std::fmt;

use anyhow::{Result, ensure};

pub use loss::PairLoss;
use loss::{Reply, dpo};
use measured::Value;
pub use measured::{Measured, Rewards};

use crate::{
    data::{loader::pack, token_shard::TokenShard},
    models::transformer::{
        train_step::{PackedBatch, TrainStep},
        weights::Transformer,
    },
};

/// What is learnt from preferences, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PreferenceLoss {
    /// Direct preference optimization.
    Dpo {
        /// How a margin becomes a loss.
        loss: PairLoss,
        /// How closely the reference is kept to.
        beta: f64,
        /// The share of pairs that are expected to be the wrong way round.
        smoothing: f64,
    },
}

impl fmt::Display for PreferenceLoss {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            PreferenceLoss::Dpo { loss, beta, smoothing } => {
                let loss = format!("{loss:?}").to_lowercase();
                write!(f, "beta {beta}, loss {loss}, label smoothing {smoothing}")
            }
        }
    }
}

/// An objective with what it compares with.
#[derive(Clone, Debug, PartialEq)]
pub struct Preference {
    /// What is learnt.
    pub objective: PreferenceLoss,
    /// Of each training document: its log-probability under the reference model.
    pub train: Vec<f64>,
    /// The same of each validation document; NaN where it is too long to be evaluated.
    pub validation: Vec<f64>,
}

/// Some units as a batch.
struct Batch {
    packed: PackedBatch,
    units: Vec<[Part; 2]>,
}

/// A document in a batch.
struct Part {
    /// Its number in the shard.
    document: usize,
    tokens: std::ops::Range<usize>,
}

impl Batch {
    fn of(shard: &TokenShard, units: &[usize]) -> Batch {
        let mut packed = PackedBatch::default();
        let mut push = |document: usize| {
            let from = packed.tokens.len();
            let d = shard.document(document);
            packed.push(&d.tokens, &d.weights);
            Part { document, tokens: from..packed.tokens.len() }
        };
        let parts = units.iter().map(|&u| {
            let first = shard.unit(u).start;
            [push(first), push(first + 1)]
        });
        let units = parts.collect();
        Batch { packed, units }
    }

    /// The log-probability of a reply and its tokens, by the losses of the batch.
    fn reply(&self, part: &Part, losses: &[f32], reference: &[f64]) -> Reply {
        let (mut logp, mut tokens) = (0.0, 0.0);
        for i in part.tokens.clone().filter(|&i| self.packed.weights[i] != 0.0) {
            logp -= losses[i] as f64;
            tokens += 1.0;
        }
        Reply { logp, reference: reference[part.document], tokens }
    }
}

impl Preference {
    /// Gradients += those of the mean loss over the units of a step, of which `own` are this process's; its share of what is measured.
    ///
    /// # Errors
    /// The model's; reference log-probabilities of other documents.
    pub fn step(
        &self,
        model: &mut Transformer,
        step: &mut TrainStep,
        shard: &TokenShard,
        (all, own): (&[usize], &[usize]),
        batch_tokens: usize,
    ) -> Result<Measured> {
        self.check(&self.train, shard)?;
        let mut measured = Measured::default();
        for units in pack(shard, own, batch_tokens) {
            let batch = Batch::of(shard, &units);
            let mut weigh =
                |losses: &[f32]| self.weights(&batch, losses, &self.train, all.len() as f64, &mut measured);
            step.forward_backward_weighed(model, &batch.packed, &mut weigh)?;
            measured.tokens += batch.packed.tokens.len();
        }
        Ok(measured)
    }

    /// What is measured on `units` of held-out documents.
    ///
    /// # Errors
    /// The model's; reference log-probabilities of other documents.
    pub fn evaluate(
        &self,
        model: &Transformer,
        step: &mut TrainStep,
        shard: &TokenShard,
        units: &[usize],
        batch_tokens: usize,
    ) -> Result<Measured> {
        self.check(&self.validation, shard)?;
        let (all, mut measured) = (units.len() as f64, Measured::default());
        for units in pack(shard, units, batch_tokens) {
            let batch = Batch::of(shard, &units);
            let losses = step.token_losses(model, &batch.packed)?;
            self.weights(&batch, &losses, &self.validation, all, &mut measured);
            measured.tokens += batch.packed.tokens.len();
        }
        Ok(measured)
    }

    fn check(&self, reference: &[f64], shard: &TokenShard) -> Result<()> {
        let (n, documents) = (reference.len(), shard.len());
        ensure!(
            n == documents,
            "{n} reference log-probabilities for the {documents} documents of {}",
            shard.path().display()
        );
        Ok(())
    }

    /// (N): the weight of each token's nll, that is d loss / d nll, where `all` units share the loss; the losses are measured.
    fn weights(
        &self,
        batch: &Batch,
        losses: &[f32],
        reference: &[f64],
        all: f64,
        measured: &mut Measured,
    ) -> Vec<f32> {
        let mut weights = vec![0.0; losses.len()];
        for unit in &batch.units {
            let replies = [0, 1].map(|i| batch.reply(&unit[i], losses, reference));
            let derivatives = self.unit(replies, all, measured);
            for (part, derivative) in unit.iter().zip(derivatives) {
                // The nll is the negative log-probability.
                let weight = (-derivative / all) as f32;
                let own = part.tokens.clone().filter(|&i| batch.packed.weights[i] != 0.0);
                own.for_each(|i| weights[i] = weight);
            }
        }
        weights
    }

    /// The derivatives of a unit's loss with respect to the log-probabilities of its replies.
    fn unit(&self, replies: [Reply; 2], all: f64, measured: &mut Measured) -> [f64; 2] {
        let PreferenceLoss::Dpo { loss, beta, smoothing } = self.objective;
        let (value, derivatives) = dpo(replies, loss, beta, smoothing);
        measured.loss += value / all;
        let [chosen, rejected] = replies.map(|r| beta * r.ratio());
        measured.compare([chosen, rejected]);
        measured.add(Value::ChosenLogp, replies[0].logp);
        measured.add(Value::RejectedLogp, replies[1].logp);
        derivatives
    }
}
