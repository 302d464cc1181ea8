//! What training says on the terminal.
use std::io::IsTerminal;

use super::watch::Watch;
use crate::{
    models::{transformer::train_step::TrainStep, transformer::weights::Transformer},
    report::{
        out::{is_shown, note, raw_warn},
        progress::duration,
    },
    train::trainer::TrainEvent,
};

/// What was run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Optimizer steps.
    pub steps: u64,
    /// Their tokens.
    pub tokens: usize,
    /// Their time.
    pub seconds: f64,
}

/// One line a step: rewritten in place on a terminal, now and then otherwise.
pub(super) struct Screen {
    terminal: bool,
    /// Matrix work of a token, forward and backward, FLOP.
    flop_per_token: f64,
    seen: Seen,
    watch: Watch,
    quiet: bool,
    last: std::time::Instant,
    open: bool,
}

impl Screen {
    pub(super) fn new(model: &Transformer, step: &TrainStep, quiet: bool) -> Screen {
        let (config, spec) = (&model.config, &model.spec);
        let embedding = if config.tie_word_embeddings { 0 } else { config.vocab_size * config.hidden_size };
        let matrices = (spec.parameters() - spec.idle_parameters() - embedding) as f64;
        let flop_per_token = match step.adapter() {
            Some(lora) => {
                let each = lora.adapters();
                let each = each.map(|(unit, _, a)| spec.passed(unit) * (a.a.len() + a.b.len()) as f64);
                4.0 * matrices + 6.0 * each.sum::<f64>()
            }
            None => 6.0 * matrices,
        };
        let terminal = is_shown() && std::io::stderr().is_terminal();
        Screen {
            terminal,
            flop_per_token,
            seen: Seen::default(),
            watch: Watch::default(),
            quiet,
            last: std::time::Instant::now(),
            open: false,
        }
    }

    pub(super) fn show(&mut self, event: TrainEvent) {
        if let TrainEvent::Step { tokens, seconds, .. } = event {
            self.seen.steps += 1;
            self.seen.tokens += tokens;
            self.seen.seconds += seconds;
        }
        let progress = matches!(
            event,
            TrainEvent::Step { .. }
                | TrainEvent::Evaluation { .. }
                | TrainEvent::Guard { .. }
                | TrainEvent::GuardText { .. }
                | TrainEvent::Probe { .. }
        );
        if !(self.quiet && progress) {
            self.draw(&event);
        }
        if let Some(told) = self.watch.see(&event) {
            self.end();
            note!("train: WARNING: {told}");
        }
    }

    fn draw(&mut self, event: &TrainEvent) {
        match *event {
            TrainEvent::Step { step, total, loss, grad_norm, lr, tokens, seconds, rewards, answered } => {
                let rate = tokens as f64 / seconds.max(1e-9);
                let left = (total - step) as f64 * self.seen.seconds / self.seen.steps as f64;
                let line = format!(
                    "step {step}/{total}  loss {loss:.4}{}{}  norm {grad_norm:.3}  lr {lr:.2e}  {rate:.0} tok/s  {:.1} GFLOP/s  {} left",
                    rewards.map_or(String::new(), |r| format!("  {r}")),
                    answered.map_or(String::new(), |a| format!("  {a}")),
                    rate * self.flop_per_token / 1e9,
                    duration(left)
                );
                if self.terminal {
                    raw_warn(format_args!("\r\x1b[2K{line}"));
                    self.open = true;
                } else if step == 1 || step == total || self.last.elapsed().as_secs() >= 10 {
                    note!("{line}");
                    self.last = std::time::Instant::now();
                }
            }
            TrainEvent::Evaluation { step, loss, improved, rewards } => {
                self.end();
                note!(
                    "step {step}: validation loss {loss:.4}{}{}",
                    rewards.map_or(String::new(), |r| format!(", {r}")),
                    match (step, improved) {
                        (0, _) => ", before training",
                        (_, true) => ", the best so far",
                        _ => "",
                    }
                );
            }
            TrainEvent::Guard { step, loss, before, weight } => {
                self.end();
                let more = weighed(weight);
                note!("step {step}: source-language loss {loss:.4} ({:+.4}){more}", loss - before);
            }
            TrainEvent::GuardText { step, bits, before, weight } => {
                self.end();
                let (more, rise) = (weighed(weight), bits - before);
                note!("step {step}: source-language text {bits:.4} bits per byte ({rise:+.4}){more}");
            }
            TrainEvent::Probe { step, ref values } => {
                self.end();
                let all: Vec<String> = values.iter().map(|(name, x)| format!("{name} {x:.1}")).collect();
                note!("step {step}: {}", all.join(", "));
            }
            TrainEvent::StoppedByGuard { step } => {
                note!("train: stopped by the guard after step {step}: the source language is being forgotten")
            }
            TrainEvent::LeftOut { name, documents, of, longest } => note!(
                "train: {documents} of {of} {name} documents are longer than batch-tokens and are left out of every evaluation (the longest has {longest} tokens)"
            ),
            TrainEvent::Resumed { step } => note!("train: resumes after step {step}"),
            TrainEvent::Differs { ref why } => note!("train: {why}"),
            TrainEvent::StoppedEarly { step } => {
                note!("train: stopped early after step {step}: the validation loss no longer falls")
            }
        }
    }

    pub(super) fn end(&mut self) -> Seen {
        if std::mem::take(&mut self.open) {
            note!();
        }
        self.seen
    }
}

fn weighed(weight: f32) -> String {
    if weight == 1.0 { String::new() } else { format!(", source rows weigh {weight}") }
}
