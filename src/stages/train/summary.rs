//! What a training says at its beginning and its end.
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Args, rewards::Change, screen::Seen, settings::state_of};
use crate::{
    error::Error,
    models::{transformer::train_step::TrainStep, transformer::weights::Transformer},
    pipeline::{
        manifest::Manifest,
        work_dir::{PAGE, is_adapter},
    },
    report::{
        environment::peak_memory,
        out::{note, say},
        progress::duration,
    },
    train::{
        optimizer::OptimizerKind,
        trainer::{CHANGEABLE, RANKS, TrainOutcome},
    },
};

/// Of the manifest's summary.
const REWARDS: &str = "rewards";

/// Loss before and after, speed, memory, where the result is, and what to do with it.
pub(super) fn print(args: &Args, seen: &Seen) -> Result<()> {
    let manifest = Manifest::load(&args.out)?.unwrap_or_default();
    let summary = &manifest.summary;
    let before = summary["validation-loss-before"].as_f64();
    let best = summary["best"]["loss"].as_f64().zip(summary["best"]["step"].as_u64());
    match (before, best) {
        (Some(before), Some((after, step))) => {
            say!(
                "train: validation loss {before:.4} before, {after:.4} after (step {step} of {})",
                summary["steps"]
            );
        }
        (Some(before), None) => say!("train: validation loss {before:.4} before, never lower after"),
        _ => {}
    }
    if let Ok(change) = serde_json::from_value::<Change>(summary[REWARDS].clone()) {
        say!("train: {change}");
    }
    if seen.steps > 0 {
        let rate = seen.tokens as f64 / seen.seconds.max(1e-9);
        let memory = peak_memory().map(|bytes| format!(", peak memory {:.0} MiB", bytes as f64 / 1048576.0));
        say!(
            "train: {} steps in {}, {rate:.0} tokens/s{}",
            seen.steps,
            duration(seen.seconds),
            memory.unwrap_or_default()
        );
    }
    // A recipe goes on by itself.
    if !args.replace {
        say!("page:  {}", args.out.join(PAGE).display());
        for (i, command) in next_commands(&args.model, &args.out).iter().enumerate() {
            say!("{}  {command}", if i == 0 { "next:" } else { "     " });
        }
    }
    Ok(())
}

/// What can be done with what was trained from `model`, as commands.
pub fn next_commands(model: &str, trained: &Path) -> Vec<String> {
    let folder = trained.to_string_lossy();
    let (model, out) = (quoted(model), quoted(&folder));
    if is_adapter(trained) {
        let merged = quoted(&format!("{}-merged", folder.trim_end_matches('/')));
        vec![
            format!("sdrrl chat --model {model} --adapter {out}"),
            format!("sdrrl serve --model {model} --adapter {out}"),
            format!("sdrrl merge --model {model} --adapter {out} --out {merged}"),
        ]
    } else {
        vec![format!("sdrrl chat --model {out}"), format!("sdrrl serve --model {out}")]
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:=@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// What the training takes, by purpose.
pub(super) fn print_memory(
    model: &Transformer,
    step: &TrainStep,
    (optimizer, ranks): (OptimizerKind, usize),
) {
    let params = step.params(model);
    let trained: usize = params.iter().map(|p| p.value().len()).sum();
    let state = state_of(&params, optimizer, ranks);
    say!("train: {} parameters, {trained} of them trained", model.config.parameters());
    let all: Vec<_> = step.memory().iter().chain([&state]).collect();
    let mib = |bytes: usize| bytes as f64 / 1048576.0;
    let parts: Vec<String> = all.iter().map(|(name, bytes)| format!("{name} {:.0}", mib(*bytes))).collect();
    let total: usize = all.iter().map(|(_, b)| b).sum();
    say!("train: memory in MiB: {}, in all {:.0}", parts.join(", "), mib(total));
}

/// Of a training that was asked to stop.
pub(super) fn interruption(outcome: &TrainOutcome, out: &Path) -> Error {
    Error::interrupted(format!(
        "interrupted after step {}; a checkpoint is in {}: run the same command again to resume",
        outcome.steps,
        out.display()
    ))
}

/// The stage's own line.
pub(super) fn ending(outcome: &TrainOutcome, out: &Path) -> String {
    match outcome.best {
        Some((loss, step)) => {
            format!("train: best validation loss {loss:.4} after step {step}; written to {}", out.display())
        }
        None => format!(
            "train: last loss {:.4} after {} steps; written to {}",
            outcome.train_loss,
            outcome.steps,
            out.display()
        ),
    }
}

/// What the manifest keeps of it; what is wrong with it is said.
pub(super) fn of(outcome: &TrainOutcome, out: &Path) -> Result<Value> {
    let best = outcome.best.map(|(loss, step)| json!({"loss": loss, "step": step}));
    let mut summary = json!({"steps": outcome.steps, "train-loss": outcome.train_loss, "best": best});
    summary["validation-loss-before"] = json!(outcome.start);
    if outcome.budgets.len() > 1 {
        summary[CHANGEABLE] = json!(outcome.budgets);
    }
    if !outcome.ranks.is_empty() {
        summary[RANKS] = json!(outcome.ranks);
    }
    if let Some(warning) = &outcome.warning {
        summary["warning"] = json!(warning);
        note!("train: WARNING: {warning}");
    }
    if let Some(change) = Change::of(out, outcome)? {
        summary[REWARDS] = json!(change);
    }
    Ok(summary)
}
