//! The training loop: one for adapters, full fine-tuning and training from scratch.
//!
//! Interrupted or killed at any moment, the same call goes on from the newest checkpoint and ends with the same bits: documents of a
//! step are a function of (seed, step), sums have a fixed order, and the logs are cut back to the checkpoint.
mod source;

use std::{path::Path, rc::Rc, time::Instant};

use crate::error::Error;
use anyhow::{Result, bail, ensure};
use tracing::info_span;
use xxhash_rust::xxh3::Xxh3;

pub use super::run_types::{CHANGEABLE, RANKS, TrainEvent, TrainOutcome, TrainerSettings};
use super::validation::{Validated, validate};
use super::{
    checkpoint::{self, State},
    distillation::Distillation,
    early_stopping::Observed,
    gradients::{self, StepLoss},
    held_out_text::HeldOutText,
    log::Log,
    middle_layer::MiddleLayer,
    optimizer::{Optimizer, first_not_finite},
    resume,
    schedule::Schedule,
    shares::{Shard, Shares},
};
use crate::{
    data::{loader::Loader, token_shard::TokenShard},
    distributed::{beside::Piece, team::Team},
    models::{
        transformer::train_step::{Param, TrainStep},
        transformer::weights::Transformer,
    },
};

/// Measures a model in training, without changing it: values by name, for the logs.
pub type Probe<'a> = dyn FnMut(&Transformer, &TrainStep) -> Result<Vec<(String, f64)>> + 'a;

/// What a model in training is measured on. None of it changes a bit of the training, unless the guard reacts; but for `distillation` and `alignment`, which say what is learnt, and `team`, which says with whom.
#[derive(Default)]
pub struct Checks<'a> {
    /// Decides which parameters are the best.
    pub validation: Option<&'a TokenShard>,
    /// Held-out rows of the source language.
    pub source: Option<&'a TokenShard>,
    /// Held-out plain text of the source language: where there is one, the guard goes by it.
    pub text: Option<&'a HeldOutText>,
    /// Anything else, such as generated replies.
    pub probe: Option<&'a mut Probe<'a>>,
    /// Where a teacher is learnt from: `train` and `validation` hold what it is shown, too.
    pub distillation: Option<Distillation<'a>>,
    /// Parallel sentences that are aligned beside the task, by one process.
    pub alignment: Option<&'a MiddleLayer>,
    /// The processes that train together; one alone by default.
    pub team: Rc<Team>,
}

struct Run<'a> {
    settings: &'a TrainerSettings,
    train: &'a TokenShard,
    checks: Checks<'a>,
    out: &'a Path,
    /// Of rank 0 alone.
    log: Option<Log>,
    optimizer: Optimizer,
    state: State,
    total: u64,
    team: Rc<Team>,
}

/// Trains `model` on `train` into the directory `out`; the best parameters are in place at the end.
pub fn train<'a>(
    model: &mut Transformer,
    step: &mut TrainStep,
    train: &'a TokenShard,
    mut checks: Checks<'a>,
    settings: &'a TrainerSettings,
    out: &'a Path,
    stop: &dyn Fn() -> bool,
    on_event: &mut dyn FnMut(TrainEvent),
) -> Result<TrainOutcome> {
    let mut loader = Loader::new(train, settings.seed, settings.batch_documents, settings.batch_tokens)?;
    let per_epoch = loader.steps_per_epoch() as u64;
    let mut total = (settings.epochs * per_epoch as f64).ceil().max(1.0) as u64;
    if settings.max_steps > 0 {
        total = total.min(settings.max_steps);
    }
    let params = step.params(model);
    let team = checks.team.clone();
    let first = team.is_first();
    let untrained = "nothing is trained: no module matches the LoRA targets";
    ensure!(!params.is_empty(), Error::setting("train.lora-targets", untrained));
    let optimizer = together(model, step, &team, settings)?;
    let begun = if first {
        Some(resume::state(&params, &optimizer, settings, (out, &team), on_event)?)
    } else {
        None
    };
    let state = resume::shared(begun, &params, &optimizer, (out, &team))?;
    let log = if first { Some(Log::open(out, state.step)?) } else { None };
    checks.fit(settings.batch_tokens, on_event)?;
    let mut run = Run { settings, train, checks, out, log, optimizer, state, total, team };
    if run.state.step == 0 {
        run.validate_before(model, step, on_event)?;
        run.source_loss(model, step, on_event)?;
        run.probe(model, step, on_event)?;
    }
    while run.state.step < total && !run.state.stopped {
        if run.team.any(stop())? {
            run.save(&step.params(model))?;
            return Ok(run.outcome(false, model));
        }
        run.one_step(model, step, &mut loader, on_event)?;
        let every = if settings.eval_every > 0 { settings.eval_every } else { per_epoch };
        if run.state.step.is_multiple_of(every) || run.state.step == total {
            run.evaluate(model, step, on_event)?;
        }
        if settings.checkpoint_every > 0 && run.state.step.is_multiple_of(settings.checkpoint_every) {
            run.save(&step.params(model))?;
            if first {
                checkpoint::prune(out, settings.keep_checkpoints)?;
            }
        }
    }
    run.ensure_same(&step.params(model))?;
    let best = run.state.stopping.best;
    if first && best.is_some_and(|(_, at)| at != run.state.step) {
        checkpoint::load_best(out, &step.params(model))?;
    }
    Ok(run.outcome(true, model))
}

/// The optimizer, and how gradients become sums over the ranks, if there are several.
fn together(
    model: &Transformer,
    step: &mut TrainStep,
    team: &Rc<Team>,
    settings: &TrainerSettings,
) -> Result<Optimizer> {
    let (params, size) = (step.params(model), team.world().size());
    let shares = (size > 1 && settings.shard != Shard::None)
        .then(|| Shares::new(&params, settings.optimizer.kind, size));
    if size > 1 && !settings.fixed_order {
        step.sum_over(model, team, settings.narrow_sums, &|i, gradient| match &shares {
            Some(shares) => shares.pieces(i, gradient),
            None => Ok(vec![Piece { gradient: gradient.alias(), owner: None }]),
        })?;
    }
    match &shares {
        Some(shares) => Optimizer::shared(&params, settings.optimizer, (team, shares, !settings.fixed_order)),
        None => Optimizer::new(&params, settings.optimizer),
    }
}

impl Run<'_> {
    /// A checkpoint.
    fn save(&self, params: &[Param]) -> Result<()> {
        let how = (&*self.team, self.optimizer.is_shared());
        checkpoint::save(self.out, &self.state, params, &self.optimizer.state(), how)
    }

    fn write(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        self.log.as_mut().map_or(Ok(()), |log| log.write(step, values))
    }

    /// An error if the parameters are not the same on all ranks.
    fn ensure_same(&self, params: &[Param]) -> Result<()> {
        if self.team.world().size() == 1 {
            return Ok(());
        }
        let mut hash = Xxh3::new();
        for p in params {
            hash.update(bytemuck::cast_slice(&p.value().to_f32_vec()?));
        }
        self.team.ensure_same("what is trained", hash.digest())
    }

    fn one_step(
        &mut self,
        model: &mut Transformer,
        step: &mut TrainStep,
        loader: &mut Loader,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        let started = Instant::now();
        let _span = info_span!("train_step", step = self.state.step + 1).entered();
        let documents = loader.documents(self.state.step as usize);
        let how = (&*self.team, self.settings, &self.state);
        let StepLoss { loss, values, rewards, answered } =
            gradients::of_step(model, step, self.train, &documents, how, &self.checks)?;
        let lr = self.settings.lr * self.schedule().factor(self.state.step);
        let number = self.state.step + 1;
        // Checked before the update: the parameters of the last sound step stay.
        self.check_finite("loss", loss.mean(), number)?;
        let grad_norm = info_span!("optimizer").in_scope(|| self.optimizer.step(number, lr))?;
        if !grad_norm.is_finite() {
            // With a share of the state a rank has sums in its own elements alone.
            let whole = !self.optimizer.is_shared();
            let first = if whole { first_not_finite(&step.params(model))? } else { None };
            let what = match first {
                Some(name) => format!("norm of the gradient (that of {name})"),
                None => "norm of the gradient".into(),
            };
            self.check_finite(&what, grad_norm, number)?;
        }
        self.state.step = number;
        self.team.at_step(number);
        self.state.train_loss = loss.mean();
        self.state.progress.observe(loss.mean());
        let seconds = started.elapsed().as_secs_f64();
        let epoch = number as f64 / loader.steps_per_epoch() as f64;
        let usual = [
            ("train/loss", loss.mean()),
            ("train/grad_norm", grad_norm),
            ("train/learning_rate", lr),
            ("train/epoch", epoch),
        ];
        if let Some(log) = &mut self.log {
            log.write(number, &[&usual, &values[..]].concat())?;
            log.time(number, seconds, loss.tokens, answered)?;
        }
        on_event(TrainEvent::Step {
            step: number,
            total: self.total,
            loss: loss.mean(),
            grad_norm,
            lr,
            tokens: loss.tokens,
            seconds,
            rewards,
            answered,
        });
        Ok(())
    }

    fn outcome(&self, finished: bool, model: &Transformer) -> TrainOutcome {
        let State { step, train_loss, stopping, progress, budgets, ranks, .. } = &self.state;
        // A loss of preferences, or a divergence, is none of the vocabulary's: of no tokens none is uniform.
        let other = self.settings.preference.is_some() || self.checks.distillation.is_some();
        let vocabulary = if other { 0 } else { model.config.vocab_size };
        let best = stopping.best;
        TrainOutcome {
            steps: *step,
            train_loss: *train_loss,
            best: best.filter(|(loss, _)| !progress.is_no_better(*loss, vocabulary)),
            start: progress.start,
            warning: progress.warning(best.map(|(loss, _)| loss), vocabulary),
            budgets: budgets.clone(),
            ranks: ranks.clone(),
            finished,
        }
    }

    fn schedule(&self) -> Schedule {
        let warmup = (self.settings.warmup_ratio * self.total as f64).ceil() as u64;
        let decay = (self.settings.decay_ratio * self.total as f64).ceil() as u64;
        Schedule { total: self.total, warmup, decay, ..self.settings.schedule }
    }

    fn check_finite(&self, what: &str, value: f64, step: u64) -> Result<()> {
        if value.is_finite() {
            return Ok(());
        }
        bail!(
            "step {step}: the {what} is {value}; lower the learning rate (now {}), or look at the step's documents with `sdrrl inspect {}`. \
             Checkpoints in {} are sound",
            self.settings.lr,
            self.train.path().display(),
            self.out.display()
        )
    }

    /// The validation loss before the first step: what it must fall below.
    fn validate_before(
        &mut self,
        model: &Transformer,
        step: &mut TrainStep,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        let Some(validation) = self.checks.validation else { return Ok(()) };
        let distillation = self.checks.distillation.as_ref();
        let Validated { loss, values, rewards } =
            validate(model, step, validation, (self.settings, &self.team), distillation)?;
        self.check_finite("validation loss", loss, 0)?;
        self.state.progress.start = Some(loss);
        self.write(0, &values)?;
        on_event(TrainEvent::Evaluation { step: 0, loss, improved: false, rewards });
        Ok(())
    }

    fn evaluate(
        &mut self,
        model: &Transformer,
        step: &mut TrainStep,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        let _span = info_span!("evaluate", step = self.state.step).entered();
        self.ensure_same(&step.params(model))?;
        let too_far = self.source_loss(model, step, on_event)?;
        let number = self.state.step;
        if let Some(validation) = self.checks.validation {
            let distillation = self.checks.distillation.as_ref();
            let Validated { loss, values, rewards } =
                validate(model, step, validation, (self.settings, &self.team), distillation)?;
            self.check_finite("validation loss", loss, number)?;
            // What the guard stops at is no candidate.
            let outcome = if too_far {
                Observed { improved: false, stop: false }
            } else {
                self.state.stopping.observe(number, loss, self.settings.patience, self.settings.min_delta)
            };
            if outcome.improved && self.team.is_first() {
                self.team.alone(|| checkpoint::save_best(self.out, &step.params(model)))?;
            }
            self.write(number, &values)?;
            on_event(TrainEvent::Evaluation { step: number, loss, improved: outcome.improved, rewards });
            if outcome.stop && number < self.total {
                self.state.stopped = true;
                on_event(TrainEvent::StoppedEarly { step: number });
            }
        }
        self.probe(model, step, on_event)?;
        if too_far && number < self.total {
            self.state.stopped = true;
            on_event(TrainEvent::StoppedByGuard { step: number });
        }
        Ok(())
    }

    fn probe(
        &mut self,
        model: &Transformer,
        step: &TrainStep,
        on_event: &mut dyn FnMut(TrainEvent),
    ) -> Result<()> {
        let Some(probe) = &mut self.checks.probe else { return Ok(()) };
        if !self.team.is_first() {
            return Ok(());
        }
        let values = self.team.alone(|| probe(model, step))?;
        let tags: Vec<(String, f64)> = values.iter().map(|(name, x)| (format!("eval/{name}"), *x)).collect();
        let tags: Vec<(&str, f64)> = tags.iter().map(|(name, x)| (name.as_str(), *x)).collect();
        self.write(self.state.step, &tags)?;
        on_event(TrainEvent::Probe { step: self.state.step, values });
        Ok(())
    }
}
