//! metrics.jsonl (no clock in it, so that equal runs write equal bytes), timing.jsonl (the clock), and TensorBoard, with transformers' tags.
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::{
    on_policy::Answered,
    tensorboard::{EventWriter, now},
};
use crate::{
    data::files::{write_atomic, write_error},
    pipeline::work_dir::{METRICS, TIMING},
    report::environment::resident_memory,
};

/// What the clock says of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTime {
    /// How long it took.
    pub seconds: f64,
    /// Tokens of it.
    pub tokens: f64,
    /// Memory of the process behind it, bytes.
    pub memory: Option<f64>,
    /// When it ended, seconds since 1970; logs of older versions do not say.
    pub ended: Option<f64>,
}

/// The steps that were timed in the folder of a training; none where it has no clock. Of a step that was done again after a kill the last time counts.
pub fn times(dir: &Path) -> BTreeMap<u64, StepTime> {
    let text = std::fs::read_to_string(dir.join(TIMING)).unwrap_or_default();
    let step = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        let (seconds, tokens) = (line["seconds"].as_f64()?, line["tokens"].as_f64()?);
        let (memory, ended) = (line["memory"].as_f64(), line["ended"].as_f64());
        Some((line["step"].as_u64()?, StepTime { seconds, tokens, memory, ended }))
    };
    text.lines().filter_map(step).collect()
}

impl StepTime {
    /// Speed and memory, by tag.
    pub(super) fn values(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let memory = self.memory.map(|bytes| ("perf/memory_mib", bytes / 1048576.0));
        [("perf/tokens_per_second", self.tokens / self.seconds.max(1e-9))].into_iter().chain(memory)
    }
}

/// The logs of one training run.
pub struct Log {
    path: PathBuf,
    metrics: File,
    timing: File,
    events: EventWriter,
}

impl Log {
    /// Opens the logs in `dir`, keeping what an interrupted run had written up to `step` (0: nothing; what stands before the first step is measured again).
    pub fn open(dir: &Path, step: u64) -> Result<Log> {
        let path = dir.join(METRICS);
        let old = std::fs::read_to_string(&path).unwrap_or_default();
        let at = |line: &str| serde_json::from_str::<Value>(line).ok().and_then(|v| v["step"].as_u64());
        let kept: Vec<&str> =
            old.lines().take_while(|line| step > 0 && at(line).is_some_and(|s| s <= step)).collect();
        let text: String = kept.iter().map(|line| format!("{line}\n")).collect();
        write_atomic(&path, text.as_bytes())?;
        let append = |path: &Path| {
            OpenOptions::new().create(true).append(true).open(path).map_err(|e| write_error(path, e))
        };
        let mut log = Log {
            metrics: append(&path)?,
            timing: append(&dir.join(TIMING))?,
            events: EventWriter::create(dir)?,
            path,
        };
        for line in kept {
            let value: Map<String, Value> =
                serde_json::from_str(line).with_context(|| format!("{}", log.path.display()))?;
            log.event(&value)?;
        }
        Ok(log)
    }

    /// One line: `step` and values by tag.
    pub fn write(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut line = Map::new();
        line.insert("step".into(), json!(step));
        values.iter().for_each(|(tag, x)| drop(line.insert(tag.to_string(), json!(x))));
        self.event(&line)?;
        let text = format!("{}\n", Value::Object(line));
        self.metrics.write_all(text.as_bytes()).map_err(|e| write_error(&self.path, e))
    }

    /// Speed and memory, for people; of answers that were drawn for the step their share of the time.
    pub fn time(&mut self, step: u64, seconds: f64, tokens: usize, answered: Option<Answered>) -> Result<()> {
        let memory = resident_memory();
        let mut line =
            json!({"step": step, "seconds": seconds, "tokens": tokens, "memory": memory, "ended": now()});
        if let Some(a) = answered {
            line["answer-tokens"] = json!(a.tokens);
            line["answer-seconds"] = json!(a.seconds);
            let rate = a.tokens as f64 / a.seconds.max(1e-9);
            self.events.scalar("perf/answer_tokens_per_second", step, rate as f32)?;
        }
        let (tokens, memory) = (tokens as f64, memory.map(|bytes| bytes as f64));
        let time = StepTime { seconds, tokens, memory, ended: None };
        for (tag, x) in time.values() {
            self.events.scalar(tag, step, x as f32)?;
        }
        writeln!(self.timing, "{line}").map_err(|e| write_error(&self.path, e))
    }

    fn event(&mut self, line: &Map<String, Value>) -> Result<()> {
        let step = line.get("step").and_then(Value::as_u64).unwrap_or(0);
        for (tag, value) in line {
            if let (true, Some(x)) = (tag != "step", value.as_f64()) {
                self.events.scalar(tag, step, x as f32)?;
            }
        }
        Ok(())
    }
}
