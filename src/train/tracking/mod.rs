//! The log of a training for the trackers that people have: read from its folder, afterwards or while it still runs, so that no step waits for it.
pub mod mlflow;
pub mod wandb;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_128;

use super::log::{StepTime, times};
use crate::{
    data::{
        files::{FileContext, partial_of, sync_folder, write_error},
        json::check,
    },
    error::Error,
    pipeline::{
        manifest::Manifest,
        work_dir::{METRICS, PAGE, TIMING},
    },
};

/// What was logged at one step, under the tags that TensorBoard shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Optimizer steps done.
    pub step: u64,
    /// When, seconds since 1970.
    pub time: f64,
    /// By tag.
    pub values: BTreeMap<String, f64>,
}

/// A training as a tracker has it.
#[derive(Clone, Debug)]
pub struct Tracked {
    /// What it is called there.
    pub name: String,
    /// The same training, in the same folder, has the same number.
    pub id: u128,
    /// Whether it ended; else it runs or was interrupted.
    pub finished: bool,
    /// When its first step began, seconds since 1970.
    pub started: f64,
    /// The steps that were logged, rising.
    pub points: Vec<Point>,
    /// Settings; the inputs' hashes, version and vector instructions.
    pub config: Map<String, Value>,
    /// Numbers about the whole, by name.
    pub summary: BTreeMap<String, f64>,
    /// training.html, once it is there.
    pub page: Option<PathBuf>,
    /// Values that were left out, since they were no finite numbers.
    pub not_finite: usize,
    /// Whether the log ends within a line, which was left out.
    pub cut: bool,
}

impl Tracked {
    /// Reads the training in `dir`.
    ///
    /// # Errors
    /// No training there; a line of metrics.jsonl, but a last one that is being written, that is not one of a log.
    pub fn read(dir: &Path, name: String) -> Result<Tracked> {
        let done = Manifest::load(dir)?;
        let none = || format!("{}: no training has begun there", dir.display());
        let finished = done.is_some();
        let manifest =
            done.or_else(|| Manifest::pending(dir)).ok_or_else(|| Error::not_found(dir, none()))?;
        let (mut points, not_finite, cut) = logged(&dir.join(METRICS))?;
        let started = date(dir, &mut points)?;
        let mut config = manifest.settings.as_object().cloned().unwrap_or_default();
        config.insert("inputs".into(), json!(manifest.inputs));
        config.insert("version".into(), json!(manifest.version));
        config.insert("processor".into(), json!(manifest.processor));
        let mut summary = BTreeMap::new();
        flatten("summary", &manifest.summary, "/", &mut |name, value| {
            value.as_f64().map(|x| summary.insert(name, x));
        });
        let place = dir.canonicalize().reading(dir)?;
        let id = xxh3_128(json!([place.to_string_lossy(), manifest.job()]).to_string().as_bytes());
        let page = Some(dir.join(PAGE)).filter(|page| page.exists());
        Ok(Tracked { name, id, finished, started, points, config, summary, page, not_finite, cut })
    }

    /// When the last step ended, seconds since 1970.
    fn ended(&self) -> f64 {
        self.points.last().map_or(self.started, |p| p.time)
    }
}

/// The steps of a log, the values that are no finite numbers (JSON has `null` for them), and whether the last line is cut off.
fn logged(path: &Path) -> Result<(Vec<Point>, usize, bool)> {
    let text = std::fs::read_to_string(path).reading(path)?;
    check(text.as_bytes()).with_context(|| path.display().to_string())?;
    let cut = !text.is_empty() && !text.ends_with('\n');
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    let (mut steps, mut not_finite) = (BTreeMap::<u64, BTreeMap<String, f64>>::new(), 0);
    for (line, number) in whole.lines().zip(1..) {
        let place = format!("{}:{number}", path.display());
        let wrong = |what: String| Error::bad_input(&place, format!("{place}: {what}"));
        let map: Map<String, Value> =
            serde_json::from_str(line).map_err(|e| wrong(format!("no line of a log: {e}")))?;
        let step = map.get("step").and_then(Value::as_u64);
        let values = steps.entry(step.ok_or_else(|| wrong("no `step`".into()))?).or_default();
        for (tag, value) in map.into_iter().filter(|(tag, _)| tag != "step") {
            match value {
                Value::Null => not_finite += 1,
                Value::Number(x) => drop(values.insert(tag, x.as_f64().unwrap_or(f64::NAN))),
                other => bail!(wrong(format!("`{tag}` is {other}: a number was expected"))),
            }
        }
    }
    let points = steps.into_iter().map(|(step, values)| Point { step, time: 0.0, values });
    Ok((points.collect(), not_finite, cut))
}

/// Gives every point its time, and its speed and memory; the time at which the first step began.
fn date(dir: &Path, points: &mut [Point]) -> Result<f64> {
    let timed = times(dir);
    let clock = if timed.is_empty() { dir.join(METRICS) } else { dir.join(TIMING) };
    let written = clock.metadata().and_then(|m| m.modified()).reading(&clock)?;
    let mut end = written.duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    let mut started = end;
    // Where the clock says nothing, back from the last line that was written.
    let mut ends: BTreeMap<u64, (f64, StepTime)> = BTreeMap::new();
    for (step, time) in timed.into_iter().rev() {
        end = time.ended.unwrap_or(end);
        ends.insert(step, (end, time));
        end -= time.seconds;
        started = end;
    }
    for point in points {
        point.time = ends.range(..=point.step).next_back().map_or(started, |(_, (end, _))| *end);
        if let Some((_, time)) = ends.get(&point.step) {
            point.values.extend(time.values().map(|(tag, x)| (tag.to_string(), x)));
        }
    }
    Ok(started)
}

/// Calls `f` with every value of `value` that holds no others by name, and its name: the keys on the way to it, and between them `gap`.
fn flatten(name: &str, value: &Value, gap: &str, f: &mut dyn FnMut(String, &Value)) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            let below = if name.is_empty() { key.clone() } else { format!("{name}{gap}{key}") };
            flatten(&below, value, gap, f)
        }),
        other => f(name.into(), other),
    }
}

/// A folder with a training, for a tracker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The folder.
    pub path: PathBuf,
    /// Whether it was made now; one that was there already is as it was.
    pub new: bool,
}

/// Makes a folder that appears whole or not at all; one that is there is never touched.
fn folder(path: PathBuf, fill: impl FnOnce(&Path) -> Result<()>) -> Result<Written> {
    if path.exists() {
        return Ok(Written { path, new: false });
    }
    let partial = partial_of(&path);
    let made = std::fs::create_dir_all(&partial).map_err(|e| write_error(&partial, e));
    let filled = made.and_then(|()| fill(&partial));
    let renamed = filled.and_then(|()| std::fs::rename(&partial, &path).map_err(|e| write_error(&path, e)));
    if renamed.is_err() {
        let _ = std::fs::remove_dir_all(&partial);
    }
    renamed.with_context(|| format!("export to {}", path.display()))?;
    sync_folder(&path);
    Ok(Written { path, new: true })
}
