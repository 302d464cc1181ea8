//! Learning from the model without its adapters, which is shown more: on its own answers, or on given ones.
use anyhow::{Result, ensure};

use super::{
    gradients::{OverRanks, StepLoss, whole},
    on_policy::OnPolicy,
    run_types::TrainerSettings,
    stored::{self, Stored},
    validation::{Validated, fitting},
};
use crate::{
    data::token_shard::TokenShard,
    distributed::team::Team,
    models::transformer::{train_step::TrainStep, weights::Transformer},
};

/// Where the answers come from.
pub enum Distillation<'a> {
    /// The model draws them while it is trained.
    OnPolicy(OnPolicy<'a>),
    /// They are given, and what the teacher says of them is stored.
    Stored(Stored),
}

impl Distillation<'_> {
    /// Sets the gradients to those of the loss of `units`.
    ///
    /// # Errors
    /// The model's; what is stored of other documents.
    pub(super) fn step(
        &self,
        model: &mut Transformer,
        step: &mut TrainStep,
        shard: &TokenShard,
        units: &[usize],
        how: (&TrainerSettings, OverRanks),
    ) -> Result<StepLoss> {
        match self {
            Distillation::OnPolicy(on_policy) => {
                let m = on_policy.step(model, step, shard, units, how)?;
                let (loss, answered) = (whole(m.loss(), m.tokens()), m.answered());
                Ok(StepLoss { loss, values: m.named(false), rewards: None, answered })
            }
            Distillation::Stored(own) => {
                let sum = own.step(model, step, shard, units, how)?;
                let loss = whole(sum.clipped / sum.weight, sum.tokens);
                Ok(StepLoss { loss, values: stored::named(&sum, false), rewards: None, answered: None })
            }
        }
    }

    /// The loss on held-out documents.
    ///
    /// # Errors
    /// As [`Distillation::step`].
    pub(super) fn evaluate(
        &self,
        model: &Transformer,
        step: &mut TrainStep,
        shard: &TokenShard,
        (settings, team): (&TrainerSettings, &Team),
    ) -> Result<Validated> {
        let (loss, named) = match self {
            Distillation::OnPolicy(on_policy) => {
                let measured = on_policy.evaluate(model, step, shard, (settings, team))?;
                (measured.loss(), measured.named(true))
            }
            Distillation::Stored(own) => {
                let units = fitting(shard, settings.batch_tokens);
                let sum = own.evaluate(model, step, shard, &units, (settings, team))?;
                let path = shard.path().display();
                ensure!(sum.weight > 0.0, "{path}: the teacher has said nothing of its documents");
                (sum.clipped / sum.weight, stored::named(&sum, true))
            }
        };
        Ok(Validated { loss, values: [vec![("eval/loss", loss)], named].concat(), rewards: None })
    }
}
