//! The work folder of a run: every path and file name in it.
//!
//! ```text
//! WORK/questions  generate  translate  score  filter  code-switch  parallel
//! WORK/assemble-VARIANT  pack-VARIANT  train-VARIANT      (pack, train: of ready examples)
//! WORK/eval-base  eval-VARIANT                            (eval: of ready examples)
//! WORK/results.json  report.html
//! WORK/cache/STAGE-HASH                                   (the arms of an ablation share their stages)
//! ```
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use super::{hash::hash_path, plan::is_to_be_made};

/// The curves of a training, in its folder.
pub const METRICS: &str = "metrics.jsonl";
/// Its clock.
pub const TIMING: &str = "timing.jsonl";
/// The numbers of an evaluation, a run or an ablation.
pub const RESULTS: &str = "results.json";
/// The page of a run, an ablation or an alignment.
pub const REPORT: &str = "report.html";
/// The page of a training run, in its folder. It shows times, so that it is no part of a result's content.
pub const PAGE: &str = "training.html";
/// What a run or an ablation writes itself.
pub const SUMMARY: &[&str] = &[RESULTS, REPORT, TIMING];
/// Who answered in the folder of a remote engine, and what it took; no part of a result's content.
pub const REMOTE: &str = "remote.jsonl";
/// The replies of a task, in its folder.
pub const SAMPLES: &str = "samples.jsonl";
/// What each row of a task contributes to each metric, beside its replies: kept so that it is computed once.
pub const SCORES: &str = "scores.jsonl";
/// What an adapter's folder is known by.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The model card of what was trained: for people, who may write on it; no part of a result's content.
pub const CARD: &str = "README.md";
/// Token shards, in the folder of `pack`.
pub const TOKENS: [(&str, &str); 3] =
    [("train", "train.tokens"), ("validation", "validation.tokens"), ("source", "source.tokens")];

/// The folders that the stages of a run write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room<'a> {
    /// The questions as rows.
    Questions,
    /// With answers.
    Generate,
    /// With translations.
    Translate,
    /// With scores.
    Score,
    /// With verdicts.
    Filter,
    /// With code-switched questions.
    CodeSwitch,
    /// Parallel sentences.
    Parallel,
    /// The examples of a variant.
    Assemble(&'a str),
    /// The token shards of a variant; of ready examples, where there is none.
    Pack(Option<&'a str>),
    /// What was trained on them.
    Train(Option<&'a str>),
    /// The results of the model before training.
    EvalBase,
    /// The results of a variant; of ready examples, where there is none.
    Eval(Option<&'a str>),
}

impl Room<'_> {
    /// The folder's name.
    pub fn name(&self) -> String {
        let with = |stage: &str, variant: &Option<&str>| match variant {
            Some(variant) => format!("{stage}-{variant}"),
            None => stage.to_string(),
        };
        match self {
            Room::Questions => "questions".into(),
            Room::Generate => "generate".into(),
            Room::Translate => "translate".into(),
            Room::Score => "score".into(),
            Room::Filter => "filter".into(),
            Room::CodeSwitch => "code-switch".into(),
            Room::Parallel => "parallel".into(),
            Room::Assemble(variant) => format!("assemble-{variant}"),
            Room::Pack(variant) => with("pack", variant),
            Room::Train(variant) => with("train", variant),
            Room::EvalBase => "eval-base".into(),
            Room::Eval(variant) => with("eval", variant),
        }
    }

    /// In a shared cache the same training and the same evaluation are the same, whatever the variant is called.
    fn shared_name(&self) -> String {
        match self {
            Room::Train(_) => "train".into(),
            Room::EvalBase | Room::Eval(_) => "eval".into(),
            other => other.name(),
        }
    }
}

/// The folder of a run.
#[derive(Clone, Debug)]
pub struct WorkDir {
    root: PathBuf,
    /// Stage folders are named by a hash of their inputs, and shared by the arms of an ablation.
    shared: bool,
}

impl WorkDir {
    /// Of a run that has it for itself.
    pub fn new(root: &Path) -> WorkDir {
        WorkDir { root: root.to_path_buf(), shared: false }
    }

    /// Of the arms of an ablation in `root`: they share `root/cache`.
    pub fn shared(root: &Path) -> WorkDir {
        WorkDir { root: root.to_path_buf(), shared: true }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a stage of a run of its own.
    pub fn room(&self, room: Room) -> PathBuf {
        self.root.join(room.name())
    }

    /// The folder of a stage; where it is shared, equal inputs (by content) and settings give the same.
    pub fn of(&self, room: Room, inputs: &[&Path], settings: &impl Serialize) -> Result<PathBuf> {
        if !self.shared {
            return Ok(self.room(room));
        }
        // In a plan nobody knows what an input will hold: the folder that it leads to is none that is there.
        let content = |p: &&Path| match is_to_be_made(p) {
            true => Ok(format!("to be made: {}", p.display())),
            false => hash_path(p),
        };
        let contents: Vec<String> = inputs.iter().map(content).collect::<Result<_>>()?;
        let key = json!([room.shared_name(), contents, settings]);
        let name = format!("{}-{:016x}", room.shared_name(), xxh3_64(key.to_string().as_bytes()));
        Ok(self.root.join("cache").join(name))
    }

    /// The final page.
    pub fn report(&self) -> PathBuf {
        self.root.join(REPORT)
    }
}

/// The curves of the training in `trained`.
pub fn metrics_of(trained: &Path) -> PathBuf {
    trained.join(METRICS)
}

/// Whether a training left an adapter, not a model of its own.
pub fn is_adapter(trained: &Path) -> bool {
    trained.join(ADAPTER_CONFIG).exists()
}
