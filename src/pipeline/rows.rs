//! The driver of every stage that maps rows to rows: skip what is finished, resume in the middle of a shard, work on a part of the shards.
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use crate::error::Error;
use anyhow::{Result, ensure};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

pub use super::{apart::apart, part::Part};
use super::{
    devices::{Computing, Work, on_devices},
    identity::{Identity, Inputs},
    manifest::{Counts, Manifest},
    overlap::{Pair, Parts, map_shards},
    placement::Placement,
    stage::{Made, Open, Stage},
    work_dir::REMOTE,
};
use crate::{
    data::{
        files::remove_if_there,
        language_id, languages,
        row_shard::{RowSet, RowShard, partials_of, shard_name},
    },
    device::DeviceChoice,
    report::{out::note, progress::Progress},
};

/// What a row stage makes in its folder.
pub const ROW_FILES: &[&str] = &["rows-*"];
/// The same where an engine may be remote.
pub const REMOTE_ROW_FILES: &[&str] = &["rows-*", REMOTE];

/// Where a row stage reads and writes.
#[derive(Clone, Debug, clap::Args)]
pub struct RowArgs {
    /// Rows: a folder written by the previous stage, or a JSONL file; - is standard input
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
            self.target_languages.iter().map(|l| languages::code(l)).collect::<Result<_>>()?;
        let source = languages::code(&self.source_language)?;
        ensure!(!targets.is_empty(), "give at least one target language");
        for (i, target) in targets.iter().enumerate() {
            ensure!(*target != source, "{source} is the source language and a target language");
            ensure!(!targets[..i].contains(target), "target language {target} occurs twice");
        }
        Ok((source, targets))
    }

    /// Says of which target languages texts cannot be judged.
    pub fn warn_of_languages(&self) -> Result<()> {
        let (_, targets) = self.languages()?;
        targets.iter().filter_map(|t| language_id::warning(t)).for_each(|w| note!("warning: {w}"));
        Ok(())
    }

    /// The settings of a row stage, with its languages.
    pub fn identity(&self, settings: &impl Serialize) -> Result<Identity> {
        let (source, targets) = self.languages()?;
        Identity::of(settings)?.with("source-language", source)?.with("target-languages", targets)
    }

    /// The rows that a row stage reads.
    pub fn inputs(&self) -> Inputs {
        Inputs::new().file("rows", &self.input)
    }
}

/// A stage that gives each row of its input one row: what all such stages have in common is said once, in their [`Stage`].
pub trait RowStage {
    /// In manifests and messages.
    const NAME: &'static str;
    /// What it makes in its folder.
    const FILES: &'static [&'static str] = ROW_FILES;

    /// Where it reads and writes.
    fn rows(&self) -> &RowArgs;

    /// The settings that decide its bytes; the languages come with [`RowArgs::identity`].
    fn identity(&self) -> Result<Identity>;

    /// The files that decide its bytes.
    fn inputs(&self) -> Result<Inputs> {
        Ok(self.rows().inputs())
    }

    /// [`Stage::placement`].
    fn placement(&self) -> Option<Placement> {
        None
    }

    /// The work, by [`Open::map_rows`] or [`Open::map_parts`].
    fn run(&mut self, open: &mut Open) -> Result<Made>;
}

impl<S: RowStage> Stage for S {
    const NAME: &'static str = S::NAME;
    const FILES: &'static [&'static str] = S::FILES;

    fn out(&self) -> &Path {
        &self.rows().out
    }

    fn part(&self) -> Part {
        self.rows().part
    }

    fn check_folder(&self, _: &Manifest) -> Result<()> {
        apart(&self.rows().input, self.out())
    }

    fn identity(&self) -> Result<Identity> {
        RowStage::identity(self)
    }

    fn inputs(&self) -> Result<Inputs> {
        RowStage::inputs(self)
    }

    fn placement(&self) -> Option<Placement> {
        RowStage::placement(self)
    }

    fn run(&mut self, open: &mut Open) -> Result<Made> {
        RowStage::run(self, open)
    }
}

/// `text` with {source}, {target} (codes) and {source3}, {target3} (three letters) filled in.
pub fn with_languages(text: &str, source: &str, target: &str) -> String {
    let three = |code: &str| {
        let nllb = || code.split('_').next().unwrap_or_default().to_string();
        languages::find(code).map_or_else(nllb, |l| l.code3.to_string())
    };
    text.replace("{source3}", &three(source))
        .replace("{target3}", &three(target))
        .replace("{source}", source)
        .replace("{target}", target)
}

/// As [`with_languages`], for a path that must be given.
pub fn path_for(path: &Option<PathBuf>, key: &str, source: &str, target: &str) -> Result<PathBuf> {
    let unset = || Error::setting(key, format!("{key} is not set: give a file"));
    let path = path.as_ref().ok_or_else(unset)?;
    Ok(PathBuf::from(with_languages(&path.to_string_lossy(), source, target)))
}

/// The files whose content decides what a dictionary at `path` says, for manifests: named `what` and by the file, and apart for each `language`.
pub fn dictionary_files(what: &str, path: &Path, language: &str) -> Vec<(String, PathBuf)> {
    let name = named_file(what, path, language);
    let text = path.to_string_lossy();
    let stem = [".index", ".dict.dz", ".dict"].iter().find_map(|s| text.strip_suffix(s));
    let Some(stem) = stem else { return vec![(name, path.into())] };
    [".index", ".dict", ".dict.dz"]
        .iter()
        .map(|s| (format!("{name}{s}"), PathBuf::from(format!("{stem}{s}"))))
        .filter(|(_, p)| p.exists())
        .collect()
}

/// What a manifest calls a file of one language, so that a change of it can be told.
pub fn named_file(what: &str, path: &Path, language: &str) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    format!("the {what} {file} ({language})")
}

/// Opens rows that a stage wrote, or one file of rows; a folder must hold as many as its manifest says.
pub fn open_rows(path: &Path) -> Result<RowSet> {
    let set = RowSet::open(path)?;
    if path.is_dir()
        && let Some(manifest) = Manifest::load(path)?
        && let Some(rows) = manifest.rows
    {
        ensure!(
            rows == set.len(),
            "{} holds {} rows, but stage {} wrote {rows}: something removed or added shards; run that stage again",
            path.display(),
            set.len(),
            manifest.stage
        );
    }
    Ok(set)
}

/// What [`Open::map_rows`] did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowsSummary {
    /// Rows in the part that was worked on.
    pub rows: usize,
    /// Rows in all parts.
    pub all: usize,
    /// Shards in all parts.
    pub shards: usize,
    /// All shards, not only this part's, are finished.
    pub complete: bool,
    /// Wall-clock time.
    pub seconds: f64,
}

impl RowsSummary {
    /// What the stage says at its end, with `detail` on its line.
    pub fn made(&self, stage: &str, detail: &str) -> Result<Made> {
        let rate = self.rows as f64 / self.seconds.max(1e-9);
        let more = if self.complete { "" } else { "; other parts are still to be done" };
        let line = format!(
            "{stage}: {} rows, {rate:.0} rows/s{}{detail}{more}",
            self.rows,
            if detail.is_empty() { "" } else { "; " }
        );
        let made = Made::new(json!({ "rows": self.all, "shards": self.shards }))?;
        Ok(Made { unfinished: !self.complete, ..made.counting(Counts::all(self.all)).saying(line) })
    }

    /// The same of a remote engine: what it took, in words and for the manifest's summary; `None` where nothing was left to ask.
    pub fn made_remotely(&self, stage: &str, took: Option<(String, Value)>, detail: &str) -> Result<Made> {
        let Some((took, summary)) = took else { return self.made(stage, detail) };
        let detail = [took.as_str(), detail].into_iter().filter(|part| !part.is_empty());
        let mut made = self.made(stage, &detail.collect::<Vec<_>>().join("; "))?;
        made.summary["remote"] = summary;
        Ok(made)
    }
}

impl Open {
    /// Maps each row of `input` to one output row, `chunk` rows at a time, into shards of the same names.
    ///
    /// Killed at any moment, the same call goes on after the last complete row and ends with the same bytes, provided that `f` gives a row the
    /// same result in whatever chunk it stands.
    pub fn map_rows<I: DeserializeOwned + Send, O: Serialize + Send>(
        &mut self,
        input: &Path,
        chunk: usize,
        f: &mut dyn FnMut(Vec<I>) -> Result<Vec<O>>,
    ) -> Result<RowsSummary> {
        let compute = Computing::Here(f);
        self.map_parts(input, chunk, Parts { prepare: &Ok, compute, finish: &Ok, ahead: 1 })
    }

    /// As [`Open::map_rows`], with models on the device or the devices that `device` names: `prepare` and `finish` are those of [`Parts`]. Returns what the models
    /// that were loaded say at their end, too.
    pub fn map_on<I: DeserializeOwned, P: Send, C: Send, O: Serialize, M, E: Send>(
        &mut self,
        (input, chunk): (&Path, usize),
        device: DeviceChoice,
        prepare: &(dyn Fn(Vec<I>) -> Result<P> + Sync),
        work: &Work<M, P, C, E>,
        finish: &(dyn Fn(C) -> Result<Vec<O>> + Sync),
    ) -> (Result<RowsSummary>, Result<Vec<E>>) {
        on_devices(device, work, |compute| {
            self.map_parts(input, chunk, Parts { prepare, compute, finish, ahead: 1 })
        })
    }

    /// Removes the rows of this share of the work: what made them cannot be trusted.
    pub fn discard_rows(&self, input: &Path) -> Result<()> {
        let set = open_rows(input)?;
        for (_, shard) in set.shards().iter().enumerate().filter(|(i, _)| self.part().has(*i)) {
            let name = if !input.is_dir() { shard_name(0) } else { shard.name() };
            let path = self.path(&name);
            let of_it = partials_of(&path)?.into_iter().chain([path.with_extension("idx"), path]);
            for path in of_it {
                remove_if_there(&path)?;
            }
        }
        Ok(())
    }

    /// As [`Open::map_rows`], with the work in parts that run at the same time.
    pub fn map_parts<I: DeserializeOwned, P: Send, C: Send, O: Serialize>(
        &mut self,
        input: &Path,
        chunk: usize,
        mut parts: Parts<I, P, C, O>,
    ) -> Result<RowsSummary> {
        let begun = Instant::now();
        let set = open_rows(input)?;
        let number = self.job();
        // Shards keep their names; a single file of rows, whatever its name, becomes the first shard.
        let single = !input.is_dir();
        let names: Vec<String> =
            set.shards().iter().map(|shard| if single { shard_name(0) } else { shard.name() }).collect();
        let stage = self.manifest().stage.clone();
        let (mut rows, mut missing) = (0, vec![]);
        for (i, shard) in set.shards().iter().enumerate().filter(|(i, _)| self.part().has(*i)) {
            let to = self.path(&names[i]);
            if !is_complete(&to, number, shard.len())? {
                missing.push(Pair { from: shard, to });
            }
            rows += shard.len();
        }
        let mut progress = Progress::new(&stage, rows);
        progress.skip(rows - missing.iter().map(|pair| pair.from.len()).sum::<usize>());
        let mapped = map_shards((&stage, number), &missing, chunk.max(1), &mut parts, &mut progress);
        progress.finish();
        mapped?;
        let mut complete = true;
        for (shard, name) in set.shards().iter().zip(&names) {
            complete &= is_complete(&self.path(name), number, shard.len())?;
        }
        if complete {
            let written = RowSet::open_unfinished(self.dir())?.len();
            ensure!(
                written == set.len(),
                "stage {stage}: {} rows came in, but {written} came out",
                set.len()
            );
            self.expect_rows(written);
        }
        let (all, shards) = (set.len(), set.shards().len());
        Ok(RowsSummary { rows, all, shards, complete, seconds: begun.elapsed().as_secs_f64() })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_overlap_where_some_shard_belongs_to_both() {
        let all: Vec<Part> = (1..=6).flat_map(|of| (1..=of).map(move |index| Part { index, of })).collect();
        for a in &all {
            for b in &all {
                let both = (0..60).any(|shard| a.has(shard) && b.has(shard));
                assert_eq!(a.overlaps(b), both, "{a} {b}");
            }
        }
    }
}
