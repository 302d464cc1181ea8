//! What the samples of a task say: metrics that can be computed on any resample of them.
use std::{collections::HashMap, path::Path, rc::Rc};

use anyhow::{Result, ensure};
use serde_json::{Map, Value};

use super::{
    learned::Models,
    sample::{Sample, read_samples},
    scores::ScoreFile,
    tasks::{self, Item, alignment::looked},
};
use crate::{
    data::languages,
    metrics::{
        bootstrap::paired_by,
        metric::{About, MetricOptions, OpenMetric, Scorers, standard_error, value_of},
        mkqa,
        tokenize::BleuTokenizer,
    },
    pipeline::{placement::Placement, work_dir::SCORES},
    recipe::eval::{EvalTask, TaskKind},
};

/// One metric of one task, with the numbers of its rows.
pub struct Measure {
    /// What is fixed about it.
    pub about: About,
    /// How it was computed: sacreBLEU's signature where it is sacreBLEU's metric.
    pub signature: String,
    metric: Box<dyn OpenMetric>,
    rows: Vec<Vec<f64>>,
}

impl Measure {
    /// The metric over these samples (with repetition).
    pub fn value(&self, indices: &[usize]) -> f64 {
        value_of(self.metric.as_ref(), indices.iter().map(|&i| &self.rows[i]))
    }

    /// The metric over all samples.
    pub fn whole(&self) -> f64 {
        value_of(self.metric.as_ref(), self.rows.iter())
    }

    /// Whether resamples of the rows have a value, so that there can be an interval.
    pub fn has_intervals(&self) -> bool {
        self.metric.resamples()
    }

    /// 95 % percentile interval of the value over `samples` resamples of the rows; `None` where there is none.
    pub fn interval(&self, samples: usize, seed: u64) -> Option<(f64, f64)> {
        if !self.has_intervals() || samples == 0 || self.rows.len() < 2 {
            return None;
        }
        let resampled = paired_by(self.rows.len(), samples, seed, |indices| (0.0, self.value(indices)));
        Some((resampled.low, resampled.high))
    }

    /// What row `i` contributes, as lm-eval's sample files have it: a value; for metrics of a corpus what is summed or compared.
    ///
    /// # Errors
    /// A sample without the hidden states that it should have.
    pub fn of_row(&self, i: usize, sample: &Sample) -> Result<Value> {
        Ok(self.metric.shown(&sample.segment("")?, &self.rows[i]))
    }

    /// Standard error of a mean (sample standard deviation over root n), in the metric's unit.
    pub fn stderr(&self) -> Option<f64> {
        standard_error(self.metric.as_ref(), &self.rows)
    }
}

/// The metrics of `task`, ready to count; `protocol` says how its rows came about.
fn open(task: &EvalTask, protocol: &str, scorers: Option<Rc<dyn Scorers>>) -> Result<Vec<Opened>> {
    let options = MetricOptions {
        language: Some(&task.language),
        dictionary: task.dictionary.as_deref(),
        tokenizer: task.tokenizer,
        stem: task.stem,
        protocol,
        scorers,
        ..Default::default()
    };
    task.metric_names().into_iter().map(|name| Ok((name.about(), name.metric().open(&options)?))).collect()
}

type Opened = (About, Box<dyn OpenMetric>);

/// Whatever the metrics of `task` need is there, and they fit its kind; gives warnings where their numbers would mean nothing.
///
/// # Errors
/// A metric that does not fit, a dictionary or model that is missing or another, models for metrics that have none.
pub fn check(task: &EvalTask) -> Result<Vec<String>> {
    let kind = task.kind();
    ensure!(
        kind.generates() || task.metrics.is_empty(),
        "`metrics` are of generated replies, which kind {} has not",
        kind.name()
    );
    for about in task.metric_names().iter().map(|name| name.about()) {
        ensure!(
            !about.needs.source || (kind == TaskKind::Translation && task.description.is_none()),
            "metric {} needs source sentences, which belong to kind translation, not {}",
            about.name,
            kind.name()
        );
    }
    for name in task.scorers.keys() {
        let used = task.metric_names().iter().any(|m| m.name() == name && m.about().needs.model);
        ensure!(used, "`scorers.{name}` is no metric with a model among its `metrics`");
    }
    if !kind.generates() {
        return Ok(vec![]);
    }
    // Nothing is computed here.
    let anywhere = Placement::default();
    let opened = open(task, "", Some(Rc::new(Models::new(task, anywhere))))?;
    let mut warnings: Vec<String> = opened.iter().filter_map(|(_, metric)| metric.warning()).collect();
    // Where `none` is named, `metric` takes it that the lines are tokenised already. Replies never are.
    let blind = task.tokenizer == Some(BleuTokenizer::None) && languages::is_unspaced(&task.language);
    if blind && opened.iter().any(|(about, _)| about.key == "bleu") {
        warnings.extend(BleuTokenizer::V13a.warning(&task.language).map(|w| w.replace("13a", "none")));
    }
    Ok(warnings.into_iter().map(|w| format!("task {}: {w}", task.name)).collect())
}

/// How the rows of a task came about, for signatures.
fn protocol(task: &EvalTask, samples: &[Sample]) -> Result<String> {
    let name = |value: Value| value.as_str().unwrap_or_default().to_string();
    Ok(match task.kind() {
        _ if task.description.is_some() => {
            let name = task.description.as_ref().map_or("", |d| &d.0.name);
            format!("task:{name}|shots:{}", task.few_shot)
        }
        TaskKind::Perplexity => {
            let scored = samples.iter().all(|s| s.lengths.get(3) == Some(&1));
            format!("first-token:{}", if scored { "scored" } else { "given" })
        }
        TaskKind::MultipleChoice => format!(
            "protocol:{}|choices:{}|shots:{}",
            name(serde_json::to_value(task.protocol)?),
            name(serde_json::to_value(task.choices)?),
            task.few_shot
        ),
        TaskKind::Alignment => format!(
            "lang:{}-{}|layer:{}|pooling:{}",
            task.source_language,
            task.language,
            // With every pair looked at, so that damaged ones are named.
            looked("", task, samples)?.layer,
            name(serde_json::to_value(task.pooling.unwrap_or_default())?)
        ),
        _ if task.few_shot > 0 => format!("shots:{}", task.few_shot),
        _ => String::new(),
    })
}

/// Every metric of `task`, from samples in memory. There are no models here, and no scores are kept.
///
/// # Errors
/// No samples, or metrics that need a model.
pub fn measures(task: &EvalTask, samples: &[Sample]) -> Result<Vec<Measure>> {
    ensure!(!samples.is_empty(), "task {} has no samples", task.name);
    let segments = samples.iter().map(|s| s.segment("")).collect::<Result<Vec<_>>>()?;
    let opened = open(task, &protocol(task, samples)?, None)?;
    let measure = |(about, metric): Opened| {
        let rows = metric.rows(&segments)?;
        Ok(Measure { about, signature: metric.signature(), metric, rows })
    };
    opened.into_iter().map(measure).collect()
}

/// The samples of a finished task in `out` and every metric of them. Numbers that stand in `scores.jsonl` beside the samples are taken from there;
/// others are computed and kept there. `items` are the task's rows, where the caller has them; `placement` is where models compute.
///
/// # Errors
/// A task without samples, a damaged file of scores, a metric that fails.
pub fn of_folder(
    out: &Path,
    task: &EvalTask,
    items: Option<&[Item]>,
    placement: Placement,
) -> Result<(Vec<Sample>, Vec<Measure>)> {
    let samples = read_samples(out, task)?;
    ensure!(!samples.is_empty(), "task {} has no samples", task.name);
    let scorers = Rc::new(Models::new(task, placement));
    let opened = open(task, &protocol(task, &samples)?, Some(scorers))?;
    let sources = if opened.iter().any(|(about, _)| about.needs.source) {
        match items {
            Some(items) => sources(items),
            None => sources(&tasks::load(task)?),
        }
    } else {
        HashMap::new()
    };
    let source = |s: &Sample| sources.get(&s.doc_id).map_or("", String::as_str);
    let segments = samples.iter().map(|s| s.segment(source(s))).collect::<Result<Vec<_>>>()?;
    let ids: Vec<usize> = samples.iter().map(|s| s.doc_id).collect();
    let mut scores = ScoreFile::open(&out.join(&task.name).join(SCORES))?;
    let mut measures = vec![];
    for (about, metric) in opened {
        let label = format!("{} {}", task.name, about.name);
        let rows = scores.rows(&about, metric.as_ref(), &segments, &ids, &label)?;
        measures.push(Measure { about, signature: metric.signature(), metric, rows });
    }
    scores.finish();
    drop(segments);
    Ok((samples, measures))
}

/// The source sentences of translation tasks, by row.
fn sources(items: &[Item]) -> HashMap<usize, String> {
    let source = |i: &Item| Some((i.sample.doc_id, i.doc["source"].as_str()?.to_string()));
    items.iter().filter_map(source).collect()
}

/// MKQA's official numbers and their signature, named as its script names them; its own exact match and F1 are measures already. A model states
/// no probability that there is no answer, so that it is 0 throughout, as for predictions without one.
pub fn official(task: &EvalTask, samples: &[Sample]) -> Result<Option<(Map<String, Value>, String)>> {
    if task.kind() != TaskKind::Mkqa {
        return Ok(None);
    }
    let scored = |s: &Sample| {
        let answers: Vec<&str> = s.targets.iter().map(String::as_str).collect();
        mkqa::ScoredAnswer::new(&answers, &s.response, 0.0, &task.language)
    };
    let scores = mkqa::scores(&samples.iter().map(scored).collect::<Vec<_>>());
    let Value::Object(mut scores) = serde_json::to_value(scores)? else { return Ok(None) };
    scores.retain(|key, _| key != "exact_match" && key != "f1");
    let (n, version) = (samples.len(), env!("CARGO_PKG_VERSION"));
    Ok(Some((scores, format!("mkqa|lang:{}|n:{n}|no-answer-prob:none|version:{version}", task.language))))
}
