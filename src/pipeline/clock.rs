//! How long stages took, for the page of whoever ran them. Times are no part of a result: `timing.jsonl` is left out of every hash.
use std::{
    cell::RefCell,
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use serde_json::{Value, json};

use super::work_dir::TIMING;
use crate::{data::files::write_error, report::environment::peak_memory};

/// A stage that did some work.
struct Took {
    dir: PathBuf,
    seconds: f64,
}

thread_local! {
    static TAKEN: RefCell<Vec<Took>> = const { RefCell::new(vec![]) };
}

/// A stage of this thread worked in `dir` for so long.
pub fn note(dir: &Path, seconds: f64) {
    TAKEN.with_borrow_mut(|taken| taken.push(Took { dir: dir.to_path_buf(), seconds }));
}

/// Appends what the stages of this thread took since the last call to `work/timing.jsonl`, a line per stage: `stage` (its folder in `work`), `seconds`, `ended`
/// (seconds since 1970), `peak-memory` (of the process, bytes).
///
/// # Errors
/// The file cannot be written.
pub fn record(work: &Path) -> Result<()> {
    let taken = TAKEN.take();
    if taken.is_empty() {
        return Ok(());
    }
    let ended = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut text = String::new();
    for took in &taken {
        let stage = took.dir.strip_prefix(work).unwrap_or(&took.dir).to_string_lossy();
        let line =
            json!({"stage": stage, "seconds": took.seconds, "ended": ended, "peak-memory": peak_memory()});
        text += &format!("{line}\n");
    }
    let path = work.join(TIMING);
    let file = OpenOptions::new().create(true).append(true).open(&path);
    file.and_then(|mut f| f.write_all(text.as_bytes())).map_err(|e| write_error(&path, e))
}

/// A line of [`record`], as it is read.
#[derive(Clone, Debug, PartialEq)]
pub struct StageTime {
    /// The stage's folder.
    pub stage: String,
    /// Of all runs of the stage together.
    pub seconds: f64,
    /// The highest of its processes, bytes.
    pub peak_memory: Option<u64>,
}

/// What `work/timing.jsonl` says, by stage in the order of their first ends; nothing where there is no such file. Lines that say something else are passed over.
pub fn read(work: &Path) -> Vec<StageTime> {
    let text = std::fs::read_to_string(work.join(TIMING)).unwrap_or_default();
    let mut all: Vec<StageTime> = vec![];
    for line in text.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        let (Some(stage), Some(seconds)) = (line["stage"].as_str(), line["seconds"].as_f64()) else {
            continue;
        };
        let peak = line["peak-memory"].as_u64();
        match all.iter_mut().find(|t| t.stage == stage) {
            Some(known) => {
                known.seconds += seconds;
                known.peak_memory = known.peak_memory.max(peak);
            }
            None => all.push(StageTime { stage: stage.into(), seconds, peak_memory: peak }),
        }
    }
    all
}

/// The seconds of the longest run of the stage in `work`'s folder `stage`: one that did all of it, not a part after a kill.
pub fn longest(work: &Path, stage: &str) -> Option<f64> {
    let text = std::fs::read_to_string(work.join(TIMING)).ok()?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["stage"] == stage).filter_map(|line| line["seconds"].as_f64()).reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_a_stage_add_up_over_runs() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), []);
        record(dir.path()).unwrap();
        assert!(!dir.path().join(TIMING).exists(), "nothing was done");
        note(&dir.path().join("eval-base/qa"), 1.5);
        note(&dir.path().join("pack"), 0.25);
        record(dir.path()).unwrap();
        note(&dir.path().join("eval-base/qa"), 0.5);
        record(dir.path()).unwrap();
        let file = OpenOptions::new().append(true).open(dir.path().join(TIMING));
        file.unwrap().write_all(b"{\"stage\": 3}\n{\"step\": 1, \"seconds\": 2.0}\nhalf a li").unwrap();
        let all: Vec<(String, f64)> = read(dir.path()).into_iter().map(|t| (t.stage, t.seconds)).collect();
        assert_eq!(all, [("eval-base/qa".into(), 2.0), ("pack".into(), 0.25)]);
        assert_eq!((longest(dir.path(), "eval-base/qa"), longest(dir.path(), "x")), (Some(1.5), None));
    }
}
