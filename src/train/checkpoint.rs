//! Checkpoints: parameters and the optimizer's state as safetensors, the rest as JSON; written beside and renamed, so that one is whole or absent. Ranks that share the state write a file each
//! before rank 0 renames the folder.
mod parts;

use std::path::{Path, PathBuf};

use crate::data::files::FileContext;
use crate::error::Error;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::info_span;

use parts::{Parts, file_of, is_file};

use super::{early_stopping::EarlyStopping, guard::GuardState, optimizer::OptimizerKind, progress::Progress};
use crate::{
    data::files::{remove_if_there, write_atomic},
    device::vectors,
    distributed::team::Team,
    models::{
        transformer::train_step::Param,
        weights::{export::write_safetensors, safetensors::Checkpoint as Tensors},
    },
    report::out::note,
    tensor::{DType, Tensor},
};

/// Everything but the tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done.
    pub step: u64,
    /// Loss of the last step.
    pub train_loss: f64,
    /// What was best.
    pub stopping: EarlyStopping,
    /// True if training ended here by early stopping.
    pub stopped: bool,
    /// The source-language guard.
    #[serde(default)]
    pub guard: GuardState,
    /// Whether anything is learnt.
    #[serde(default)]
    pub progress: Progress,
    /// The token budgets of micro-batches, each with the steps done before it was used: they decide in which order gradients are added.
    #[serde(default)]
    pub budgets: Vec<(u64, usize)>,
    /// The numbers of ranks that computed it, each with the steps done before, where the last bits depend on it; empty for one alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<(u64, usize)>,
    /// The vector instructions that computed it ([`vectors::processor`]).
    #[serde(default)]
    pub processor: String,
    /// Files that hold the tensors, where ranks have written one each; 0 stands for one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub files: usize,
    /// Whose state the tensors hold.
    #[serde(default, skip_serializing_if = "OptimizerKind::is_usual")]
    pub optimizer: OptimizerKind,
    /// The settings that made it: a run with others must not go on from here.
    pub settings: Value,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl State {
    /// Before the first step of a run with these settings.
    pub fn fresh(settings: Value) -> State {
        State {
            step: 0,
            train_loss: 0.0,
            stopping: EarlyStopping::default(),
            stopped: false,
            guard: GuardState::default(),
            progress: Progress::default(),
            budgets: vec![],
            ranks: vec![],
            files: 0,
            optimizer: OptimizerKind::default(),
            processor: vectors::processor(),
            settings,
        }
    }
}

/// The directory of the checkpoint at `step`.
pub fn dir_of(out: &Path, step: u64) -> PathBuf {
    out.join(format!("checkpoint-{step:08}"))
}

/// The parameters' values, by name.
fn values(params: &[Param]) -> Vec<(String, Tensor)> {
    params.iter().map(|p| (p.name.clone(), p.value().alias())).collect()
}

/// Writes the checkpoint of `state.step`: by rank 0 or, if `shared`, by all ranks, each with its part of the optimizer's state.
///
/// # Errors
/// A folder that cannot be written; a rank that does not see it.
pub fn save(
    out: &Path,
    state: &State,
    params: &[Param],
    optimizer: &[Tensor],
    (team, shared): (&Team, bool),
) -> Result<()> {
    let _span = info_span!("checkpoint", step = state.step).entered();
    let (first, rank) = (team.is_first(), team.world().rank());
    if !first && !shared {
        return Ok(());
    }
    let partial = out.join(PARTIAL);
    if first {
        team.alone(|| begin(&partial))?;
    }
    if shared {
        team.wait_for_all()?;
        let unseen = || {
            format!(
                "{} is not there, although rank 0 has made it: with shard each rank writes its part of a checkpoint, so that --out must be one folder for all machines",
                partial.display()
            )
        };
        ensure!(partial.is_dir(), Error::not_found(&partial, unseen()));
    }
    let mut tensors = if first { values(params) } else { vec![] };
    tensors.extend(optimizer.iter().map(|t| (t.name().to_string(), t.alias())));
    let own = partial.join(file_of(rank));
    team.alone(|| write_safetensors(&own, &tensors.iter().collect::<Vec<_>>(), DType::F32))?;
    if shared {
        team.wait_for_all()?;
    }
    if !first {
        return Ok(());
    }
    let files = if shared { team.world().size() } else { 0 };
    team.alone(|| end(out, &State { files, ..state.clone() }))
}

/// An empty folder to write into.
fn begin(partial: &Path) -> Result<()> {
    remove(partial)?;
    std::fs::create_dir_all(partial).with_context(|| format!("create {}", partial.display()))
}

/// The folder that all have written becomes the checkpoint.
fn end(out: &Path, state: &State) -> Result<()> {
    let (partial, dir) = (out.join(PARTIAL), dir_of(out, state.step));
    write_atomic(&partial.join(STATE), format!("{:#}\n", serde_json::to_value(state)?).as_bytes())?;
    remove(&dir)?;
    std::fs::rename(&partial, &dir).with_context(|| format!("rename to {}", dir.display()))
}

/// Whether the folder is a checkpoint of this program, whole or damaged: its name has eight digits or more, nothing but our files is in it, and its
/// state file, where it can be read, is ours.
fn is_ours(dir: &Path) -> bool {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let number = name.trim_start_matches(DAMAGED).strip_prefix("checkpoint-").unwrap_or_default();
    let named =
        name == PARTIAL || name == GONE || (number.len() >= 8 && number.bytes().all(|b| b.is_ascii_digit()));
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    let known = |file: &str| {
        // A temporary name of either, left by a kill.
        file == STATE || is_file(file) || (file.starts_with("state.") && file.ends_with(".partial"))
    };
    let mut whole = entries.map(|e| e.is_ok_and(|e| known(&e.file_name().to_string_lossy())));
    let state = std::fs::read(dir.join(STATE)).ok();
    let state = state.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    named
        && whole.all(|known| known)
        && state.is_none_or(|s| s["stopping"].is_object() && !s["settings"].is_null())
}

/// Removes a checkpoint of this program; that it is not there is no error, that it is somebody else's is one.
fn remove(dir: &Path) -> Result<()> {
    if std::fs::symlink_metadata(dir).is_err() {
        return Ok(());
    }
    ensure!(is_ours(dir), foreign(dir));
    let name = dir.file_name().unwrap_or_default();
    let gone = dir.with_file_name(GONE);
    // Under a name that is none of a checkpoint, so that a kill in between leaves no damaged one.
    if name != GONE {
        remove(&gone)?;
        std::fs::rename(dir, &gone).with_context(|| format!("rename {}", dir.display()))?;
    }
    std::fs::remove_dir_all(&gone).with_context(|| format!("remove {}", gone.display()))
}

fn foreign(dir: &Path) -> Error {
    let message = format!(
        "{} is not a checkpoint that sdrrl wrote: it is neither read nor removed; choose another --out, or move it away",
        dir.display()
    );
    Error::exists(dir, message)
}

/// What is called like a checkpoint in `out`, with its step where the name has one.
fn named(out: &Path) -> Vec<(Option<u64>, PathBuf)> {
    let entries = std::fs::read_dir(out).into_iter().flatten().flatten();
    entries
        .filter_map(|e| {
            let name = e.file_name().to_string_lossy().into_owned();
            let step = name.strip_prefix("checkpoint-")?.parse().ok();
            Some((step, e.path()))
        })
        .collect()
}

/// An error if `out` holds a checkpoint of another program: nothing has been touched yet.
pub fn refuse_foreign(out: &Path) -> Result<()> {
    let others = [PARTIAL, GONE].map(|name| out.join(name)).into_iter().filter(|dir| dir.exists());
    let all = named(out).into_iter().map(|(_, dir)| dir).chain(others);
    all.filter(|dir| !is_ours(dir)).try_for_each(|dir| bail!(foreign(&dir)))
}

/// Every checkpoint of this program in `out`, oldest first.
pub fn list(out: &Path) -> Vec<(u64, PathBuf)> {
    let mut found: Vec<(u64, PathBuf)> = named(out)
        .into_iter()
        .filter_map(|(step, dir)| Some((step?, dir)))
        .filter(|(_, d)| is_ours(d))
        .collect();
    found.sort();
    found
}

/// The state of the newest checkpoint that can be read.
pub fn latest_state(out: &Path) -> Option<State> {
    list(out).iter().rev().find_map(|(_, dir)| read_state(dir).ok())
}

fn read_state(dir: &Path) -> Result<State> {
    let path = dir.join(STATE);
    let text = crate::data::json::read_text(&path).reading(&path)?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}

/// Loads the newest sound checkpoint into `params` and the optimizer's state, or `None` if there is none at all. A damaged one is set aside, and it is said so.
pub fn load_latest(out: &Path, params: &[Param], optimizer: &mut [Tensor]) -> Result<Option<State>> {
    let all = list(out);
    let mut damaged = vec![];
    for (_, dir) in all.iter().rev() {
        match load(dir, params, optimizer) {
            Ok(state) => {
                for (dir, why) in damaged {
                    set_aside(dir, why)?;
                }
                return Ok(Some(state));
            }
            Err(e) => damaged.push((dir, e)),
        }
    }
    match damaged.into_iter().next() {
        None => Ok(None),
        Some((dir, e)) => Err(e.context(format!(
            "no checkpoint in {} can be read, the newest is {}: --restart starts over",
            out.display(),
            dir.display()
        ))),
    }
}

fn load(dir: &Path, params: &[Param], optimizer: &mut [Tensor]) -> Result<State> {
    let state = read_state(dir)?;
    let parts = Parts::open(dir, state.files.max(1))?;
    params.iter().try_for_each(|p| read_param(parts.first(), p))?;
    optimizer.iter_mut().try_for_each(|t| parts.read_into(t))?;
    Ok(state)
}

/// A rank's part of the optimizer's state, from the checkpoint of `step` that rank 0 has loaded.
///
/// # Errors
/// A folder that this rank does not see, or that is damaged.
pub fn load_part(out: &Path, step: u64, optimizer: &mut [Tensor]) -> Result<()> {
    let dir = dir_of(out, step);
    let mut read = || {
        let parts = Parts::open(&dir, read_state(&dir)?.files.max(1))?;
        optimizer.iter_mut().try_for_each(|t| parts.read_into(t))
    };
    read().with_context(|| {
        format!(
            "read {}: with shard each rank reads its part of a checkpoint, so that --out must be one folder for all machines",
            dir.display()
        )
    })
}

/// Renames a damaged checkpoint, so that it is neither the newest nor counted; it goes at the end of the training.
fn set_aside(dir: &Path, why: anyhow::Error) -> Result<()> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let to = dir.with_file_name(format!("{DAMAGED}{name}"));
    remove(&to)?;
    std::fs::rename(dir, &to).with_context(|| format!("rename {}", dir.display()))?;
    note!(
        "train: {} is damaged ({why:#}), so an older one is used; it is now {}",
        dir.display(),
        to.display()
    );
    Ok(())
}

fn read_param(file: &Tensors, p: &Param) -> Result<()> {
    p.copy_from(&file.tensor(&p.name, p.value().shape(), DType::F32)?)
}

/// Removes all but the newest `keep` checkpoints.
pub fn prune(out: &Path, keep: usize) -> Result<()> {
    let all = list(out);
    for (_, dir) in all.iter().take(all.len().saturating_sub(keep)) {
        remove(dir)?;
    }
    Ok(())
}

/// The best parameters so far.
const BEST: &str = "best.safetensors.tmp";
/// In a checkpoint: everything but the tensors.
const STATE: &str = "state.json";
/// A checkpoint that is being written.
const PARTIAL: &str = "checkpoint.partial";
/// One that is being removed.
const GONE: &str = "checkpoint.gone";
/// Before the name of one that could not be read.
const DAMAGED: &str = "damaged-";

/// Keeps the current parameters as the best.
pub fn save_best(out: &Path, params: &[Param]) -> Result<()> {
    write_safetensors(&out.join(BEST), &values(params).iter().collect::<Vec<_>>(), DType::F32)
}

/// Puts the best parameters back.
pub fn load_best(out: &Path, params: &[Param]) -> Result<()> {
    let file = Tensors::open_file(&out.join(BEST))?;
    params.iter().try_for_each(|p| read_param(&file, p))
}

/// Removes what only an unfinished run needs.
pub fn clean(out: &Path) -> Result<()> {
    prune(out, 0)?;
    remove(&out.join(PARTIAL))?;
    remove(&out.join(GONE))?;
    for entry in std::fs::read_dir(out).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(DAMAGED) && is_ours(&entry.path()) {
            remove(&entry.path())?;
        }
    }
    remove_if_there(&out.join(BEST))
}
