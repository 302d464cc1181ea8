//! The gradients of an optimizer step: of answers to learn, of preferences, or of a teacher; by one process, or by ranks that share its micro-batches.
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
        train_step::{DistilledSum, LossSum, PackedBatch, TrainStep},
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

/// What is measured of micro-batches, by numbers that are added up: in one process, or over ranks.
pub trait Sum: Default {
    /// As many, whatever was measured.
    fn numbers(&self) -> Vec<f64>;
    /// Of the numbers of one.
    fn of(numbers: &[f64]) -> Self;
    /// Adds another's.
    fn join(&mut self, other: Self);
    /// What must be finite.
    fn loss(&self) -> f64;
}

impl Sum for LossSum {
    fn numbers(&self) -> Vec<f64> {
        vec![self.weighted_nll, self.weight, self.tokens as f64, self.kept[0], self.kept[1]]
    }
    fn of(n: &[f64]) -> LossSum {
        LossSum { weighted_nll: n[0], weight: n[1], tokens: n[2] as usize, kept: [n[3], n[4]] }
    }
    fn join(&mut self, other: LossSum) {
        self.add(other);
    }
    fn loss(&self) -> f64 {
        self.weighted_nll
    }
}

impl Sum for DistilledSum {
    fn numbers(&self) -> Vec<f64> {
        let counts = [self.rows, self.limited, self.tokens].map(|n| n as f64);
        [&[self.divergence, self.clipped, self.nll, self.weight], &counts[..]].concat()
    }
    fn of(n: &[f64]) -> DistilledSum {
        let [rows, limited, tokens] = [n[4] as usize, n[5] as usize, n[6] as usize];
        DistilledSum { divergence: n[0], clipped: n[1], nll: n[2], weight: n[3], rows, limited, tokens }
    }
    fn join(&mut self, other: DistilledSum) {
        self.add(other);
    }
    fn loss(&self) -> f64 {
        self.clipped
    }
}

/// Whose micro-batches of a step are summed, and how.
#[derive(Clone, Copy)]
pub struct OverRanks<'a> {
    /// The processes that train together.
    pub team: &'a Team,
    /// Micro-batches are those of one process and are summed in one order; else each process cuts its share of the step.
    pub fixed_order: bool,
    /// The step, from 1, for messages.
    pub number: u64,
}

/// Measures a micro-batch, and adds it.
pub type Measure<'a, B, S> = &'a mut dyn FnMut(&Transformer, &mut TrainStep, &B, &mut S) -> Result<()>;

/// Adds a micro-batch's gradients, and what it measured.
pub type Run<'a, B, S> = &'a mut dyn FnMut(&mut Transformer, &mut TrainStep, &B, &mut S) -> Result<()>;

impl OverRanks<'_> {
    /// The units of a step that this process cuts into micro-batches.
    pub(super) fn own(&self, units: &[usize]) -> Vec<usize> {
        if self.fixed_order { units.to_vec() } else { self.team.world().share(units) }
    }

    /// Sets the gradients to the sum of those of all micro-batches, of which `batches` are those of [`OverRanks::own`]; what was measured of all.
    pub(super) fn gradients<B, S: Sum>(
        &self,
        model: &mut Transformer,
        step: &mut TrainStep,
        batches: &[B],
        run: Run<B, S>,
    ) -> Result<S> {
        let how = (self.team, self.number);
        match self.fixed_order {
            true => in_fixed_order(model, step, how, batches, run),
            false => all_reduced(model, step, how, batches, run),
        }
    }

    /// What is measured of all micro-batches, without gradients.
    pub(super) fn sums<B, S: Sum>(
        &self,
        model: &Transformer,
        step: &mut TrainStep,
        batches: &[B],
        run: Measure<B, S>,
    ) -> Result<S> {
        if self.fixed_order {
            return in_rounds(model, step, self.team, batches, run);
        }
        let mut own = S::default();
        batches.iter().try_for_each(|batch| run(model, step, batch, &mut own))?;
        Ok(summed(gathered(self.team, own, self.number)?))
    }
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
    let number = state.step + 1;
    step.draw(settings.seed, number);
    let plain = distillation.is_none() && settings.preference.is_none();
    let alone = "sentences are aligned beside answers alone, by one process";
    ensure!(checks.alignment.is_none() || (plain && team.world().size() == 1), alone);
    let over = OverRanks { team, fixed_order: settings.fixed_order, number };
    if let Some(distillation) = distillation {
        return distillation.step(model, step, shard, documents, (settings, over));
    }
    if let Some(preference) = &settings.preference {
        let measured = preference.step(model, step, shard, documents, (settings.batch_tokens, over))?;
        return Ok(StepLoss {
            loss: whole(measured.loss, measured.tokens),
            values: measured.named(false),
            rewards: measured.rewards(),
            answered: None,
        });
    }
    let (batches, weight) = info_span!("data").in_scope(|| {
        let how = (settings.batch_tokens, settings.per_sentence);
        if settings.fixed_order {
            let batches = pack(shard, documents, settings.batch_tokens);
            let batch =
                |documents: &Vec<usize>| packed(shard, documents, settings.per_sentence, state.guard.weight);
            let batches: Vec<PackedBatch> = batches.iter().map(batch).collect();
            let weight = step_weight(World::default(), &batches, |_| vec![]);
            return (batches, weight);
        }
        let of = |world| step_batches(world, shard, documents, how, state.guard.weight);
        let batches = of(team.world());
        // Gradient accumulation and several processes equal one large batch: everything is divided by the weight of the whole step.
        let weight = step_weight(team.world(), &batches, of);
        (batches, weight)
    });
    let scale = scale_of(weight, number)?;
    let loss = over.gradients(model, step, &batches, &mut |model, step, batch, sum: &mut LossSum| {
        sum.add(step.forward_backward(model, batch, scale)?);
        Ok(())
    })?;
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

/// Each rank's own micro-batches; the sum over the ranks begins in the last one. A rank without any adds zeros, and one with fewer than another gathers the
/// parts of its weights with it.
fn all_reduced<B, S: Sum>(
    model: &mut Transformer,
    step: &mut TrainStep,
    (team, number): (&Team, u64),
    batches: &[B],
    run: Run<B, S>,
) -> Result<S> {
    step.zero_grads()?;
    let mut rounds = batches.len();
    if model.is_in_parts() {
        let counts = team.gather(&[rounds as f64])?;
        rounds = counts.iter().map(|count| count[0] as usize).max().unwrap_or(rounds);
    }
    let mut loss = S::default();
    for i in 0..rounds {
        if i + 1 == rounds {
            step.last_pass();
        }
        match batches.get(i) {
            Some(batch) => run(model, step, batch, &mut loss)?,
            None => step.idle(model, true)?,
        }
    }
    step.finish_sums()?;
    Ok(summed(gathered(team, loss, number)?))
}

/// The micro-batches of the whole step in rounds, one a rank; each gradient is computed from zero, and they are added in the order of the micro-batches.
fn in_fixed_order<B, S: Sum>(
    model: &mut Transformer,
    step: &mut TrainStep,
    (team, number): (&Team, u64),
    batches: &[B],
    run: Run<B, S>,
) -> Result<S> {
    let size = team.world().size();
    let mut gradients = step.gradients()?;
    let zeros = |t: &Tensor| Tensor::zeros_on(&t.device(), "sum of gradients", t.dtype(), t.shape());
    let mut sums = gradients.iter().map(zeros).collect::<Result<Vec<_>>>()?;
    let mut losses = vec![];
    for round in batches.chunks(size) {
        step.zero_grads()?;
        let mut own = S::default();
        match round.get(team.world().rank()) {
            Some(batch) => run(model, step, batch, &mut own)?,
            None => step.idle(model, true)?,
        }
        losses.extend(gathered(team, own, number)?.into_iter().take(round.len()));
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

/// What is measured of all of `batches`, each of which is one rank's; the sum has one order, whatever the number of ranks.
pub(super) fn in_rounds<B, S: Sum>(
    model: &Transformer,
    step: &mut TrainStep,
    team: &Team,
    batches: &[B],
    run: Measure<B, S>,
) -> Result<S> {
    let mut sum = S::default();
    for round in batches.chunks(team.world().size()) {
        let mut own = S::default();
        match round.get(team.world().rank()) {
            Some(batch) => run(model, step, batch, &mut own)?,
            None => step.idle(model, false)?,
        }
        all_of(team, &own)?.into_iter().take(round.len()).for_each(|one| sum.join(one));
    }
    Ok(sum)
}

/// What was measured on all ranks, in their order; an error that names the rank whose loss is not finite.
fn gathered<S: Sum>(team: &Team, own: S, number: u64) -> Result<Vec<S>> {
    let all: Vec<S> = all_of(team, &own)?;
    if team.world().size() > 1
        && let Some(rank) = all.iter().position(|sum| !sum.loss().is_finite())
    {
        bail!("step {number}: the loss is {}{}", all[rank].loss(), team.named(rank));
    }
    Ok(all)
}

/// What was measured on all ranks, in their order.
fn all_of<S: Sum>(team: &Team, own: &S) -> Result<Vec<S>> {
    Ok(team.gather(&own.numbers())?.iter().map(|numbers| S::of(numbers)).collect())
}

/// The sum, in their order.
fn summed<S: Sum>(all: Vec<S>) -> S {
    let mut sum = S::default();
    all.into_iter().for_each(|one| sum.join(one));
    sum
}

/// A mean over the whole step.
pub(super) fn whole(loss: f64, tokens: usize) -> LossSum {
    LossSum { weighted_nll: loss, weight: 1.0, tokens, kept: [0.0; 2] }
}
