//! Processes that train one model together: who they are (the variables of torchrun, Slurm, Open MPI and MPICH), how they meet (one listens, the others
//! connect, all are compared before anything is trained), how each is watched, and what they exchange (NCCL).
//!
//! No scheduler and no transport is written here: launchers start processes, NCCL moves tensors. Beside it each rank keeps one connection to rank 0, for what has
//! to be said when NCCL hangs: who has failed, at which step.
pub mod beside;
mod control;
mod frames;
pub mod layers;
pub mod lobby;
pub mod ranks;
pub mod team;
pub mod world;

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::error::Error;

/// How long ranks are waited for where `SDRRL_RANK_TIMEOUT` says nothing, seconds.
const PATIENCE: u64 = 300;

/// How long a rank may be silent, or the others wait for it, before all end (`SDRRL_RANK_TIMEOUT`, seconds).
///
/// # Errors
/// A variable that is no number of seconds from 1 on.
pub fn patience() -> Result<Duration> {
    let Some(text) = std::env::var_os("SDRRL_RANK_TIMEOUT").filter(|v| !v.is_empty()) else {
        return Ok(Duration::from_secs(PATIENCE));
    };
    let seconds: u64 = text.to_str().and_then(|s| s.parse().ok()).unwrap_or(0);
    let message =
        || format!("SDRRL_RANK_TIMEOUT is {}: whole seconds, 1 or more, were expected", text.display());
    ensure!(seconds > 0, Error::setting("SDRRL_RANK_TIMEOUT", message()));
    Ok(Duration::from_secs(seconds))
}
