//! What makes a stage skippable: the hashes of its inputs, its settings, and the files it wrote.
use std::{collections::BTreeMap, fs, io::ErrorKind, path::Path};

use crate::data::files::FileContext;
use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    hash::{content_files, hash_path},
    identity::{Identity, Inputs, readable},
};
use crate::data::files::{MANIFEST, PENDING, remove_if_there, write_atomic, write_error};
use crate::device::vectors;

/// What came in, what came out, and what was dropped on purpose: `read = written + dropped` or the stage fails.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Units (rows, lines, examples) that were read.
    pub read: usize,
    /// Of them, those whose result was written.
    pub written: usize,
    /// The others, by reason.
    #[serde(default)]
    pub dropped: BTreeMap<String, usize>,
}

impl Counts {
    /// One result for each of `n`.
    pub fn all(n: usize) -> Counts {
        Counts { read: n, written: n, dropped: BTreeMap::new() }
    }

    /// With `n` dropped for `reason` (0: nothing is noted).
    pub fn dropping(mut self, reason: &str, n: usize) -> Counts {
        if n > 0 {
            *self.dropped.entry(reason.to_string()).or_default() += n;
        }
        self
    }

    /// An error if something is missing.
    pub fn check(&self, stage: &str) -> Result<()> {
        let dropped: usize = self.dropped.values().sum();
        ensure!(
            self.read == self.written + dropped,
            "stage {stage}: {} came in, but {} came out and {dropped} were dropped: the result would be incomplete, so it is not taken as finished",
            self.read,
            self.written
        );
        Ok(())
    }
}

/// What a stage was made from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The stage's name.
    pub stage: String,
    /// The version of this program.
    pub version: String,
    /// By name: the content hash of each input.
    pub inputs: BTreeMap<String, String>,
    /// The resolved settings.
    pub settings: Value,
    /// The vector instructions that computed it ([`vectors::processor`]): bytes are promised to be the same for the same ones; not compared.
    #[serde(default)]
    pub processor: String,
    /// Sizes in bytes of the files written, by path relative to the stage's folder.
    #[serde(default)]
    pub outputs: BTreeMap<String, u64>,
    /// What came in and out; not compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
    /// Rows in the folder's row shards, where it has any: whoever reads them must find as many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<usize>,
    /// What the stage says about its result (rates, losses); not compared.
    #[serde(default)]
    pub summary: Value,
}

/// How a folder stands to the manifest that a stage expects to leave there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FolderState {
    /// Finished from the same inputs and settings, and its files are there.
    Done,
    /// No manifest.
    Absent,
    /// Finished, but not as asked now: what differs, one entry each, such as `settings.tau: 0.8 -> 0.75`.
    Changed(Vec<String>),
}

impl Manifest {
    /// The manifest that `stage` will leave when run on these inputs with these settings.
    pub fn expected(stage: &str, inputs: &Inputs, settings: &Identity) -> Result<Manifest> {
        let mut hashes = BTreeMap::new();
        for (name, path) in &inputs.0 {
            let hash = hash_path(path)
                .with_context(|| format!("read {} (input `{name}` of stage {stage})", path.display()))?;
            hashes.insert(name.to_string(), hash);
        }
        Ok(Manifest {
            stage: stage.to_string(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            inputs: hashes,
            settings: through_text(&settings.0)?,
            processor: vectors::processor(),
            outputs: BTreeMap::new(),
            counts: None,
            rows: None,
            summary: Value::Null,
        })
    }

    /// The manifest of a finished stage; `None` where there is none.
    pub fn load(dir: &Path) -> Result<Option<Manifest>> {
        let path = dir.join(MANIFEST);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
                let path = path.display();
                anyhow!("{path} is not a manifest of this program, or is damaged ({e}): choose another folder, or move it away")
            }),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(e).reading(&path),
        }
    }

    /// Whether `dir` holds the finished result of exactly this, and if not, why. A damaged manifest counts as a difference.
    pub fn state(&self, dir: &Path) -> Result<FolderState> {
        let old = match Manifest::load(dir) {
            Ok(Some(old)) => old,
            Ok(None) => return Ok(FolderState::Absent),
            Err(e) => return Ok(FolderState::Changed(vec![format!("{e:#}")])),
        };
        let mut changes = self.differences(&old);
        for (name, size) in &old.outputs {
            match fs::metadata(dir.join(name)) {
                Ok(found) if found.len() == *size => {}
                Ok(found) => changes.push(format!("{name}: {size} bytes -> {} bytes", found.len())),
                Err(_) => changes.push(format!("{name}: is gone")),
            }
        }
        Ok(if changes.is_empty() { FolderState::Done } else { FolderState::Changed(changes) })
    }

    /// What was begun in `dir` and has not ended.
    pub fn pending(dir: &Path) -> Option<Manifest> {
        serde_json::from_slice(&fs::read(dir.join(PENDING)).ok()?).ok()
    }

    /// What differs between an older manifest and this one, outputs and summary aside.
    pub fn differences(&self, old: &Manifest) -> Vec<String> {
        let mut out = vec![];
        if self.stage != old.stage {
            out.push(format!("stage: {} -> {}", old.stage, self.stage));
        }
        if self.version != old.version {
            out.push(format!("version: {} -> {}", old.version, self.version));
        }
        for name in self.inputs.keys().chain(old.inputs.keys().filter(|n| !self.inputs.contains_key(*n))) {
            match (old.inputs.get(name), self.inputs.get(name)) {
                (a, b) if a == b => {}
                (None, _) => out.push(format!("{} is new", readable(name))),
                (_, None) => out.push(format!("{} is no longer read", readable(name))),
                _ => out.push(format!("{} changed", readable(name))),
            }
        }
        value_differences("settings", &old.settings, &self.settings, &mut out);
        out
    }

    /// A number for (stage, version, inputs, settings): the same work has the same number.
    pub fn job(&self) -> u64 {
        let key = serde_json::json!([self.stage, self.version, self.inputs, self.settings]);
        xxh3_64(key.to_string().as_bytes())
    }

    /// Says that work on `dir` has begun: the folder has no valid manifest until `finish`.
    pub(super) fn begin(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).map_err(|e| write_error(dir, e))?;
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        let pending = dir.join(PENDING);
        if fs::read(&pending).ok().as_deref() != Some(text.as_bytes()) {
            write_atomic(&pending, text.as_bytes())?;
        }
        remove_if_there(&dir.join(MANIFEST))
    }

    /// Writes `manifest.json` (atomically) with the sizes of the files in `dir`; from then on the stage is finished.
    pub(super) fn finish(self, dir: &Path) -> Result<()> {
        if let Some(counts) = &self.counts {
            counts.check(&self.stage)?;
        }
        let mut outputs = BTreeMap::new();
        for (name, path) in content_files(dir)? {
            let size = fs::metadata(&path).reading(&path)?.len();
            outputs.insert(name, size);
        }
        self.finish_with(dir, outputs)
    }

    /// The same with these sizes.
    pub(super) fn finish_with(mut self, dir: &Path, outputs: BTreeMap<String, u64>) -> Result<()> {
        self.outputs = outputs;
        let mut text = serde_json::to_string_pretty(&self)?;
        text.push('\n');
        write_atomic(&dir.join(MANIFEST), text.as_bytes())?;
        remove_if_there(&dir.join(PENDING))
    }
}

/// What a value is after a trip through its text, so that it compares equal with one read from a manifest.
fn through_text(value: &Value) -> Result<Value> {
    Ok(serde_json::from_str(&value.to_string())?)
}

fn value_differences(at: &str, old: &Value, new: &Value, out: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                value_differences(&format!("{at}.{key}"), value, b.get(key).unwrap_or(&Value::Null), out);
            }
            for (key, value) in b.iter().filter(|(key, _)| !a.contains_key(*key)) {
                value_differences(&format!("{at}.{key}"), &Value::Null, value, out);
            }
        }
        _ if old != new => out.push(format!("{at}: {} -> {}", short(old), short(new))),
        _ => {}
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("...".chars()).collect() }
}
