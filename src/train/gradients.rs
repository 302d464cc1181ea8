//! The gradients of an optimizer step: of answers to learn, of preferences, or of a teacher.
use anyhow::{Result, bail, ensure};
use tracing::info_span;

use super::{
    batches::{packed, step_batches, step_weight},
    checkpoint::State,
    on_policy::Answered,
    preference::Rewards,
    run_types::TrainerSettings,
    trainer::Checks,
};
use crate::{
    data::{loader::pack, token_shard::TokenShard},
    distributed::{
        team::{BUCKET, Team},
        world::World,
    },
    models::transformer::{
        train_step::{LossSum, PackedBatch, TrainStep},
        weights::Transformer,
    },
    ops::rows,
    tensor::Tensor,
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
    (team, settings, state): (&Team, &TrainerSettings, &State),
    checks: &Checks,
) -> Result<StepLoss> {
    let distillation = checks.distillation.as_ref();
    step.draw(settings.seed, state.step + 1);
    let world = team.world();
    let plain = distillation.is_none() && settings.preference.is_none();
    ensure!(
        world.size() == 1 || (plain && checks.alignment.is_none()),
        "answers alone are learnt by several ranks"
    );
    ensure!(plain || checks.alignment.is_none(), "sentences are aligned beside answers alone");
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
    let number = state.step + 1;
    let how = (settings.batch_tokens, settings.per_sentence);
    let loss = if settings.fixed_order {
        let batches = pack(shard, documents, settings.batch_tokens);
        let batch =
            |documents: &Vec<usize>| packed(shard, documents, settings.per_sentence, state.guard.weight);
        let batches: Vec<PackedBatch> = info_span!("data").in_scope(|| batches.iter().map(batch).collect());
        let scale = scale_of(step_weight(World::default(), &batches, |_| vec![]), number)?;
        in_fixed_order(model, step, team, &batches, (scale, number))?
    } else {
        let data = info_span!("data").entered();
        let of = |world| step_batches(world, shard, documents, how, state.guard.weight);
        let batches = of(world);
        // Gradient accumulation and several processes equal one large batch: everything is divided by the weight of the whole step.
        let scale = scale_of(step_weight(world, &batches, of), number)?;
        drop(data);
        all_reduced(model, step, team, &batches, (scale, number))?
    };
    let kept = loss.kept_mean().map(|kl| ("train/keep_source_kl", kl));
    let mut values: Vec<_> = kept.into_iter().collect();
    if let Some(alignment) = checks.alignment {
        values.extend(alignment.step(model, step, (settings.seed, state.step), settings.batch_tokens)?);
    }
    Ok(StepLoss { loss, values, rewards: None, answered: None })
}

/// What the loss of a token is multiplied with, for a step of this weight.
fn scale_of(weight: f64, number: u64) -> Result<f32> {
    ensure!(weight > 0.0, "step {number}: no token of its documents has a weight");
    Ok((1.0 / weight) as f32)
}

/// Each rank's own micro-batches, then the sum over the ranks. A rank without any adds zeros.
fn all_reduced(
    model: &mut Transformer,
    step: &mut TrainStep,
    team: &Team,
    batches: &[PackedBatch],
    (scale, number): (f32, u64),
) -> Result<LossSum> {
    step.zero_grads()?;
    let mut loss = LossSum::default();
    for batch in batches {
        loss.add(step.forward_backward(model, batch, scale)?);
    }
    let losses = gathered(team, loss, number)?;
    if team.world().size() > 1 {
        step.gradients()?.iter_mut().try_for_each(|t| team.all_reduce(t))?;
    }
    Ok(summed(losses))
}

/// The micro-batches of the whole step in rounds, one a rank; each gradient is computed from zero, and they are added in the order of the micro-batches.
fn in_fixed_order(
    model: &mut Transformer,
    step: &mut TrainStep,
    team: &Team,
    batches: &[PackedBatch],
    (scale, number): (f32, u64),
) -> Result<LossSum> {
    let size = team.world().size();
    let mut gradients = step.gradients()?;
    let zeros = |t: &Tensor| Tensor::zeros_on(&t.device(), "sum of gradients", t.dtype(), t.shape());
    let mut sums = gradients.iter().map(zeros).collect::<Result<Vec<_>>>()?;
    let mut losses = vec![];
    for round in batches.chunks(size) {
        step.zero_grads()?;
        let own = round.get(team.world().rank());
        let loss = own.map(|batch| step.forward_backward(model, batch, scale)).transpose()?;
        losses.extend(gathered(team, loss.unwrap_or_default(), number)?.into_iter().take(round.len()));
        for (sum, gradient) in sums.iter_mut().zip(&gradients) {
            for begin in (0..gradient.len()).step_by(BUCKET) {
                let range = begin..(begin + BUCKET).min(gradient.len());
                let mut sum = sum.rows(range.clone())?;
                let all = team.all_gather(&gradient.rows(range)?)?;
                all[..round.len()].iter().try_for_each(|one| rows::add(&mut sum, one))?;
            }
        }
    }
    gradients.iter_mut().zip(&sums).try_for_each(|(gradient, sum)| rows::copy(gradient, sum))?;
    Ok(summed(losses))
}

/// The losses of all ranks, in their order; an error that names the rank whose loss is not finite.
fn gathered(team: &Team, own: LossSum, number: u64) -> Result<Vec<LossSum>> {
    let all = gathered_losses(team, Some(own))?;
    if team.world().size() > 1
        && let Some(rank) = all.iter().position(|loss| !loss.weighted_nll.is_finite())
    {
        bail!("step {number}: the loss is {}{}", all[rank].weighted_nll, team.named(rank));
    }
    Ok(all)
}

/// The losses of all ranks, in their order; a rank may have none.
pub(super) fn gathered_losses(team: &Team, own: Option<LossSum>) -> Result<Vec<LossSum>> {
    let LossSum { weighted_nll, weight, tokens, kept } = own.unwrap_or_default();
    let of =
        |n: Vec<f64>| LossSum { weighted_nll: n[0], weight: n[1], tokens: n[2] as usize, kept: [n[3], n[4]] };
    let all = team.gather(&[weighted_nll, weight, tokens as f64, kept[0], kept[1]])?;
    Ok(all.into_iter().map(of).collect())
}

/// The sum, in their order.
pub(super) fn summed(losses: Vec<LossSum>) -> LossSum {
    let mut sum = LossSum::default();
    losses.into_iter().for_each(|loss| sum.add(loss));
    sum
}

/// A mean over the whole step.
pub(super) fn whole(loss: f64, tokens: usize) -> LossSum {
    LossSum { weighted_nll: loss, weight: 1.0, tokens, kept: [0.0; 2] }
}
