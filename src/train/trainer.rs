//! The training loop: one for adapters, full fine-tuning and training from scratch.
//!
//! Interrupted or killed at any moment, the same call goes on from the newest checkpoint and ends with the same bits: documents of a
//! step are a function of (seed, step), sums have a fixed order, and the logs are cut back to the checkpoint.
mod source;

use std::{path::Path, time::Instant};

use crate::error::Error;
use anyhow::{Context, Result, bail, ensure};
use tracing::info_span;

pub use super::run_types::{CHANGEABLE, TrainEvent, TrainOutcome, TrainerSettings};
use super::validation::{Validated, validate, validation_loss};
use super::{
    checkpoint::{self, State},
    distillation::Distillation,
    early_stopping::Observed,
    gradients::{self, StepLoss},
    guard::is_source,
    held_out_text::HeldOutText,
    log::Log,
    optimizer::{Optimizer, first_not_finite},
    resume,
    schedule::Schedule,
    world::World,
};
use crate::{
    data::{
        loader::{Loader, pack},
        token_shard::TokenShard,
    },
    models::{
        transformer::train_step::{PackedBatch, TrainStep},
        transformer::weights::Transformer,
    },
};

/// Measures a model in training, without changing it: values by name, for the logs.
pub type Probe<'a> = dyn FnMut(&Transformer, &TrainStep) -> Result<Vec<(String, f64)>> + 'a;

/// What a model in training is measured on. None of it changes a bit of the training, unless the guard reacts; but for `distillation`, which says what is learnt.
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
}

struct Run<'a> {
    settings: &'a TrainerSettings,
    train: &'a TokenShard,
    checks: Checks<'a>,
    out: &'a Path,
    log: Log,
    optimizer: Optimizer,
    state: State,
    total: u64,
    world: World,
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
    std::fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    let mut loader = Loader::new(train, settings.seed, settings.batch_documents, settings.batch_tokens)?;
    let per_epoch = loader.steps_per_epoch() as u64;
    let mut total = (settings.epochs * per_epoch as f64).ceil().max(1.0) as u64;
    if settings.max_steps > 0 {
        total = total.min(settings.max_steps);
    }
    let params = step.params(model);
    let untrained = "nothing is trained: no module matches the LoRA targets";
    ensure!(!params.is_empty(), Error::setting("train.lora-targets", untrained));
    resume::refuse_drift(checkpoint::latest_state(out).as_ref(), settings, out)?;
    let optimizer = Optimizer::new(&params, settings.optimizer)?;
    let state = match checkpoint::load_latest(out, &params, &mut optimizer.state())? {
        Some(state) => {
            on_event(TrainEvent::Resumed { step: state.step });
            resume::goes_on(state, settings, on_event)
        }
        None => resume::begins(settings),
    };
    let log = Log::open(out, state.step)?;
    checks.fit(settings.batch_tokens, on_event)?;
    let mut run = Run { settings, train, checks, out, log, optimizer, state, total, world: World::default() };
    if run.state.step == 0 {
        run.validate_before(model, step, on_event)?;
        run.source_loss(model, step, on_event)?;
        run.probe(model, step, on_event)?;
    }
    while run.state.step < total && !run.state.stopped {
        if stop() {
            checkpoint::save(out, &run.state, &step.params(model), &run.optimizer.state())?;
            return Ok(run.outcome(false, model));
        }
        run.one_step(model, step, &mut loader, on_event)?;
        let every = if settings.eval_every > 0 { settings.eval_every } else { per_epoch };
        if run.state.step.is_multiple_of(every) || run.state.step == total {
            run.evaluate(model, step, on_event)?;
        }
        if settings.checkpoint_every > 0 && run.state.step.is_multiple_of(settings.checkpoint_every) {
            checkpoint::save(out, &run.state, &step.params(model), &run.optimizer.state())?;
            checkpoint::prune(out, settings.keep_checkpoints)?;
        }
    }
    let best = run.state.stopping.best;
    if best.is_some_and(|(_, at)| at != run.state.step) {
        checkpoint::load_best(out, &step.params(model))?;
    }
    Ok(run.outcome(true, model))
}

impl Run<'_> {
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
        let how = (self.world, self.settings, &self.state);
        let distillation = self.checks.distillation.as_ref();
        let StepLoss { loss, values, rewards, answered } =
            gradients::of_step(model, step, self.train, &documents, how, distillation)?;
        let lr = self.settings.lr * self.schedule().factor(self.state.step);
        let number = self.state.step + 1;
        // Checked before the update: the parameters of the last sound step stay.
        self.check_finite("loss", loss.mean(), number)?;
        let grad_norm = info_span!("optimizer").in_scope(|| self.optimizer.step(number, lr))?;
        if !grad_norm.is_finite() {
            let what = match first_not_finite(&step.params(model))? {
                Some(name) => format!("norm of the gradient (that of {name})"),
                None => "norm of the gradient".into(),
            };
            self.check_finite(&what, grad_norm, number)?;
        }
        self.state.step = number;
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
        self.log.write(number, &[&usual, &values[..]].concat())?;
        self.log.time(number, seconds, loss.tokens, answered)?;
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
        let State { step, train_loss, stopping, progress, budgets, .. } = &self.state;
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
            validate(model, step, validation, self.settings, distillation)?;
        self.check_finite("validation loss", loss, 0)?;
        self.state.progress.start = Some(loss);
        self.log.write(0, &values)?;
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
        let too_far = self.source_loss(model, step, on_event)?;
        let number = self.state.step;
        if let Some(validation) = self.checks.validation {
            let distillation = self.checks.distillation.as_ref();
            let Validated { loss, values, rewards } =
                validate(model, step, validation, self.settings, distillation)?;
            self.check_finite("validation loss", loss, number)?;
            // What the guard stops at is no candidate.
            let outcome = if too_far {
                Observed { improved: false, stop: false }
            } else {
                self.state.stopping.observe(number, loss, self.settings.patience, self.settings.min_delta)
            };
            if outcome.improved {
                checkpoint::save_best(self.out, &step.params(model))?;
            }
            self.log.write(number, &values)?;
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
        let values = probe(model, step)?;
        let tags: Vec<(String, f64)> = values.iter().map(|(name, x)| (format!("eval/{name}"), *x)).collect();
        let tags: Vec<(&str, f64)> = tags.iter().map(|(name, x)| (name.as_str(), *x)).collect();
        self.log.write(self.state.step, &tags)?;
        on_event(TrainEvent::Probe { step: self.state.step, values });
        Ok(())
    }
}

/// The micro-batches of a step that one process of `world` runs.
pub(super) fn step_batches(
    world: World,
    shard: &TokenShard,
    documents: &[usize],
    (batch_tokens, per_sentence): (usize, bool),
    source_weight: f32,
) -> Vec<PackedBatch> {
    pack(shard, &world.share(documents), batch_tokens)
        .iter()
        .map(|documents| packed(shard, documents, per_sentence, source_weight))
        .collect()
}

/// The weight of a whole step: every process adds up all shares in the order of the ranks, so that all divide by the same bits.
pub(super) fn step_weight(
    world: World,
    own: &[PackedBatch],
    others: impl Fn(World) -> Vec<PackedBatch>,
) -> f64 {
    let of =
        |batches: &[PackedBatch]| -> f64 { batches.iter().flat_map(|b| &b.weights).map(|&w| w as f64).sum() };
    world.ranks().map(|rank| if rank == world { of(own) } else { of(&others(rank)) }).sum()
}

/// `source_weight` is the guard's factor on source documents.
pub(super) fn packed(
    shard: &TokenShard,
    documents: &[usize],
    per_sentence: bool,
    source_weight: f32,
) -> PackedBatch {
    let mut batch = PackedBatch::default();
    for &d in documents {
        let mut document = shard.document(d);
        if per_sentence {
            let sum: f32 = document.weights.iter().skip(1).sum();
            if sum > 0.0 {
                document.weights.iter_mut().for_each(|w| *w /= sum);
            }
        }
        if source_weight != 1.0 && is_source(&document.note) {
            document.weights.iter_mut().for_each(|w| *w *= source_weight);
        }
        batch.push_as(d as u32, &document.tokens, &document.weights);
        if is_source(&document.note) {
            batch.mark_source();
        }
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::token_shard::{Document, write};

    #[test]
    fn ranks_share_a_step_and_divide_by_the_same_weight() {
        let dir = tempfile::tempdir().unwrap();
        let documents: Vec<Document> = (0..11)
            .map(|i| Document {
                tokens: vec![i as u32; 3 + i % 5],
                weights: (0..3 + i % 5).map(|j| 0.1 + (i * j) as f32 / 7.0).collect(),
                note: String::new(),
            })
            .collect();
        write(&dir.path().join("t.tokens"), &documents).unwrap();
        let shard = TokenShard::open(&dir.path().join("t.tokens")).unwrap();
        let order: Vec<usize> = (0..11).map(|i| i * 4 % 11).collect();
        for per_sentence in [false, true] {
            let of = |world| step_batches(world, &shard, &order, (16, per_sentence), 1.0);
            let whole = step_weight(World::default(), &of(World::default()), of);
            for size in 2..5 {
                let (mut tokens, mut weights) = (vec![], vec![]);
                for world in World::new(0, size).unwrap().ranks() {
                    let own = of(world);
                    weights.push(step_weight(world, &own, of).to_bits());
                    tokens.extend(own.into_iter().flat_map(|b| b.tokens));
                }
                tokens.sort();
                let all: Vec<u32> = documents.iter().flat_map(|d| d.tokens.clone()).collect();
                assert_eq!(tokens, all, "every token is one rank's");
                assert!(weights.iter().all(|w| *w == weights[0]), "{size} ranks: {weights:?}");
                assert!((f64::from_bits(weights[0]) / whole - 1.0).abs() < 1e-12);
            }
        }
    }
}
