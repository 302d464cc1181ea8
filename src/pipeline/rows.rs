//! The driver of every stage that maps rows to rows: skip what is finished, resume in the middle of a shard, work on a part of the shards.
use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::overlap::{Parts, map_chunks};
use crate::data::{
    files::{MANIFEST, PENDING, remove_if_there, write_error},
    language_id,
    record::Row,
    row_shard::{RowSet, RowShard, ShardWriter, partials_of, shard_name, shard_paths},
};
use crate::pipeline::manifest::{Manifest, State};

/// A share of the shards, for job arrays: `3/8` works on the third, eleventh, ... shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// 1-based.
    pub index: usize,
    /// Number of parts.
    pub of: usize,
}

impl Default for Part {
    fn default() -> Part {
        Part { index: 1, of: 1 }
    }
}

impl Part {
    /// Whether the shard with this number belongs to the part.
    pub fn has(&self, shard: usize) -> bool {
        shard % self.of == self.index - 1
    }
}

impl FromStr for Part {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Part> {
        let parse = || -> Option<Part> {
            let (index, of) = text.split_once('/')?;
            let part = Part { index: index.parse().ok()?, of: of.parse().ok()? };
            (part.index >= 1 && part.index <= part.of).then_some(part)
        };
        parse().ok_or_else(|| anyhow!("`{text}` is not a part: write I/N with 1 <= I <= N, such as 3/8"))
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

/// Where a row stage reads and writes.
#[derive(Clone, Debug, clap::Args)]
pub struct RowArgs {
    /// Rows: a folder written by the previous stage, or a JSONL file
    #[arg(long)]
    pub input: PathBuf,
    /// Folder to write the rows and their manifest to
    #[arg(long)]
    pub out: PathBuf,
    /// Work on one part of the shards, such as 3/8: one run per job-array task
    #[arg(long, default_value = "1/1")]
    pub part: Part,
    /// Language of the questions
    #[arg(long, default_value = "en")]
    pub source_language: String,
    /// Languages to teach
    #[arg(long, value_delimiter = ',', required = true)]
    pub target_languages: Vec<String>,
}

impl RowArgs {
    /// The languages' own codes; unknown ones are errors.
    pub fn languages(&self) -> Result<(String, Vec<String>)> {
        let targets: Vec<String> =
            self.target_languages.iter().map(|l| language_id::code(l)).collect::<Result<_>>()?;
        let source = language_id::code(&self.source_language)?;
        ensure!(!targets.is_empty(), "give at least one target language");
        for (i, target) in targets.iter().enumerate() {
            ensure!(*target != source, "{source} is the source language and a target language");
            ensure!(!targets[..i].contains(target), "target language {target} occurs twice");
        }
        Ok((source, targets))
    }

    /// Runs `f` over all rows, `chunk` at a time; each element of `inputs` is a further file that decides the result.
    pub fn map(
        &self,
        stage: &str,
        settings: &impl Serialize,
        extra_inputs: Vec<(String, PathBuf)>,
        chunk: usize,
        f: &mut dyn FnMut(Vec<Row>) -> Result<Vec<Row>>,
    ) -> Result<RowsSummary> {
        map_rows(&self.job(stage, settings, extra_inputs)?, chunk, f)
    }

    /// The job of `stage`; each element of `inputs` is a further file that decides the result.
    pub fn job<'a>(
        &'a self,
        stage: &'a str,
        settings: &impl Serialize,
        extra_inputs: Vec<(String, PathBuf)>,
    ) -> Result<RowsJob<'a>> {
        let (source, targets) = self.languages()?;
        let mut settings = serde_json::to_value(settings)?;
        settings["source-language"] = json!(source);
        settings["target-languages"] = json!(targets);
        Ok(RowsJob {
            stage,
            input: &self.input,
            out: &self.out,
            part: self.part,
            settings,
            extra_inputs,
            quiet: false,
        })
    }
}

/// `text` with {source}, {target} (codes) and {source3}, {target3} (three letters) filled in.
pub fn with_languages(text: &str, source: &str, target: &str) -> String {
    let three = |code: &str| {
        let nllb = || code.split('_').next().unwrap_or_default().to_string();
        language_id::find(code).map_or_else(nllb, |l| l.code3.to_string())
    };
    text.replace("{source3}", &three(source))
        .replace("{target3}", &three(target))
        .replace("{source}", source)
        .replace("{target}", target)
}

/// As [`with_languages`], for a path that must be given.
pub fn path_for(path: &Option<PathBuf>, key: &str, source: &str, target: &str) -> Result<PathBuf> {
    let path = path.as_ref().with_context(|| format!("{key} is not set: give a file"))?;
    Ok(PathBuf::from(with_languages(&path.to_string_lossy(), source, target)))
}

/// The files whose content decides what a dictionary at `path` says, for manifests.
pub fn dictionary_files(name: &str, path: &Path) -> Vec<(String, PathBuf)> {
    let text = path.to_string_lossy();
    let stem = [".index", ".dict.dz", ".dict"].iter().find_map(|s| text.strip_suffix(s));
    let Some(stem) = stem else { return vec![(name.into(), path.into())] };
    [".index", ".dict", ".dict.dz"]
        .iter()
        .map(|s| (format!("{name}{s}"), PathBuf::from(format!("{stem}{s}"))))
        .filter(|(_, p)| p.exists())
        .collect()
}

/// Prints what a row stage did.
pub fn say(stage: &str, summary: &RowsSummary, detail: &str) {
    if summary.skipped {
        return println!("{stage}: unchanged, skipped");
    }
    let rate = summary.rows as f64 / summary.seconds.max(1e-9);
    let more = if summary.complete { "" } else { "; other parts are still to be done" };
    println!(
        "{stage}: {} rows, {rate:.0} rows/s{}{detail}{more}",
        summary.rows,
        if detail.is_empty() { "" } else { "; " }
    );
}

/// One run of a row stage.
pub struct RowsJob<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// A folder of row shards, or one JSONL file.
    pub input: &'a Path,
    /// The stage's own folder.
    pub out: &'a Path,
    /// The share of the shards to work on.
    pub part: Part,
    /// The resolved settings.
    pub settings: Value,
    /// Further inputs (model, dictionary ...) whose content decides the result.
    pub extra_inputs: Vec<(String, PathBuf)>,
    /// Print nothing.
    pub quiet: bool,
}

/// What `map_rows` did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowsSummary {
    /// Rows in the part that was worked on.
    pub rows: usize,
    /// The stage was already finished with the same inputs and settings.
    pub skipped: bool,
    /// All shards, not only this part's, are finished.
    pub complete: bool,
    /// Wall-clock time.
    pub seconds: f64,
}

/// Maps each input row to one output row, `chunk` rows at a time, into shards of the same names.
///
/// Killed at any moment, the same call goes on after the last complete row and ends with the same bytes, provided that `f` gives a row the
/// same result in whatever chunk it stands. Results of other inputs or settings are replaced, never continued.
pub fn map_rows<I: DeserializeOwned + Send, O: Serialize + Send>(
    job: &RowsJob,
    chunk: usize,
    f: &mut dyn FnMut(Vec<I>) -> Result<Vec<O>>,
) -> Result<RowsSummary> {
    map_parts(job, chunk, &mut Parts { prepare: &Ok, compute: f, finish: &Ok })
}

/// As [`map_rows`], with the work in parts that run at the same time.
pub fn map_parts<I: DeserializeOwned, P: Send, C: Send, O: Serialize>(
    job: &RowsJob,
    chunk: usize,
    parts: &mut Parts<I, P, C, O>,
) -> Result<RowsSummary> {
    let begun = Instant::now();
    let mut inputs: Vec<(&str, &Path)> = vec![("rows", job.input)];
    inputs.extend(job.extra_inputs.iter().map(|(name, path)| (name.as_str(), path.as_path())));
    let manifest = Manifest::expected(job.stage, &inputs, &job.settings)?;
    let set = RowSet::open(job.input)?;
    if let State::Done = prepare(job, &manifest)? {
        return Ok(RowsSummary { rows: set.len(), skipped: true, complete: true, seconds: 0.0 });
    }
    let number = manifest.job();
    // Shards keep their names; a single file of rows, whatever its name, becomes the first shard.
    let single = job.input.is_file();
    let names: Vec<String> =
        set.shards().iter().map(|shard| if single { shard_name(0) } else { shard.name() }).collect();
    remove_surplus(job.out, &names)?;
    let mut rows = 0;
    for (i, shard) in set.shards().iter().enumerate().filter(|(i, _)| job.part.has(*i)) {
        let path = job.out.join(&names[i]);
        if !is_complete(&path, number, shard.len())? {
            let (writer, done) = ShardWriter::open_or_resume(&path, number)?;
            ensure!(
                done <= shard.len(),
                "{} has more rows than {}: delete it",
                path.display(),
                shard.path().display()
            );
            map_chunks(job.stage, shard, writer, chunk.max(1), parts)?.finish()?;
        }
        rows += shard.len();
    }
    let mut complete = true;
    for (shard, name) in set.shards().iter().zip(&names) {
        complete &= is_complete(&job.out.join(name), number, shard.len())?;
    }
    if complete {
        manifest.finish(job.out, json!({ "rows": set.len(), "shards": set.shards().len() }))?;
    }
    Ok(RowsSummary { rows, skipped: false, complete, seconds: begun.elapsed().as_secs_f64() })
}

/// Says what will happen to the output folder, and makes it ready.
fn prepare(job: &RowsJob, manifest: &Manifest) -> Result<State> {
    if let (Ok(a), Ok(b)) = (fs::canonicalize(job.input), fs::canonicalize(job.out)) {
        ensure!(
            a != b && !(a.is_file() && a.starts_with(&b)),
            "{}: the output folder holds the input: choose another",
            b.display()
        );
    }
    let state = manifest.state(job.out)?;
    match &state {
        State::Done => return Ok(state),
        State::Changed(why) if !job.quiet => {
            eprintln!("{}: made again, since {} changed: {}", job.stage, job.out.display(), why.join("; "));
        }
        State::Changed(_) => {}
        State::Absent => {
            let ours = job.out.join(PENDING).exists() || !job.out.exists();
            if !ours && !shard_paths(job.out)?.is_empty() {
                bail!(
                    "{} holds rows but no {MANIFEST}, so no stage wrote them: choose another --out, or move them away",
                    job.out.display()
                );
            }
        }
    }
    fs::create_dir_all(job.out).map_err(|e| write_error(job.out, e))?;
    manifest.begin(job.out)?;
    Ok(state)
}

/// Removes the shards of an earlier, longer run.
fn remove_surplus(out: &Path, names: &[String]) -> Result<()> {
    for path in shard_paths(out)? {
        let name = path.file_name().map(|n| n.to_string_lossy().to_string()).unwrap_or_default();
        if !names.contains(&name) {
            remove_if_there(&path.with_extension("idx"))?;
            remove_if_there(&path)?;
        }
    }
    Ok(())
}

fn is_complete(path: &Path, job: u64, rows: usize) -> Result<bool> {
    if !path.exists()
        || partials_of(path)?.iter().any(|p| p.to_string_lossy().contains(&format!("{job:016x}")))
    {
        return Ok(false);
    }
    let shard = RowShard::open(path)?;
    Ok(shard.job() == job && shard.len() == rows)
}
