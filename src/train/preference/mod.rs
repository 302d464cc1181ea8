//! Preference training of packed rows: direct preference optimization (DPO, Rafailov et al. 2023), odds ratios (ORPO, Hong et al. 2024), single judgements (KTO,
//! Ethayarajh et al. 2024), as TRL computes them.
//!
//! A unit of documents (a chosen and a rejected reply) lies in one micro-batch. One forward pass gives the log-probability of each reply; the loss couples
//! them, and its derivative with respect to a reply's log-probability is the weight of the reply's tokens in the backward pass that every training has:
//! d loss / d logits of a token = weight (softmax - onehot). What is divided by is counted over the whole step, whatever its micro-batches.
mod loss;
mod measured;

use std::{fmt, ops::Range};

use anyhow::{Result, ensure};

pub use loss::PairLoss;
use loss::{Reply, dpo, kto, orpo};
use measured::Value;
pub use measured::{Measured, Rewards};

use super::gradients::{OverRanks, Sum, in_rounds};
use crate::{
    data::{loader::pack, questions::preferences::is_desirable, token_shard::TokenShard},
    distributed::team::Team,
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
    /// The chosen answers, prompts included, and the odds ratio of the replies.
    Orpo {
        /// The weight of the odds (the paper's lambda).
        beta: f64,
    },
    /// Single replies. The KL term is estimated on prompts with the reply to another: the second document of each unit.
    Kto {
        /// How closely the reference is kept to.
        beta: f64,
        /// The weight of desirable replies.
        desirable: f64,
        /// That of the others.
        undesirable: f64,
    },
}

impl fmt::Display for PreferenceLoss {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            PreferenceLoss::Dpo { loss, beta, smoothing } => {
                let loss = format!("{loss:?}").to_lowercase();
                write!(f, "beta {beta}, loss {loss}, label smoothing {smoothing}")
            }
            PreferenceLoss::Orpo { beta } => write!(f, "beta {beta}"),
            PreferenceLoss::Kto { beta, desirable, undesirable } => {
                write!(f, "beta {beta}, weights {desirable} (desirable) and {undesirable} (undesirable)")
            }
        }
    }
}

/// An objective with what it compares with.
#[derive(Clone, Debug, PartialEq)]
pub struct Preference {
    /// What is learnt.
    pub objective: PreferenceLoss,
    /// Of each training document: its log-probability under the reference model; empty where there is none.
    pub train: Vec<f64>,
    /// The same of each validation document; NaN where it is too long to be evaluated.
    pub validation: Vec<f64>,
}

/// Some units as a batch.
struct Batch {
    packed: PackedBatch,
    /// (N): whether the target of a token belongs to a reply.
    replies: Vec<bool>,
    units: Vec<Vec<Part>>,
}

/// A document in a batch.
struct Part {
    /// Its number in the shard.
    document: usize,
    tokens: Range<usize>,
}

impl Part {
    /// Every token that has a next one.
    fn learnt(&self) -> Range<usize> {
        let Range { start, end } = self.tokens;
        start..end.saturating_sub(1).max(start)
    }
}

impl Batch {
    /// The documents `of` each unit, counted from 0. `whole`: of the first one the prompt has losses, too.
    fn of(shard: &TokenShard, units: &[usize], of: Range<usize>, whole: bool) -> Batch {
        let mut packed = PackedBatch::default();
        let mut replies = vec![];
        let mut push = |document: usize, whole: bool| {
            let from = packed.tokens.len();
            let d = shard.document(document);
            packed.push_as(document as u32, &d.tokens, &d.weights);
            replies.extend(packed.weights[from..].iter().map(|w| *w != 0.0));
            let part = Part { document, tokens: from..packed.tokens.len() };
            if whole {
                packed.weights[part.learnt()].fill(1.0);
            }
            part
        };
        let unit = |&u: &usize| {
            let first = shard.unit(u).start;
            of.clone().map(|i| push(first + i, whole && i == 0)).collect()
        };
        let units = units.iter().map(unit).collect();
        Batch { packed, replies, units }
    }

    /// The tokens of a document's reply.
    fn reply_tokens(&self, part: &Part) -> impl Iterator<Item = usize> {
        part.tokens.clone().filter(|&i| self.replies[i])
    }

    /// The log-probability of a reply and its tokens, by the losses of the batch.
    fn reply(&self, part: &Part, losses: &[f32], reference: &[f64]) -> Reply {
        let (mut logp, mut tokens) = (0.0, 0.0);
        for i in self.reply_tokens(part) {
            logp -= losses[i] as f64;
            tokens += 1.0;
        }
        Reply { logp, reference: reference.get(part.document).copied().unwrap_or(0.0), tokens }
    }
}

/// What a whole step, or a whole evaluation, has in common.
struct Whole<'a> {
    shard: &'a TokenShard,
    reference: &'a [f64],
    /// Units that share the loss.
    units: f64,
    /// Tokens of the first documents that have a loss, prompts included.
    tokens: f64,
    /// How far the model has moved from the reference.
    kl: f64,
}

impl Whole<'_> {
    /// Adds how far the second documents of `units` have moved.
    fn moved(
        &self,
        model: &Transformer,
        step: &mut TrainStep,
        units: &[usize],
        sum: &mut Moved,
    ) -> Result<()> {
        let batch = Batch::of(self.shard, units, 1..2, false);
        let losses = step.token_losses(model, &batch.packed)?;
        let ratio = |unit: &Vec<Part>| batch.reply(&unit[0], &losses, self.reference).ratio();
        sum.join(Moved { ratios: batch.units.iter().map(ratio).sum(), tokens: batch.packed.tokens.len() });
        Ok(())
    }
}

/// How far replies to other prompts have moved from the reference.
#[derive(Clone, Copy, Default)]
struct Moved {
    /// Σ of their log-probability ratios.
    ratios: f64,
    /// Tokens that were run.
    tokens: usize,
}

impl Moved {
    /// The estimate of the KL term, of so many units.
    fn kl(self, units: f64) -> f64 {
        (self.ratios / units).max(0.0)
    }
}

impl Sum for Moved {
    fn numbers(&self) -> Vec<f64> {
        vec![self.ratios, self.tokens as f64]
    }
    fn of(n: &[f64]) -> Moved {
        Moved { ratios: n[0], tokens: n[1] as usize }
    }
    fn join(&mut self, other: Moved) {
        self.ratios += other.ratios;
        self.tokens += other.tokens;
    }
    fn loss(&self) -> f64 {
        self.ratios
    }
}

impl Preference {
    /// Sets the gradients to those of the mean loss over the units of a step; what is measured of all of them.
    ///
    /// # Errors
    /// The model's; reference log-probabilities of other documents.
    pub fn step(
        &self,
        model: &mut Transformer,
        step: &mut TrainStep,
        shard: &TokenShard,
        units: &[usize],
        (batch_tokens, over): (usize, OverRanks),
    ) -> Result<Measured> {
        let batches = pack(shard, &over.own(units), batch_tokens);
        let mut whole = self.whole(shard, &self.train, units)?;
        let moved = match self.moves() {
            true => over.sums(model, step, &batches, &mut |model, step, units, sum| {
                whole.moved(model, step, units, sum)
            })?,
            false => Moved::default(),
        };
        whole.kl = moved.kl(whole.units);
        let measured =
            over.gradients(model, step, &batches, &mut |model, step, units, measured: &mut Measured| {
                let batch = self.batch(shard, units);
                let mut weigh = |losses: &[f32]| self.weights(&batch, losses, &whole, measured);
                step.forward_backward_weighed(model, &batch.packed, &mut weigh)?;
                measured.tokens += batch.packed.tokens.len();
                Ok(())
            })?;
        Ok(self.with(measured, moved, &whole))
    }

    /// What is measured on `units` of held-out documents, whose micro-batches the ranks share.
    ///
    /// # Errors
    /// The model's; reference log-probabilities of other documents.
    pub(super) fn evaluate(
        &self,
        model: &Transformer,
        step: &mut TrainStep,
        shard: &TokenShard,
        units: &[usize],
        (batch_tokens, team): (usize, &Team),
    ) -> Result<Measured> {
        let batches = pack(shard, units, batch_tokens);
        let mut whole = self.whole(shard, &self.validation, units)?;
        let moved = match self.moves() {
            true => in_rounds(model, step, team, &batches, &mut |model, step, units, sum| {
                whole.moved(model, step, units, sum)
            })?,
            false => Moved::default(),
        };
        whole.kl = moved.kl(whole.units);
        let measured =
            in_rounds(model, step, team, &batches, &mut |model, step, units, measured: &mut Measured| {
                let batch = self.batch(shard, units);
                let losses = step.token_losses(model, &batch.packed)?;
                self.weights(&batch, &losses, &whole, measured);
                measured.tokens += batch.packed.tokens.len();
                Ok(())
            })?;
        Ok(self.with(measured, moved, &whole))
    }

    /// Whether the loss needs how far the model has moved.
    fn moves(&self) -> bool {
        matches!(self.objective, PreferenceLoss::Kto { .. })
    }

    /// With what was measured of the whole.
    fn with(&self, mut measured: Measured, moved: Moved, whole: &Whole) -> Measured {
        measured.tokens += moved.tokens;
        if self.moves() {
            measured.add(Value::Kl, whole.kl);
        }
        measured
    }

    fn batch(&self, shard: &TokenShard, units: &[usize]) -> Batch {
        match self.objective {
            PreferenceLoss::Dpo { .. } => Batch::of(shard, units, 0..2, false),
            PreferenceLoss::Orpo { .. } => Batch::of(shard, units, 0..2, true),
            PreferenceLoss::Kto { .. } => Batch::of(shard, units, 0..1, false),
        }
    }

    fn whole<'a>(&self, shard: &'a TokenShard, reference: &'a [f64], units: &[usize]) -> Result<Whole<'a>> {
        let (n, documents, path) = (reference.len(), shard.len(), shard.path().display());
        let is_apart = matches!(self.objective, PreferenceLoss::Orpo { .. });
        ensure!(
            is_apart || n == documents,
            "{n} reference log-probabilities for the {documents} documents of {path}"
        );
        let learnt = |&u: &usize| shard.document_len(shard.unit(u).start).saturating_sub(1);
        let tokens = units.iter().map(learnt).sum::<usize>() as f64;
        Ok(Whole { shard, reference, units: units.len() as f64, tokens, kl: 0.0 })
    }

    /// (N): the weight of each token's nll, that is d loss / d nll; the losses are measured.
    fn weights(&self, batch: &Batch, losses: &[f32], whole: &Whole, measured: &mut Measured) -> Vec<f32> {
        let mut weights = vec![0.0f64; losses.len()];
        for unit in &batch.units {
            let replies: Vec<Reply> =
                unit.iter().map(|part| batch.reply(part, losses, whole.reference)).collect();
            let (loss, derivatives) = self.unit(&replies, &unit[0], whole, measured);
            measured.loss += loss / whole.units;
            for (part, derivative) in unit.iter().zip(derivatives) {
                // The nll is the negative log-probability.
                batch.reply_tokens(part).for_each(|i| weights[i] -= derivative / whole.units);
            }
            if let PreferenceLoss::Orpo { .. } = self.objective {
                let learnt = unit[0].learnt();
                let nll: f64 = losses[learnt.clone()].iter().map(|x| f64::from(*x)).sum();
                measured.loss += nll / whole.tokens;
                measured.add_many(Value::Nll, nll, learnt.len() as f64);
                weights[learnt].iter_mut().for_each(|w| *w += 1.0 / whole.tokens);
            }
        }
        weights.into_iter().map(|w| w as f32).collect()
    }

    /// A unit's loss and its derivatives with respect to the log-probabilities of its replies, of which the first is `part`.
    fn unit(
        &self,
        replies: &[Reply],
        part: &Part,
        whole: &Whole,
        measured: &mut Measured,
    ) -> (f64, Vec<f64>) {
        let pair = [replies[0], replies[replies.len() - 1]];
        match self.objective {
            PreferenceLoss::Dpo { loss, beta, smoothing } => {
                let (loss, derivatives) = dpo(pair, loss, beta, smoothing);
                measured.compare(pair.map(|r| beta * r.ratio()), pair.map(|r| r.logp));
                (loss, derivatives.to_vec())
            }
            PreferenceLoss::Orpo { beta } => {
                let (loss, derivatives, odds) = orpo(pair, beta);
                let means = pair.map(|r| r.logp / r.tokens.max(1.0));
                measured.compare(means.map(|x| beta * x), means);
                measured.add(Value::LogOddsRatio, -loss / beta);
                measured.add(Value::LogOdds, odds);
                (loss, derivatives.to_vec())
            }
            PreferenceLoss::Kto { beta, desirable, undesirable } => {
                let good = is_desirable(&whole.shard.note(part.document));
                let (loss, derivative) = kto(replies[0], good, whole.kl, beta);
                measured.judge(good, beta * replies[0].ratio(), replies[0].logp);
                let weight = if good { desirable } else { undesirable };
                (weight * loss, vec![weight * derivative])
            }
        }
    }
}
