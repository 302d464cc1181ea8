//! The gradients of an optimizer step: of answers to learn, of preferences, or of a teacher.
use anyhow::{Result, ensure};
use tracing::info_span;

use super::{
    checkpoint::State,
    distillation::Distillation,
    on_policy::Answered,
    preference::Rewards,
    run_types::TrainerSettings,
    trainer::{step_batches, step_weight},
    world::World,
};
use crate::{
    data::token_shard::TokenShard,
    models::transformer::{
        train_step::{LossSum, TrainStep},
        weights::Transformer,
    },
};

/// The loss of a step, and what else the log says of it.
pub(super) struct StepLoss {
    pub loss: LossSum,
    pub values: Vec<(&'static str, f64)>,
    pub rewards: Option<Rewards>,
    pub answered: Option<Answered>,
}

/// Sets the gradients to those of a step's documents (units of a shard of preferences), divided by the weight of the whole step.
pub(super) fn of_step(
    model: &mut Transformer,
    step: &mut TrainStep,
    shard: &TokenShard,
    documents: &[usize],
    (world, settings, state): (World, &TrainerSettings, &State),
    distillation: Option<&Distillation>,
) -> Result<StepLoss> {
    step.draw(settings.seed, state.step + 1);
    if let Some(distillation) = distillation {
        return distillation.step(model, step, shard, (documents, state.step + 1), settings);
    }
    if let Some(preference) = &settings.preference {
        step.zero_grads()?;
        let units = (documents, &world.share(documents)[..]);
        let measured = preference.step(model, step, shard, units, settings.batch_tokens)?;
        return Ok(StepLoss {
            loss: whole(measured.loss, measured.tokens),
            values: measured.named(false),
            rewards: measured.rewards(),
            answered: None,
        });
    }
    let data = info_span!("data").entered();
    let how = (settings.batch_tokens, settings.per_sentence);
    let of = |world| step_batches(world, shard, documents, how, state.guard.weight);
    let batches = of(world);
    // Gradient accumulation and several processes equal one large batch: everything is divided by the weight of the whole step.
    let weight = step_weight(world, &batches, of);
    drop(data);
    ensure!(weight > 0.0, "step {}: no token of its documents has a weight", state.step + 1);
    step.zero_grads()?;
    let mut loss = LossSum::default();
    for batch in &batches {
        loss.add(step.forward_backward(model, batch, (1.0 / weight) as f32)?);
    }
    let kept = loss.kept_mean().map(|kl| ("train/keep_source_kl", kl));
    Ok(StepLoss { loss, values: kept.into_iter().collect(), rewards: None, answered: None })
}

/// A mean over the whole step.
pub(super) fn whole(loss: f64, tokens: usize) -> LossSum {
    LossSum { weighted_nll: loss, weight: 1.0, tokens, kept: [0.0; 2] }
}
