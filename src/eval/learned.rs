//! The models of metrics that have one (see `metrics::catalog`): found, hashed, loaded when there is something to score.
use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex},
};

use anyhow::{Context, Result, bail, ensure};

use crate::report::out::say;
use crate::{
    metrics::metric::Scorers,
    models::weights::resolve,
    pipeline::{hash::hash_path, placement::Placement},
    qe::{
        Scorer,
        cometkiwi::{self, CometKiwi, Files},
        similarity::Similarity,
    },
    recipe::eval::{EvalTask, ScorerModel},
};

/// The models of one task.
pub struct Models {
    settings: BTreeMap<String, ScorerModel>,
    placement: Placement,
    loaded: RefCell<HashMap<String, Box<dyn Scorer>>>,
}

impl Models {
    /// Those that `task` names; nothing is loaded.
    pub fn new(task: &EvalTask, placement: Placement) -> Models {
        Models { settings: task.scorers.clone(), placement, loaded: RefCell::default() }
    }

    fn settings(&self, metric: &str) -> ScorerModel {
        self.settings.get(metric).cloned().unwrap_or_default()
    }

    fn load(&self, metric: &str) -> Result<Box<dyn Scorer>> {
        let s = self.settings(metric);
        let Placement { dtype, device, .. } = self.placement;
        let device = device.first().open()?;
        Ok(match metric {
            "cometkiwi" => Box::new(CometKiwi::load(&kiwi(&s)?, dtype, &device, s.batch_tokens)?),
            "similarity" | "reference-similarity" => {
                Box::new(Similarity::load(&encoder(metric, &s)?, &s.prefix, dtype, &device, s.batch_tokens)?)
            }
            other => bail!("there is no model for metric {other}"),
        })
    }
}

impl Scorers for Models {
    fn identity(&self, metric: &str) -> Result<String> {
        let s = self.settings(metric);
        let (dir, more) = match metric {
            "cometkiwi" => {
                ensure!(s.prefix.is_empty(), "`prefix` belongs to metric similarity or reference-similarity");
                let files = kiwi(&s)?;
                let beside = files.tokenizer == files.dir;
                let more =
                    if beside { String::new() } else { format!("|encoder:{}", hash(&files.tokenizer)?) };
                (files.dir, more)
            }
            "similarity" | "reference-similarity" => {
                ensure!(s.encoder.is_none(), "`encoder` belongs to metric cometkiwi");
                let more =
                    if s.prefix.is_empty() { String::new() } else { format!("|prefix:{}", s.prefix.trim()) };
                (encoder(metric, &s)?, more)
            }
            other => bail!("there is no model for metric {other}"),
        };
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        // The kind of device decides the bits, its number does not.
        let placement = self.placement.to_string();
        let kind = placement.split(':').next().unwrap_or_default().replace(", ", "-");
        Ok(format!("model:{name}|weights:{}{more}|dtype:{kind}", hash(&dir)?))
    }

    fn score(&self, metric: &str, pairs: &[(String, String)]) -> Result<Vec<f64>> {
        let mut loaded = self.loaded.borrow_mut();
        if !loaded.contains_key(metric) {
            loaded.insert(metric.into(), self.load(metric)?);
        }
        let scorer = loaded.get_mut(metric).context("the model is gone")?;
        let before = scorer.cut();
        let scores = scorer.score(pairs)?;
        let cut = scorer.cut() - before;
        if cut > 0 {
            say!("{metric}: {cut} of {} texts longer than the model reads were cut", pairs.len());
        }
        Ok(scores)
    }
}

fn kiwi(s: &ScorerModel) -> Result<Files> {
    Files::find(s.model.as_deref().unwrap_or(cometkiwi::PUBLISHED), s.encoder.as_deref())
}

fn encoder(metric: &str, s: &ScorerModel) -> Result<PathBuf> {
    let missing =
        || format!("needs `scorers.{metric}.model`: an XLM-R sentence encoder's directory or hub name");
    resolve(s.model.as_ref().with_context(missing)?)
}

/// The content of a folder as a number. A model has gigabytes: once in the life of the program is enough.
fn hash(dir: &Path) -> Result<String> {
    static KNOWN: LazyLock<Mutex<HashMap<PathBuf, String>>> = LazyLock::new(Mutex::default);
    let known = || KNOWN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(hash) = known().get(dir) {
        return Ok(hash.clone());
    }
    let hash = hash_path(dir)?;
    known().insert(dir.into(), hash.clone());
    Ok(hash)
}
