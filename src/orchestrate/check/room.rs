//! What the machine has room for.
use std::path::Path;

use anyhow::{Result, ensure};

use crate::{
    device::{DeviceChoice, host_memory},
    error::Error,
    models::{
        transformer::config::Config,
        weights::{WeightSource, resolve},
    },
    pipeline::placement::Placement,
    recipe::{Recipe, train::Method},
    report::out::note,
    stages::train,
};

/// What training takes by purpose, in batches of up to `max_tokens` tokens.
pub(in crate::orchestrate) fn training(
    r: &Recipe,
    placement: Placement,
    max_tokens: usize,
) -> Result<Vec<(String, usize)>> {
    let path = resolve(&r.model)?;
    let (config, source) = match r.train.method {
        Method::Scratch => (Config::from_dir(&path)?, None),
        _ => WeightSource::open(&path).map(|(config, source)| (config, Some(source)))?,
    };
    train::memory(&config.spec()?, source.as_ref(), &r.train, placement, max_tokens)
}

/// What training takes, against the machine's memory.
pub(super) fn memory(r: &Recipe, placement: Placement) -> Result<()> {
    let Some((_, free)) = host_memory() else { return Ok(()) };
    if placement.device != DeviceChoice::Cpu {
        return Ok(());
    }
    let parts = training(r, placement, r.train.batch_tokens)?;
    let needed: u64 = parts.iter().map(|(_, bytes)| *bytes as u64).sum();
    let method = format!("{:?}", r.train.method).to_lowercase();
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let message = || {
        let parts: Vec<String> =
            parts.iter().map(|(name, bytes)| format!("{name} {:.2}", gib(*bytes as u64))).collect();
        format!(
            "training by {method} in batches of {} tokens needs {:.2} GiB ({}), and {:.2} GiB are available: a lower train.batch-tokens, dtype = \"bf16\", another method, or a smaller model",
            r.train.batch_tokens,
            gib(needed),
            parts.join(", "),
            gib(free)
        )
    };
    ensure!(needed <= free, Error::out_of_memory(message()));
    Ok(())
}

/// Answers that are drawn while training leave room for their questions; a teacher has as many tokens as are kept of it.
pub(super) fn answers(r: &Recipe, config: &Config) -> Result<()> {
    if let Some(teacher) = r.train.stored_teacher() {
        teacher.check(config.vocab_size)?;
    }
    let Some(rollouts) = r.train.rollouts() else { return Ok(()) };
    let (n, context, batch) = (rollouts.max_new_tokens, config.max_position_embeddings, r.train.batch_tokens);
    let message = || {
        format!(
            "train.max-new-tokens is {n}, which leaves no room for a question: the model takes {context} tokens, and batch-tokens are {batch}"
        )
    };
    ensure!(n < context.min(batch), Error::setting("train.max-new-tokens", message()));
    Ok(())
}

/// The work folder can be made, and its disk has room for what surely comes: rows several times over, and parameters with their moments.
pub(super) fn disk(r: &Recipe) -> Result<()> {
    let mut there: &Path = &r.work;
    while !there.exists() {
        there = there.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    }
    let file = || format!("work: {} is a file: a folder was expected", there.display());
    ensure!(there.is_dir(), Error::setting("work", file()));
    let Ok(stat) = rustix::fs::statvfs(there) else { return Ok(()) };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let rows: u64 =
        r.questions.iter().chain(&r.examples).filter_map(|p| p.metadata().ok()).map(|m| m.len()).sum();
    let needed = (64 << 20) + 8 * rows;
    let mib = |bytes: u64| bytes >> 20;
    let message = || {
        format!(
            "work: {} has {} MiB of free disk, and at least {} MiB are needed",
            there.display(),
            mib(free),
            mib(needed)
        )
    };
    ensure!(free >= needed, Error::cannot_write(there, message()));
    if free < 4 * needed {
        note!("warning: {} has {} MiB of free disk", there.display(), mib(free));
    }
    Ok(())
}
