//! What the samples of a task say: metrics that can be computed on any resample of them.
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    data::language_id,
    metrics::{
        bleu::{self, BleuStatistics},
        chrf::{self, ChrfStatistics},
        off_target::is_off_target,
        qa,
        tokenize::BleuTokenizer,
    },
    recipe::eval::{EvalTask, TaskKind},
};

/// One row of a task with the model's reply.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Index of the row in its file.
    pub doc_id: usize,
    /// What the model was given.
    pub prompt: String,
    /// Its reply, or the letter of its choice.
    pub response: String,
    /// What was expected; several where any will do.
    pub targets: Vec<String>,
    /// Log-likelihoods in nats: of each choice, or of the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_likelihoods: Vec<f64>,
    /// Characters of each choice; bytes and tokens of the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lengths: Vec<usize>,
}

/// One metric of one task.
pub struct Measure {
    /// lm-eval's name where it has one.
    pub name: &'static str,
    /// Otherwise lower is.
    pub higher_is_better: bool,
    /// For people.
    pub decimals: usize,
    per_sample: PerSample,
}

enum PerSample {
    /// Mean, times 100.
    Percent(Vec<f64>),
    /// Sum of the first over the sum of the second.
    Ratio(Vec<(f64, f64)>),
    Bleu(Vec<BleuStatistics>),
    Chrf(Vec<ChrfStatistics>),
}

impl Measure {
    /// The metric over these samples (with repetition).
    pub fn value(&self, indices: &[usize]) -> f64 {
        match &self.per_sample {
            PerSample::Percent(x) => {
                100.0 * indices.iter().map(|&i| x[i]).sum::<f64>() / indices.len().max(1) as f64
            }
            PerSample::Ratio(x) => {
                let (a, b) = indices.iter().fold((0.0, 0.0), |(a, b), &i| (a + x[i].0, b + x[i].1));
                a / b.max(1e-300)
            }
            PerSample::Bleu(x) => bleu::from_statistics(indices.iter().map(|&i| &x[i])),
            PerSample::Chrf(x) => chrf::from_statistics(indices.iter().map(|&i| &x[i])),
        }
    }

    /// Standard error of a mean (sample standard deviation over root n), in the metric's unit.
    pub fn stderr(&self) -> Option<f64> {
        let PerSample::Percent(x) = &self.per_sample else { return None };
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        (x.len() > 1)
            .then(|| 100.0 * (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt())
    }

    /// Name and unit, for people.
    pub fn label(&self) -> String {
        match self.name {
            "acc" => "accuracy %".into(),
            "acc_norm" => "accuracy (per character) %".into(),
            "exact_match" => "exact match %".into(),
            "f1" => "F1 %".into(),
            "off_target" => "off target %".into(),
            "bits_per_byte" => "bits per byte".into(),
            "bleu" => "BLEU".into(),
            "chrf++" => "chrF++".into(),
            other => other.into(),
        }
    }
}

/// BLEU's tokenizer for a task.
pub fn tokenizer(task: &EvalTask) -> BleuTokenizer {
    let language = language_id::find(&task.language).map_or(task.language.as_str(), |l| l.code);
    task.tokenizer.unwrap_or(match language {
        "zh" => BleuTokenizer::Zh,
        // 13a finds no words where nothing separates them.
        code if language_id::is_unspaced(code) => BleuTokenizer::Char,
        _ => BleuTokenizer::V13a,
    })
}

/// sacreBLEU's signatures of the task's metrics.
pub fn signature(task: &EvalTask) -> Option<String> {
    (task.kind == TaskKind::Translation)
        .then(|| format!("BLEU {}; chrF++ {}", bleu::signature(tokenizer(task)), chrf::signature(2)))
}

/// Every metric of `task`.
pub fn measures(task: &EvalTask, samples: &[Sample]) -> Result<Vec<Measure>> {
    ensure!(!samples.is_empty(), "task {} has no samples", task.name);
    let percent = |name, higher_is_better, f: &dyn Fn(&Sample) -> f64| Measure {
        name,
        higher_is_better,
        decimals: 1,
        per_sample: PerSample::Percent(samples.iter().map(f).collect()),
    };
    let target = |s: &Sample| s.targets.first().cloned().unwrap_or_default();
    let off = |s: &Sample| f64::from(u8::from(is_off_target(&s.response, &task.language)));
    Ok(match task.kind {
        TaskKind::Perplexity => {
            // Nats to bits; the first length is the text's bytes.
            let bits = |s: &Sample| {
                (
                    -s.log_likelihoods.iter().sum::<f64>() / std::f64::consts::LN_2,
                    s.lengths.first().copied().unwrap_or(0) as f64,
                )
            };
            vec![Measure {
                name: "bits_per_byte",
                higher_is_better: false,
                decimals: 3,
                per_sample: PerSample::Ratio(samples.iter().map(bits).collect()),
            }]
        }
        TaskKind::Translation => {
            let tok = tokenizer(task).load(None)?;
            let of_bleu = samples.iter().map(|s| bleu::statistics(&s.response, &target(s), &tok)).collect();
            let of_chrf = samples.iter().map(|s| chrf::statistics(&s.response, &target(s), 2)).collect();
            let measure =
                |name, per_sample| Measure { name, higher_is_better: true, decimals: 2, per_sample };
            vec![
                measure("bleu", PerSample::Bleu(of_bleu)),
                measure("chrf++", PerSample::Chrf(of_chrf)),
                percent("off_target", false, &off),
            ]
        }
        TaskKind::MultipleChoice => {
            let best = |s: &Sample, per_char: bool| {
                let score = |i: usize| {
                    let length =
                        if per_char { s.lengths.get(i).copied().unwrap_or(1).max(1) as f64 } else { 1.0 };
                    s.log_likelihoods[i] / length
                };
                // The first of equals, as lm-eval's argmax.
                (0..s.log_likelihoods.len()).fold(0, |b, i| if score(i) > score(b) { i } else { b })
            };
            let right =
                move |s: &Sample, per_char| f64::from(u8::from(letter(best(s, per_char)) == target(s)));
            vec![
                percent("acc", true, &move |s| right(s, false)),
                percent("acc_norm", true, &move |s| right(s, true)),
            ]
        }
        TaskKind::Qa => {
            let golds = |s: &Sample| s.targets.iter().map(String::from).collect::<Vec<_>>();
            let with = |s: &Sample, f: &dyn Fn(&str, &[&str], &str) -> f64| {
                let golds = golds(s);
                f(&s.response, &golds.iter().map(String::as_str).collect::<Vec<_>>(), &task.language)
            };
            vec![
                percent("exact_match", true, &|s| with(s, &qa::exact_match)),
                percent("f1", true, &|s| with(s, &qa::f1)),
                percent("off_target", false, &off),
            ]
        }
    })
}

/// A, B, C ...
pub fn letter(index: usize) -> String {
    char::from_u32('A' as u32 + index as u32).unwrap_or('?').to_string()
}
