//! The loss on documents that are not trained on, and which of them a run can take.
use anyhow::{Result, ensure};

use super::{
    run_types::TrainEvent,
    trainer::{TrainerSettings, packed},
};
use crate::{
    data::{loader::pack, token_shard::TokenShard},
    models::{
        transformer::train_step::{LossSum, TrainStep},
        transformer::weights::Transformer,
    },
};

/// The documents of a shard that a batch has room for.
fn fitting(shard: &TokenShard, batch_tokens: usize) -> Vec<usize> {
    (0..shard.len()).filter(|&d| shard.document_len(d) <= batch_tokens).collect()
}

/// What is to be said before training of documents that are too long for a batch and are left out of every evaluation; an error if none is left.
pub(super) fn within(
    name: &'static str,
    shard: &TokenShard,
    batch_tokens: usize,
) -> Result<Option<TrainEvent>> {
    let (all, fit) = (shard.len(), fitting(shard, batch_tokens).len());
    let longest = (0..all).map(|d| shard.document_len(d)).max().unwrap_or(0);
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

/// The mean loss over all documents of a shard that a batch has room for.
pub fn validation_loss(
    model: &Transformer,
    step: &mut TrainStep,
    shard: &TokenShard,
    settings: &TrainerSettings,
) -> Result<f64> {
    let documents = fitting(shard, settings.batch_tokens);
    let mut sum = LossSum::default();
    for batch in pack(shard, &documents, settings.batch_tokens) {
        sum.add(step.forward(model, &packed(shard, &batch, settings.per_sentence, 1.0))?);
    }
    Ok(sum.mean())
}
