//! `sdrrl export`: the log of a training for MLflow or Weights & Biases, as their own offline folders.
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    data::{files::FileContext, json::read_text},
    error::Error,
    pipeline::work_dir::{METRICS, RESULTS, Room},
    report::out::{note, say},
    train::tracking::{Tracked, Written, mlflow, wandb},
};

/// Arguments of `export`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Folder of a training, finished or not, or of a run, whose trainings are all exported
    pub folder: PathBuf,
    /// Add to this MLflow file store (a folder `mlruns`; made where it is not there)
    #[arg(long, value_name = "FOLDER", required_unless_present = "wandb")]
    pub mlflow: Option<PathBuf>,
    /// Add an offline run for `wandb sync` to this folder (Weights & Biases)
    #[arg(long, value_name = "FOLDER")]
    pub wandb: Option<PathBuf>,
    /// MLflow's experiment, or the project of Weights & Biases
    #[arg(long, value_name = "NAME", default_value = "sdrrl")]
    pub project: String,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let plain = !args.project.is_empty() && !args.project.contains(|c: char| c == '/' || c.is_control());
    let message = || format!("--project is {:?}: a name without `/` was expected", args.project);
    ensure!(plain, Error::setting("project", message()));
    let mut new = 0;
    for t in trainings(&args.folder)? {
        let what = if t.finished { "finished" } else { "not finished" };
        let steps = t.points.last().map_or(0, |p| p.step);
        if t.not_finite > 0 {
            note!("export: {}: {} values that are no finite numbers are left out", t.name, t.not_finite);
        }
        if t.cut {
            note!("export: {}: the last line of {METRICS} is being written, and is left out", t.name);
        }
        if let Some(root) = &args.mlflow {
            let what = format!("{} ({what}, {steps} steps) is the run", t.name);
            new += told(&what, &mlflow::write(&t, root, &args.project)?);
        }
        if let Some(root) = &args.wandb {
            let what = format!("{} ({what}, {steps} steps) is", t.name);
            new += told(&what, &wandb::write(&t, root, &args.project)?);
        }
    }
    let none = || format!("nothing of {} is exported: all of it is there already", args.folder.display());
    ensure!(new > 0, Error::exists(&args.folder, none()));
    if let Some(root) = &args.mlflow {
        say!("next:  MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {}", root.display());
    }
    if let Some(root) = &args.wandb {
        say!("next:  wandb sync {}/offline-run-*", root.display());
    }
    Ok(())
}

/// Says what became of a training; 1 where it is new. What an earlier call has exported keeps nothing else from being exported.
fn told(what: &str, written: &Written) -> usize {
    let path = written.path.display();
    match written.new {
        true => say!("export: {what} {path}"),
        false => note!("export: {path} is there already: remove it to export this training again"),
    }
    written.new.into()
}

/// The training in a folder, or those of the run in it with their results.
fn trainings(folder: &Path) -> Result<Vec<Tracked>> {
    let name = folder.canonicalize().reading(folder)?;
    let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if folder.join(METRICS).exists() {
        return Ok(vec![Tracked::read(folder, name)?]);
    }
    let variants = results(&folder.join(RESULTS))?;
    let alone = Room::Train(None).name();
    let mut all = vec![];
    let mut rooms: Vec<_> =
        std::fs::read_dir(folder).reading(folder)?.flatten().map(|e| e.file_name()).collect();
    rooms.sort();
    for room in rooms.iter().map(|room| room.to_string_lossy()) {
        let variant = room.strip_prefix(&format!("{alone}-"));
        let dir = folder.join(&*room);
        if !(room == alone || variant.is_some()) || !dir.join(METRICS).exists() {
            continue;
        }
        let mut t = Tracked::read(&dir, format!("{name} {room}"))?;
        for row in variant.and_then(|v| variants.get(v)).into_iter().flatten() {
            for (when, value) in [("before", row.before), ("after", row.after)] {
                let name = format!("results/{}/{}/{when}", row.task, row.metric);
                value.map(|x| t.summary.insert(name, x));
            }
        }
        all.push(t);
    }
    let none = || {
        format!(
            "{} holds no training, nor a run with one: {METRICS} was looked for there and in its folders {alone} and {alone}-*",
            folder.display()
        )
    };
    ensure!(!all.is_empty(), Error::not_found(folder, none()));
    Ok(all)
}

/// A figure of a run's results, as far as it is exported.
#[derive(Deserialize)]
struct Figure {
    task: String,
    metric: String,
    before: Option<f64>,
    after: Option<f64>,
}

/// The figures of a run by variant; none where it has not ended.
fn results(path: &Path) -> Result<BTreeMap<String, Vec<Figure>>> {
    #[derive(Deserialize)]
    struct Results {
        variants: BTreeMap<String, Vec<Figure>>,
    }
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let text = read_text(path).reading(path)?;
    // An arm's folders are shared with others and have no names of their own.
    let matrix = || {
        format!(
            "{} is of a matrix: its trainings are in the folder `cache` beside it, export that",
            path.display()
        )
    };
    let arms = serde_json::from_str::<Value>(&text).is_ok_and(|all| all.get("arms").is_some());
    ensure!(!arms, Error::bad_input(path.display().to_string(), matrix()));
    let found: Results =
        serde_json::from_str(&text).with_context(|| format!("{}: no results of a run", path.display()))?;
    Ok(found.variants)
}
