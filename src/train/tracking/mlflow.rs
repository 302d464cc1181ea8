//! MLflow's file store: `ROOT/EXPERIMENT/RUN` with meta.yaml, params, metrics, tags, artifacts (mlflow/store/tracking/file_store.py).
//!
//! Since 3.7 MLflow reads such folders only with MLFLOW_ALLOW_FILE_STORE=true; `mlflow migrate-filestore` makes a database of them.
use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::{Tracked, Written, flatten, folder};
use crate::{
    data::files::{FileContext, write_atomic, write_error},
    error::Error,
};

/// mlflow.entities.RunStatus.
const RUNNING: u8 = 1;
const FINISHED: u8 = 3;
/// mlflow.entities.SourceType.LOCAL.
const LOCAL: u8 = 4;

/// Adds the training to the store `root`, in its experiment `experiment`; both are made where they are not there. The run's folder.
///
/// # Errors
/// Names that cannot be files; a file cannot be written.
pub fn write(t: &Tracked, root: &Path, experiment: &str) -> Result<Written> {
    fs::create_dir_all(root).map_err(|e| write_error(root, e))?;
    let root = &root.canonicalize().reading(root)?;
    let id = experiment_id(root, experiment, t.started)?;
    let run = format!("{:032x}", t.id);
    let path = root.join(&id).join(&run);
    folder(path.clone(), |dir| {
        let named = |kind: &str, name: &str| Ok::<_, anyhow::Error>(dir.join(kind).join(file_name(name)?));
        let mut all: Vec<(String, String)> = vec![];
        flatten("", &Value::Object(t.config.clone()), ".", &mut |name, value| {
            let text = value.as_str().map_or_else(|| value.to_string(), String::from);
            all.push((name, text));
        });
        for (name, text) in all {
            put(&named("params", &name)?, &text)?;
        }
        for (name, lines) in metrics(t) {
            put(&named("metrics", name)?, &lines)?;
        }
        for (name, text) in [
            ("mlflow.runName", t.name.as_str()),
            ("mlflow.source.name", "sdrrl"),
            ("mlflow.source.type", "LOCAL"),
        ] {
            put(&named("tags", name)?, text)?;
        }
        let artifacts = dir.join("artifacts");
        fs::create_dir_all(&artifacts).map_err(|e| write_error(&artifacts, e))?;
        if let Some(page) = &t.page {
            let to = artifacts.join(page.file_name().unwrap_or_default());
            fs::copy(page, &to).with_context(|| format!("copy {} to {}", page.display(), to.display()))?;
        }
        let end = if t.finished { json!(millis(t.ended())) } else { Value::Null };
        let meta = [
            ("artifact_uri", json!(uri(&path.join("artifacts")))),
            ("end_time", end),
            ("entry_point_name", json!("")),
            ("experiment_id", json!(id)),
            ("lifecycle_stage", json!("active")),
            ("run_id", json!(run)),
            ("run_name", json!(t.name)),
            ("source_name", json!("")),
            ("source_type", json!(LOCAL)),
            ("source_version", json!("")),
            ("start_time", json!(millis(t.started))),
            ("status", json!(if t.finished { FINISHED } else { RUNNING })),
            ("tags", json!([])),
            ("user_id", json!("")),
        ];
        put(&dir.join("meta.yaml"), &yaml(&meta))
    })
}

/// A line `milliseconds value step` for each value of each tag; what is about the whole stands at the last step.
fn metrics(t: &Tracked) -> BTreeMap<&str, String> {
    let mut all = BTreeMap::<&str, String>::new();
    let mut line = |name, time, value: f64, step| {
        *all.entry(name).or_default() += &format!("{} {} {step}\n", millis(time), json!(value));
    };
    for point in &t.points {
        point.values.iter().for_each(|(tag, x)| line(tag, point.time, *x, point.step));
    }
    let last = t.points.last().map_or(0, |p| p.step);
    t.summary.iter().for_each(|(name, x)| line(name, t.ended(), *x, last));
    all
}

/// The experiment of that name in the store; a new one where there is none.
fn experiment_id(root: &Path, name: &str, created: f64) -> Result<String> {
    for entry in fs::read_dir(root).reading(root)?.flatten() {
        let meta = fs::read_to_string(entry.path().join("meta.yaml")).unwrap_or_default();
        if meta.lines().filter_map(|line| line.strip_prefix("name: ")).any(|found| unquoted(found) == name) {
            return Ok(entry.file_name().to_string_lossy().into_owned());
        }
    }
    // As MLflow's own: 18 digits.
    let number = xxh3_64(name.as_bytes()) % 900_000_000_000_000_000 + 100_000_000_000_000_000;
    let id = number.to_string();
    let dir = root.join(&id);
    let meta = [
        ("artifact_location", json!(uri(&dir))),
        ("creation_time", json!(millis(created))),
        ("experiment_id", json!(id)),
        ("last_update_time", json!(millis(created))),
        ("lifecycle_stage", json!("active")),
        ("name", json!(name)),
    ];
    let taken = || format!("{} is another experiment: choose another --project", dir.display());
    ensure!(!dir.exists(), Error::exists(&dir, taken()));
    fs::create_dir_all(&dir).map_err(|e| write_error(&dir, e))?;
    write_atomic(&dir.join("meta.yaml"), yaml(&meta).as_bytes())?;
    Ok(id)
}

/// A YAML scalar as MLflow and [`yaml`] write names: plain, or in quotes.
fn unquoted(scalar: &str) -> String {
    let single = scalar.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
    match single {
        Some(inner) => inner.replace("''", "'"),
        None => serde_json::from_str(scalar).unwrap_or_else(|_| scalar.into()),
    }
}

/// `key: value` lines: every JSON value is one of YAML.
fn yaml(entries: &[(&str, Value)]) -> String {
    entries.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
}

/// A name as a path: what MLflow takes in names, `_` for anything else.
fn file_name(name: &str) -> Result<String> {
    let known = |c: char| c.is_alphanumeric() || "_-. :/".contains(c);
    let clean: String = name.chars().map(|c| if known(c) { c } else { '_' }).collect();
    if clean.split('/').any(|part| matches!(part, "" | "." | "..")) {
        bail!(Error::bad_input(
            name,
            format!(
                "`{name}` cannot be the name of a file: MLflow keeps a file for each parameter and metric"
            )
        ));
    }
    Ok(clean)
}

fn put(path: &Path, text: &str) -> Result<()> {
    let twice =
        || format!("{} would be written twice: two names are the same file to MLflow", path.display());
    ensure!(!path.exists(), Error::exists(path, twice()));
    let dir = path.parent().unwrap_or(path);
    fs::create_dir_all(dir).map_err(|e| write_error(dir, e))?;
    fs::write(path, text).map_err(|e| write_error(path, e))
}

fn millis(seconds: f64) -> u64 {
    (seconds * 1e3).round() as u64
}

/// `file://` with everything escaped that is not plain.
fn uri(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/-._~".contains(b);
    let escaped = |b: &u8| if plain(b) { (*b as char).to_string() } else { format!("%{b:02X}") };
    format!("file://{}", path.as_os_str().as_bytes().iter().map(escaped).collect::<String>())
}
