//! What a metric is: numbers of each row, and a value that is a function of their sums. Everything that is said of a metric anywhere (its name in
//! settings and results, its label, its tests of significance, what it needs) is said by its [`Metric`], once; [`super::catalog`] lists them.
use std::{path::Path, rc::Rc};

use anyhow::{Result, ensure};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    corpus::CorpusMetric,
    tokenize::{BleuTokenizer, TercomOptions},
};

/// What a model has given for a row. A metric is computed from one kind of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// A generated text.
    Reply,
    /// The log-likelihood of each choice, or the letter of one.
    Choices,
    /// The log-likelihood of a given text.
    LogLikelihood,
    /// Hidden states of a sentence and of its translation.
    HiddenStates,
}

/// What a metric's numbers are, for labels and axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// 0..100, a share of the rows.
    Percent,
    /// 0..100 (an error rate may exceed it), not a share of anything.
    Points,
    /// Bits.
    Bits,
    /// About 0..1.
    Fraction,
}

/// What a metric needs beside the reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// What is right.
    pub references: bool,
    /// The sentence that the reply translates.
    pub source: bool,
    /// The language of the reply.
    pub language: bool,
    /// A model that scores: it is costly, so that its scores are kept.
    pub model: bool,
}

/// What is fixed about a metric.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// As settings and the command line have it.
    pub name: &'static str,
    /// As results.json has it: lm-eval's name where it has one.
    pub key: &'static str,
    /// For people, without the unit.
    pub label: &'static str,
    /// As the tables of `metric` have it; sacreBLEU's metrics are named as it names them.
    pub heading: &'static str,
    /// One line of help.
    pub help: &'static str,
    /// Of what.
    pub unit: Unit,
    /// Digits behind the point, for people.
    pub decimals: usize,
    /// Otherwise lower is.
    pub higher_is_better: bool,
    /// From what it is computed.
    pub evidence: Evidence,
    /// With what.
    pub needs: Needs,
}

impl About {
    /// Label and unit, for people.
    pub fn title(&self) -> String {
        if self.unit == Unit::Percent { format!("{} %", self.label) } else { self.label.into() }
    }
}

/// Parts of linear CKA's sums and what else the hidden states say of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct HiddenPair {
    /// Cosine of the two sentence vectors.
    pub cosine: f64,
    /// Whether the translation is the nearest of all.
    pub forward: bool,
    /// The same from the translation to the source.
    pub backward: bool,
    /// See [`super::alignment::Alignment::cka_parts`].
    pub cka: [f64; 3],
}

/// One row as metrics see it. What a kind of task has not is empty.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Segment<'a> {
    /// The sentence that was translated.
    pub source: &'a str,
    /// What the model said: a text, or the letter of its choice.
    pub reply: &'a str,
    /// What is right; several where any will do.
    pub references: &'a [String],
    /// Log-likelihoods in nats: of each choice, or of the text.
    pub log_likelihoods: &'a [f64],
    /// Characters of each choice, then bytes of each. Of a text: bytes and tokens of what is scored, bytes of all of it, and 1 if its first token is scored.
    pub lengths: &'a [usize],
    /// What the hidden states say.
    pub hidden: Option<HiddenPair>,
}

impl<'a> Segment<'a> {
    /// The first reference, or nothing.
    pub fn reference(&self) -> &'a str {
        self.references.first().map_or("", String::as_str)
    }

    /// A number for all that a metric can see of this row: equal rows have equal numbers in any process.
    ///
    /// # Errors
    /// None that outside data can cause.
    pub fn hash(&self) -> Result<u64> {
        Ok(xxh3_64(&serde_json::to_vec(self)?))
    }
}

/// Models that score translations. `metrics` stands below all models, so that its callers bring them.
pub trait Scorers {
    /// The model and the settings that decide `metric`'s scores, as signatures have it; the model is not loaded for it.
    ///
    /// # Errors
    /// Files that are missing or mean another model.
    fn identity(&self, metric: &str) -> Result<String>;

    /// The score of each (source, translation), in order.
    ///
    /// # Errors
    /// Damaged weights, a device that fails, scores that are not finite.
    fn score(&self, metric: &str, pairs: &[(String, String)]) -> Result<Vec<f64>>;
}

/// What metrics are opened with.
#[derive(Clone, Default)]
pub struct MetricOptions<'a> {
    /// Language of replies and references.
    pub language: Option<&'a str>,
    /// What tokenizers need: a MeCab dictionary, a SentencePiece model, a word list.
    pub dictionary: Option<&'a Path>,
    /// BLEU's tokenizer; absent: the language decides (see [`BleuTokenizer::choose`]).
    pub tokenizer: Option<BleuTokenizer>,
    /// How TER prepares lines.
    pub ter: TercomOptions,
    /// ROUGE: compare stems.
    pub stem: bool,
    /// How the rows came about, in a signature's words: `protocol:lm-eval|shots:0`.
    pub protocol: &'a str,
    /// Models, where there are any.
    pub scorers: Option<Rc<dyn Scorers>>,
}

/// A metric. To add one: a file with this in `metrics/catalog`, and its entry in `catalog/mod.rs`.
pub trait Metric: Sync {
    /// What is fixed about it.
    fn about(&self) -> About;

    /// It, ready to count.
    ///
    /// # Errors
    /// A language, dictionary or model that it needs and has not, or that does not fit.
    fn open(&self, options: &MetricOptions) -> Result<Box<dyn OpenMetric>>;
}

/// A metric with all that it needs.
pub trait OpenMetric {
    /// How it is computed: sacreBLEU's signature where it is sacreBLEU's metric. Equal signatures give equal numbers for equal rows.
    fn signature(&self) -> String;

    /// Numbers of a row.
    fn width(&self) -> usize;

    /// Each row's numbers, as many as [`OpenMetric::width`] says.
    ///
    /// # Errors
    /// Those of [`Scorers::score`]; metrics without a model have none.
    fn rows(&self, segments: &[Segment]) -> Result<Vec<Vec<f64>>>;

    /// The metric over `rows` rows (with repetition) whose numbers have these sums.
    fn value(&self, sums: &[f64], rows: usize) -> f64;

    /// Where it is the mean of one number for each row: what the mean is multiplied by. There is a standard error then.
    fn mean_of(&self) -> Option<f64> {
        None
    }

    /// Whether resamples of the rows have a value, so that there can be an interval.
    fn resamples(&self) -> bool {
        true
    }

    /// What a row contributes, as lm-eval's sample files have it: a value; for metrics of a corpus what is summed or compared.
    fn shown(&self, _segment: &Segment, row: &[f64]) -> Value {
        if let [one] = row { json!(one) } else { json!(row) }
    }

    /// What to say before it is used in vain.
    fn warning(&self) -> Option<String> {
        None
    }

    /// sacreBLEU's metric, whose significance is tested in sacreBLEU's own arithmetic.
    fn sacrebleu(&self) -> Option<&CorpusMetric> {
        None
    }
}

/// The value over these rows.
pub fn value_of<'a>(metric: &dyn OpenMetric, rows: impl Iterator<Item = &'a Vec<f64>>) -> f64 {
    let (mut sums, mut n) = (vec![0.0; metric.width()], 0);
    for row in rows {
        sums.iter_mut().zip(row).for_each(|(sum, own)| *sum += own);
        n += 1;
    }
    metric.value(&sums, n)
}

/// Standard error of a mean (sample standard deviation over root n), in the metric's unit; none for other metrics and for one row.
pub fn standard_error(metric: &dyn OpenMetric, rows: &[Vec<f64>]) -> Option<f64> {
    let scale = metric.mean_of()?;
    let n = rows.len() as f64;
    let values = || rows.iter().filter_map(|r| r.first());
    let mean = values().sum::<f64>() / n;
    (rows.len() > 1)
        .then(|| scale * (values().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt())
}

/// A number of one row.
pub type OfSegment = Box<dyn Fn(&Segment) -> f64 + Send + Sync>;

/// A metric that is the mean of one number for each row.
pub struct MeanMetric {
    signature: String,
    scale: f64,
    of: OfSegment,
    warning: Option<String>,
    has_error: bool,
    has_value: bool,
}

impl MeanMetric {
    /// With the mean of `of` times `scale` (100 for percentages) as its value, and a standard error.
    pub fn new(
        signature: String,
        scale: f64,
        of: impl Fn(&Segment) -> f64 + Send + Sync + 'static,
    ) -> MeanMetric {
        MeanMetric { signature, scale, of: Box::new(of), warning: None, has_error: true, has_value: true }
    }

    /// With what is to be said before it is used in vain ([`OpenMetric::warning`]).
    pub fn warning_of(self, warning: Option<String>) -> MeanMetric {
        MeanMetric { warning, ..self }
    }

    /// Without a standard error; intervals are by resampling.
    pub fn without_error(self) -> MeanMetric {
        MeanMetric { has_error: false, ..self }
    }

    /// Without a value (NaN) and intervals: its rows say nothing, and 0 would say that nothing or everything is right.
    pub fn without_value(self) -> MeanMetric {
        MeanMetric { has_error: false, has_value: false, ..self }
    }
}

impl OpenMetric for MeanMetric {
    fn signature(&self) -> String {
        self.signature.clone()
    }

    fn width(&self) -> usize {
        1
    }

    fn rows(&self, segments: &[Segment]) -> Result<Vec<Vec<f64>>> {
        Ok(segments.par_iter().with_min_len(16).map(|s| vec![(self.of)(s)]).collect())
    }

    fn value(&self, sums: &[f64], rows: usize) -> f64 {
        if self.has_value { mean(sums, rows, self.scale) } else { f64::NAN }
    }

    fn mean_of(&self) -> Option<f64> {
        self.has_error.then_some(self.scale)
    }

    fn resamples(&self) -> bool {
        self.has_value
    }

    fn warning(&self) -> Option<String> {
        self.warning.clone()
    }
}

/// A mean times `scale`; 0 of no rows.
pub(super) fn mean(sums: &[f64], rows: usize, scale: f64) -> f64 {
    scale * sums.first().copied().unwrap_or(0.0) / rows.max(1) as f64
}

impl OpenMetric for CorpusMetric {
    fn signature(&self) -> String {
        CorpusMetric::signature(self)
    }

    fn width(&self) -> usize {
        CorpusMetric::width(self)
    }

    fn rows(&self, segments: &[Segment]) -> Result<Vec<Vec<f64>>> {
        let (replies, references): (Vec<&str>, Vec<&str>) =
            segments.iter().map(|s| (s.reply, s.reference())).unzip();
        let counts = self.counts(&replies, &references)?;
        ensure!(counts.len() == segments.len(), "{} counts for {} rows", counts.len(), segments.len());
        // Whole numbers below 2^53: exact.
        Ok(counts.rows().map(|row| row.iter().map(|x| *x as f64).collect()).collect())
    }

    fn value(&self, sums: &[f64], _rows: usize) -> f64 {
        self.of_sums(sums).value
    }

    fn shown(&self, segment: &Segment, _row: &[f64]) -> Value {
        json!([segment.references.first(), segment.reply])
    }

    fn warning(&self) -> Option<String> {
        self.tokenizer().and_then(|t| t.warning()).map(String::from)
    }

    fn sacrebleu(&self) -> Option<&CorpusMetric> {
        Some(self)
    }
}
