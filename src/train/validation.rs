//! The loss on documents that are not trained on, and which of them a run can take.
use anyhow::{Result, ensure};

use super::{
    batches::packed,
    distillation::Distillation,
    gradients::in_rounds,
    preference::Rewards,
    run_types::TrainEvent,
    trainer::{Checks, TrainerSettings},
};
use crate::{
    data::{loader::pack, token_shard::TokenShard},
    distributed::team::Team,
    models::transformer::{
        train_step::{LossSum, TrainStep},
        weights::Transformer,
    },
};

/// The documents of a shard that a batch has room for.
pub(super) fn fitting(shard: &TokenShard, batch_tokens: usize) -> Vec<usize> {
    (0..shard.units()).filter(|&d| shard.unit_len(d) <= batch_tokens).collect()
}

impl Checks<'_> {
    /// Leaves out what is empty; tells how many documents are longer than a batch.
    pub(super) fn fit(&mut self, batch_tokens: usize, on_event: &mut dyn FnMut(TrainEvent)) -> Result<()> {
        self.validation = self.validation.filter(|v| !v.is_empty());
        self.source = self.source.filter(|v| !v.is_empty());
        for (name, shard) in [("validation", self.validation), ("held-out source", self.source)] {
            let Some(shard) = shard else { continue };
            if let Some(event) = within(name, shard, batch_tokens)? {
                on_event(event);
            }
        }
        Ok(())
    }
}

/// What is to be said before training of documents that are too long for a batch and are left out of every evaluation; an error if none is left.
fn within(name: &'static str, shard: &TokenShard, batch_tokens: usize) -> Result<Option<TrainEvent>> {
    let (all, fit) = (shard.units(), fitting(shard, batch_tokens).len());
    let longest = (0..all).map(|d| shard.unit_len(d)).max().unwrap_or(0);
    ensure!(
        fit > 0 || all == 0,
        "{}: every one of the {all} {name} documents is longer than batch-tokens = {batch_tokens} (the longest has {longest} tokens): raise it, or lower \
         max-length when packing",
        shard.path().display()
    );
    Ok((fit < all).then_some(TrainEvent::LeftOut { name, documents: all - fit, of: all, longest }))
}

/// Tokens that the largest batch of any of `shards` has, with `batch_tokens` at most.
pub fn largest_batch<'a>(shards: impl IntoIterator<Item = &'a TokenShard>, batch_tokens: usize) -> usize {
    shards.into_iter().map(|shard| shard.tokens().min(batch_tokens)).max().unwrap_or(0)
}

/// What decides which parameters are the best, and what the log says of it.
pub(super) struct Validated {
    pub loss: f64,
    pub values: Vec<(&'static str, f64)>,
    pub rewards: Option<Rewards>,
}

/// The loss of what is trained on, over all held-out documents that a batch has room for.
pub(super) fn validate(
    model: &Transformer,
    step: &mut TrainStep,
    shard: &TokenShard,
    (settings, team): (&TrainerSettings, &Team),
    distillation: Option<&Distillation>,
) -> Result<Validated> {
    if let Some(distillation) = distillation {
        return distillation.evaluate(model, step, shard, (settings, team));
    }
    let Some(preference) = &settings.preference else {
        let loss = loss_over_ranks(model, step, shard, (settings, team))?;
        return Ok(Validated { loss, values: vec![("eval/loss", loss)], rewards: None });
    };
    let units = fitting(shard, settings.batch_tokens);
    let measured = preference.evaluate(model, step, shard, &units, (settings.batch_tokens, team))?;
    let values = [vec![("eval/loss", measured.loss)], measured.named(true)].concat();
    Ok(Validated { loss: measured.loss, values, rewards: measured.rewards() })
}

/// The mean loss over all documents of a shard that a batch has room for.
pub fn validation_loss(
    model: &Transformer,
    step: &mut TrainStep,
    shard: &TokenShard,
    settings: &TrainerSettings,
) -> Result<f64> {
    loss_over_ranks(model, step, shard, (settings, &Team::default()))
}

/// The same by all ranks together, which share the batches.
pub(super) fn loss_over_ranks(
    model: &Transformer,
    step: &mut TrainStep,
    shard: &TokenShard,
    (settings, team): (&TrainerSettings, &Team),
) -> Result<f64> {
    let documents = fitting(shard, settings.batch_tokens);
    let batches = pack(shard, &documents, settings.batch_tokens);
    let loss = in_rounds(model, step, team, &batches, &mut |model, step, batch, sum: &mut LossSum| {
        sum.add(step.forward(model, &packed(shard, batch, settings.per_sentence, 1.0))?);
        Ok(())
    })?;
    Ok(loss.mean())
}
