//! What makes a stage skippable: the hashes of its inputs, its settings, and the files it wrote.
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    io::{self, ErrorKind, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::data::files::{MANIFEST, PENDING, remove_if_there, write_atomic, write_error};

/// Files above this size are hashed by their size and sampled blocks.
const WHOLE_FILE_LIMIT: u64 = 64 << 20;
const BLOCK: u64 = 1 << 20;
const SAMPLED_BLOCKS: u64 = 64;

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
    /// Sizes in bytes of the files written, by path relative to the stage's folder.
    #[serde(default)]
    pub outputs: BTreeMap<String, u64>,
    /// What the stage says about its result (counts, rates); not compared.
    #[serde(default)]
    pub summary: Value,
}

/// How a folder stands to the manifest that a stage expects to leave there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Finished from the same inputs and settings, and its files are there.
    Done,
    /// No manifest.
    Absent,
    /// Finished, but not as asked now: what differs, one entry each, such as `settings.tau: 0.8 -> 0.75`.
    Changed(Vec<String>),
}

impl Manifest {
    /// The manifest that `stage` will leave when run on these inputs (name, file or folder) with these settings.
    pub fn expected(stage: &str, inputs: &[(&str, &Path)], settings: &impl Serialize) -> Result<Manifest> {
        let mut hashes = BTreeMap::new();
        for (name, path) in inputs {
            let hash = hash_path(path)
                .with_context(|| format!("read {} (input `{name}` of stage {stage})", path.display()))?;
            hashes.insert(name.to_string(), hash);
        }
        let settings =
            serde_json::to_value(settings).with_context(|| format!("settings of stage {stage}"))?;
        Ok(Manifest {
            stage: stage.to_string(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            inputs: hashes,
            settings: through_text(settings)?,
            outputs: BTreeMap::new(),
            summary: Value::Null,
        })
    }

    /// The manifest of a finished stage; `None` where there is none.
    pub fn load(dir: &Path) -> Result<Option<Manifest>> {
        let path = dir.join(MANIFEST);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
                anyhow!("{} is damaged ({e}): delete it and run the stage again", path.display())
            }),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Whether `dir` holds the finished result of exactly this, and if not, why. A damaged manifest counts as a difference. What a kill in the last
    /// moment of [`Manifest::finish`] left is removed.
    pub fn state(&self, dir: &Path) -> Result<State> {
        let old = match Manifest::load(dir) {
            Ok(Some(old)) => old,
            Ok(None) => return Ok(State::Absent),
            Err(e) => return Ok(State::Changed(vec![format!("{e:#}")])),
        };
        let mut changes = self.differences(&old);
        for (name, size) in &old.outputs {
            match fs::metadata(dir.join(name)) {
                Ok(found) if found.len() == *size => {}
                Ok(found) => changes.push(format!("{name}: {size} bytes -> {} bytes", found.len())),
                Err(_) => changes.push(format!("{name}: is gone")),
            }
        }
        if changes.is_empty() {
            // Of a process that was killed right after it had written the manifest.
            remove_if_there(&dir.join(PENDING))?;
            return Ok(State::Done);
        }
        Ok(State::Changed(changes))
    }

    /// Whether the stage has nothing to do in `dir`.
    pub fn is_done(&self, dir: &Path) -> Result<bool> {
        Ok(self.state(dir)? == State::Done)
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
                (None, _) => out.push(format!("input {name}: new")),
                (_, None) => out.push(format!("input {name}: no longer used")),
                _ => out.push(format!("input {name}: its content changed")),
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
    pub fn begin(&self, dir: &Path) -> Result<()> {
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
    pub fn finish(mut self, dir: &Path, summary: Value) -> Result<()> {
        fs::create_dir_all(dir).map_err(|e| write_error(dir, e))?;
        self.summary = summary;
        self.outputs.clear();
        for (name, path) in content_files(dir)? {
            let size = fs::metadata(&path).with_context(|| format!("read {}", path.display()))?.len();
            self.outputs.insert(name, size);
        }
        let mut text = serde_json::to_string_pretty(&self)?;
        text.push('\n');
        write_atomic(&dir.join(MANIFEST), text.as_bytes())?;
        remove_if_there(&dir.join(PENDING))
    }
}

/// What a value is after a trip through its text, so that it compares equal with one read from a manifest.
fn through_text(value: Value) -> Result<Value> {
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

/// The content hash of a file or a folder, 32 hexadecimal digits (xxh3, 128 bits).
///
/// A file up to 64 MiB is hashed whole; a larger one by its size and 64 blocks of 1 MiB spread evenly from its first to its last byte. A
/// folder is hashed by the names and contents of its `rows-*.jsonl` and `tokens-*` files or, where it has none, of all its files
/// (subfolders too), without manifests, indexes (`.idx`), unfinished (`.partial`) and hidden files.
pub fn hash_path(path: &Path) -> Result<String> {
    let mut hasher = Xxh3::new();
    if fs::metadata(path).with_context(|| format!("open {}", path.display()))?.is_dir() {
        for (name, file) in content_files(path)? {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hash_file(&file, &mut hasher)?;
        }
    } else {
        hash_file(path, &mut hasher)?;
    }
    Ok(format!("{:032x}", hasher.digest128()))
}

fn hash_file(path: &Path, hasher: &mut Xxh3) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let size = file.metadata().with_context(|| format!("open {}", path.display()))?.len();
    hasher.update(&size.to_le_bytes());
    let mut buffer = vec![0u8; BLOCK as usize];
    let mut block = |file: &mut File| -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        hasher.update(&buffer[..filled]);
        Ok(filled)
    };
    let mut hash = || -> io::Result<()> {
        if size <= WHOLE_FILE_LIMIT {
            while block(&mut file)? > 0 {}
        } else {
            for i in 0..SAMPLED_BLOCKS {
                file.seek(SeekFrom::Start((size - BLOCK) / (SAMPLED_BLOCKS - 1) * i))?;
                block(&mut file)?;
            }
            file.seek(SeekFrom::Start(size - BLOCK))?;
            block(&mut file)?;
        }
        Ok(())
    };
    hash().with_context(|| format!("read {}", path.display()))
}

/// The files that are a folder's content (see `hash_path`), sorted by their relative name.
fn content_files(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut files = vec![];
    walk(dir, "", 0, &mut files)?;
    let data = |name: &str| {
        !name.contains('/')
            && (name.starts_with("tokens-") || (name.starts_with("rows-") && name.ends_with(".jsonl")))
    };
    if files.iter().any(|(name, _)| data(name)) {
        files.retain(|(name, _)| data(name));
    }
    // Files that hold the time differ between two equal runs.
    files.retain(|(name, _)| !name.ends_with("timing.jsonl") && !name.contains("events.out.tfevents"));
    files.sort();
    Ok(files)
}

fn walk(dir: &Path, prefix: &str, depth: usize, out: &mut Vec<(String, PathBuf)>) -> Result<()> {
    if depth > 8 {
        bail!("{}: folders nested more than 8 deep (a link that leads back to itself?)", dir.display());
    }
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry.with_context(|| format!("list {}", dir.display()))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().to_string()).unwrap_or_default();
        let skip = name.starts_with('.')
            || name == MANIFEST
            || name == PENDING
            || name.ends_with(".partial")
            || name.ends_with(".idx");
        if skip {
            continue;
        }
        let mut full = prefix.to_string();
        let _ = write!(full, "{name}");
        let is_dir = fs::metadata(&path).with_context(|| format!("open {}", path.display()))?.is_dir();
        if is_dir { walk(&path, &format!("{full}/"), depth + 1, out)? } else { out.push((full, path)) }
    }
    Ok(())
}
