//! What every numeric setting may be: one table for the command line and for recipes, checked before any work begins.
//!
//! A key means the same in every section and command, so that it is listed once. `tests/settings.rs` checks that no numeric setting is missing.
use std::ffi::OsStr;

use anyhow::{Context, Result, bail};
use clap::{ArgMatches, Command};
use serde::Serialize;
use toml::{Table, Value};

use crate::error::Error;

/// The numbers that a setting may have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The setting, as recipes and (behind `--`) commands call it.
    pub key: &'static str,
    low: f64,
    /// `low` itself is not allowed.
    above: bool,
    high: f64,
    /// `high` itself is not allowed.
    below: bool,
}

impl Range {
    const fn new(key: &'static str, low: f64, above: bool, high: f64, below: bool) -> Range {
        Range { key, low, above, high, below }
    }

    /// Whether the setting may be `x`; NaN never may.
    pub fn has(&self, x: f64) -> bool {
        (if self.above { x > self.low } else { x >= self.low })
            && (if self.below { x < self.high } else { x <= self.high })
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let low = if self.above { "above" } else { "of at least" };
        let high = if self.below { "below" } else { "at most" };
        write!(f, "a number {low} {} and {high} {}", self.low, self.high)
    }
}

/// From `low` to `high`, both allowed.
const fn from(key: &'static str, low: f64, high: f64) -> Range {
    Range::new(key, low, false, high, false)
}

/// Above 0.
const fn positive(key: &'static str, high: f64) -> Range {
    Range::new(key, 0.0, true, high, false)
}

/// From 0 to below 1.
const fn below_one(key: &'static str) -> Range {
    Range::new(key, 0.0, false, 1.0, true)
}

/// More of anything than a run can have.
const MANY: f64 = 1e12;

/// Every numeric setting.
pub const RANGES: &[Range] = &[
    from("alignment-batch", 2.0, 65536.0),
    from("alignment-layer", 1.0, 1e6),
    positive("alignment-temperature", 1e3),
    from("alignment-weight", 0.0, 1e6),
    from("attention", 1e-3, 1e9),
    from("bandwidth", 1e-3, 1e9),
    from("batch-documents", 1.0, MANY),
    from("batch-rows", 1.0, 1e6),
    from("batch-tokens", 1.0, 1e9),
    from("beta", 1e-6, 1e3),
    below_one("beta1"),
    below_one("beta2"),
    from("bootstrap-samples", 1.0, 1e8),
    from("checkpoint-every", 0.0, MANY),
    from("clip", 0.0, 1e9),
    from("concurrency", 1.0, 1024.0),
    from("context", 2.0, 1e9),
    positive("copied-share", 1.0),
    from("count", 0.0, MANY),
    from("cross-entropy-weight", 0.0, 1e3),
    from("decay-ratio", 0.0, 1.0),
    from("desirable-weight", 0.0, 1e3),
    from("documents", 1.0, 65536.0),
    positive("epochs", 1e6),
    positive("eps", 1.0),
    from("eval-every", 0.0, MANY),
    from("few-shot", 0.0, 1e3),
    from("from", 0.0, MANY),
    from("gpus", 1.0, 1e6),
    from("guard-max-bits", 0.0, 1e3),
    from("guard-max-rise", 0.0, 1e3),
    from("keep-checkpoints", 1.0, 1e6),
    positive("keep-source-weight", 1e3),
    from("kl-clip", 0.0, 1e3),
    Range::new("label-smoothing", 0.0, false, 0.5, true),
    from("latency", 0.0, 1e9),
    from("layer", 0.0, 1e6),
    from("length", 1.0, 1e7),
    from("length-penalty", -100.0, 100.0),
    from("limit", 0.0, MANY),
    from("link", 1e-3, 1e9),
    positive("lora-alpha", 1e6),
    below_one("lora-dropout"),
    positive("lora-plus-ratio", 1e6),
    from("lora-rank", 1.0, 65536.0),
    from("lr", 0.0, 100.0),
    from("max-body", 1.0, 1e9),
    from("max-length", 1.0, 1e9),
    from("max-new-tokens", 1.0, 1e9),
    from("max-steps", 0.0, MANY),
    from("max-words", 1.0, 1e9),
    from("memory", 1e-3, 1e9),
    from("micro-batches", 1.0, 65536.0),
    from("min-delta", 0.0, 1e3),
    from("min-lr-ratio", 0.0, 1.0),
    from("min-new-tokens", 0.0, 1e9),
    from("min-p", 0.0, 1.0),
    from("min-words", 0.0, 1e9),
    from("network", 1e-3, 1e9),
    from("no-repeat-ngram-size", 0.0, 1e6),
    from("num-beams", 1.0, 1e3),
    positive("out-of", 1e6),
    from("parallel-weight", 0.0, 1e6),
    from("patience", 0.0, MANY),
    from("per-node", 1.0, 1e6),
    from("probe-rows", 0.0, MANY),
    from("products", 1e-3, 1e9),
    from("queue", 1.0, 1e6),
    from("rate", 0.0, 1.0),
    positive("repetition-penalty", 1e3),
    positive("request-timeout", 1e6),
    from("requests-per-minute", 0.0, 1e6),
    from("retries", 0.0, 100.0),
    from("rows-per-shard", 1.0, MANY),
    from("samples", 1.0, 1e8),
    from("seed", 0.0, u64::MAX as f64),
    from("tau", -1e9, 1e9),
    from("temperature", 0.0, 1e3),
    positive("timeout", 1e6),
    from("top-k", 0.0, 1e9),
    from("top-k-logits", 1.0, 1e7),
    positive("top-p", 1.0),
    from("undesirable-weight", 0.0, 1e3),
    below_one("validation"),
    from("wait", 0.0, 1e9),
    from("warmup-ratio", 0.0, 1.0),
    from("weight-decay", 0.0, 100.0),
    from("while-training", 0.0, MANY),
];

/// The range of a setting, if it has one.
pub fn of(key: &str) -> Option<&'static Range> {
    RANGES.iter().find(|range| range.key == key)
}

fn check(shown: &str, key: &str, x: f64) -> Result<()> {
    match of(key) {
        Some(range) if !range.has(x) => {
            let message = format!("{shown} is {x}: {range} was expected");
            bail!(Error::setting(shown.trim_start_matches('-'), message))
        }
        _ => Ok(()),
    }
}

/// Checks the numbers of a recipe, or of anything else that is written as one; errors name the key.
pub fn check_table(table: &Table) -> Result<()> {
    table.iter().try_for_each(|(key, value)| check_value(key, key, value))
}

/// Checks the numbers of settings that a program gives, as the recipe's section of that name.
pub fn check_settings(section: &str, settings: &impl Serialize) -> Result<()> {
    check_value(section, section, &Value::try_from(settings).context("write settings")?)
}

fn check_value(path: &str, key: &str, value: &Value) -> Result<()> {
    match value {
        Value::Table(table) => {
            table.iter().try_for_each(|(key, value)| check_value(&format!("{path}.{key}"), key, value))
        }
        Value::Array(values) => values.iter().try_for_each(|value| check_value(path, key, value)),
        Value::Integer(x) => check(path, key, *x as f64),
        Value::Float(x) => check(path, key, *x),
        _ => Ok(()),
    }
}

/// Checks the numbers of a command line that `command` has parsed; errors name the option.
pub fn check_arguments(command: &Command, matches: &ArgMatches) -> Result<()> {
    let Some((name, matches)) = matches.subcommand() else { return Ok(()) };
    let Some(command) = command.find_subcommand(name) else { return Ok(()) };
    for argument in command.get_arguments() {
        let Some(key) = argument.get_long() else { continue };
        let values = matches.try_get_raw(argument.get_id().as_str()).ok().flatten();
        for text in values.into_iter().flatten().filter_map(|v: &OsStr| v.to_str()) {
            if let Ok(x) = text.parse::<f64>() {
                check(&format!("--{key}"), key, x)?;
            }
        }
    }
    Ok(())
}
