//! Checkpoints: parameters and moments as safetensors, the rest as JSON; written beside and renamed, so that one is whole or absent.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::info_span;

use super::{early_stopping::EarlyStopping, guard::GuardState};
use crate::{
    data::files::write_atomic,
    models::{
        transformer::train_step::Param,
        weights::{export::write_safetensors, safetensors::Checkpoint as Tensors},
    },
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
    /// The settings that made it: a run with others must not go on from here.
    pub settings: Value,
}

/// The directory of the checkpoint at `step`.
pub fn dir_of(out: &Path, step: u64) -> PathBuf {
    out.join(format!("checkpoint-{step:08}"))
}

/// The parameters' values, by name.
fn values(params: &[Param]) -> Vec<(String, Tensor)> {
    params.iter().map(|p| (p.name.clone(), p.value.alias())).collect()
}

/// Writes the checkpoint of `state.step`.
pub fn save(out: &Path, state: &State, params: &[Param], moments: &[(Tensor, Tensor)]) -> Result<()> {
    let _span = info_span!("checkpoint", step = state.step).entered();
    let dir = dir_of(out, state.step);
    let partial = out.join("checkpoint.partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial).with_context(|| format!("remove {}", partial.display()))?;
    }
    std::fs::create_dir_all(&partial).with_context(|| format!("create {}", partial.display()))?;
    let mut tensors = values(params);
    for (p, (m, v)) in params.iter().zip(moments) {
        tensors.push((format!("{}.m", p.name), m.alias()));
        tensors.push((format!("{}.v", p.name), v.alias()));
    }
    write_safetensors(&partial.join("state.safetensors"), &tensors.iter().collect::<Vec<_>>(), DType::F32)?;
    write_atomic(&partial.join("state.json"), format!("{:#}\n", serde_json::to_value(state)?).as_bytes())?;
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    std::fs::rename(&partial, &dir).with_context(|| format!("rename to {}", dir.display()))
}

/// Every finished checkpoint in `out`, oldest first.
pub fn list(out: &Path) -> Vec<(u64, PathBuf)> {
    let entries = std::fs::read_dir(out).into_iter().flatten().flatten();
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(|e| {
            let step = e.file_name().to_string_lossy().strip_prefix("checkpoint-")?.parse().ok()?;
            Some((step, e.path()))
        })
        .collect();
    found.sort();
    found
}

/// Loads the newest checkpoint into `params` and `moments`, or `None` if there is none.
pub fn load_latest(out: &Path, params: &[Param], moments: &mut [(Tensor, Tensor)]) -> Result<Option<State>> {
    let Some((_, dir)) = list(out).pop() else { return Ok(None) };
    let path = dir.join("state.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let state: State = serde_json::from_str(&text)
        .with_context(|| format!("{} is corrupt: delete {}", path.display(), dir.display()))?;
    let file = Tensors::open_file(&dir.join("state.safetensors"))?;
    for (p, (m, v)) in params.iter().zip(moments) {
        read_into(&file, &p.name, &mut p.value.alias())?;
        read_into(&file, &format!("{}.m", p.name), m)?;
        read_into(&file, &format!("{}.v", p.name), v)?;
    }
    Ok(Some(state))
}

fn read_into(file: &Tensors, name: &str, out: &mut Tensor) -> Result<()> {
    let t = file.tensor(name, out.shape(), DType::F32)?;
    out.copy_from(&t)
}

/// Removes all but the newest `keep` checkpoints.
pub fn prune(out: &Path, keep: usize) -> Result<()> {
    let all = list(out);
    for (_, dir) in all.iter().take(all.len().saturating_sub(keep)) {
        std::fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    Ok(())
}

/// The best parameters so far.
const BEST: &str = "best.safetensors.tmp";

/// Keeps the current parameters as the best.
pub fn save_best(out: &Path, params: &[Param]) -> Result<()> {
    write_safetensors(&out.join(BEST), &values(params).iter().collect::<Vec<_>>(), DType::F32)
}

/// Puts the best parameters back.
pub fn load_best(out: &Path, params: &[Param]) -> Result<()> {
    let file = Tensors::open_file(&out.join(BEST))?;
    params.iter().try_for_each(|p| read_into(&file, &p.name, &mut p.value.alias()))
}

/// Removes what only an unfinished run needs.
pub fn clean(out: &Path) -> Result<()> {
    prune(out, 0)?;
    for name in [BEST, "checkpoint.partial"] {
        let path = out.join(name);
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        ensure!(removed.is_ok() || !path.exists(), "remove {}", path.display());
    }
    Ok(())
}
