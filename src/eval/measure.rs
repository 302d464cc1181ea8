//! What the samples of a task say: metrics that can be computed on any resample of them.
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::tasks::alignment::{Pair, looked};
use crate::{
    data::language_id,
    metrics::{
        alignment::linear_cka,
        bleu::{self, BleuStatistics},
        chrf::{self, ChrfStatistics},
        mkqa,
        off_target::is_off_target,
        qa,
        rouge::Rouge,
        ter,
        tokenize::{BleuTokenizer, TercomOptions, Tokenizer},
    },
    recipe::eval::{EvalTask, Metric, Protocol, TaskKind},
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
    /// All of the reply, where only a part of it is judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// What was expected; several where any will do.
    pub targets: Vec<String>,
    /// Log-likelihoods in nats: of each choice, or of the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_likelihoods: Vec<f64>,
    /// Whether greedy decoding would write each choice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub greedy: Vec<bool>,
    /// Characters of each choice; bytes and tokens of the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lengths: Vec<usize>,
    /// The article was cut to fit the model's context.
    #[serde(default, skip_serializing_if = "is_false")]
    pub truncated: bool,
    /// Alignment: what every hidden state says about the pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<Pair>,
}

fn is_false(x: &bool) -> bool {
    !x
}

/// One metric of one task.
pub struct Measure {
    /// lm-eval's name where it has one.
    pub name: &'static str,
    /// Otherwise lower is.
    pub higher_is_better: bool,
    /// For people.
    pub decimals: usize,
    /// How it was computed: sacrebleu's signature where it is sacrebleu's metric.
    pub signature: String,
    per_sample: PerSample,
}

enum PerSample {
    /// Mean, times 100.
    Percent(Vec<f64>),
    /// Mean.
    Mean(Vec<f64>),
    /// Of all sentences together: its centring and its neighbours belong to one set, so that a resample has no value.
    Cka(Vec<[f64; 3]>),
    /// Sum of the first over the sum of the second.
    Ratio(Vec<(f64, f64)>),
    Bleu(Vec<BleuStatistics>),
    Chrf(Vec<ChrfStatistics>),
    Ter(Vec<[u64; ter::WIDTH]>),
}

impl Measure {
    /// The metric over these samples (with repetition).
    pub fn value(&self, indices: &[usize]) -> f64 {
        match &self.per_sample {
            PerSample::Percent(x) => {
                100.0 * indices.iter().map(|&i| x[i]).sum::<f64>() / indices.len().max(1) as f64
            }
            PerSample::Mean(x) => indices.iter().map(|&i| x[i]).sum::<f64>() / indices.len().max(1) as f64,
            PerSample::Cka(x) => linear_cka(&indices.iter().map(|&i| x[i]).collect::<Vec<_>>()),
            PerSample::Ratio(x) => {
                let (a, b) = indices.iter().fold((0.0, 0.0), |(a, b), &i| (a + x[i].0, b + x[i].1));
                a / b.max(1e-300)
            }
            PerSample::Bleu(x) => bleu::from_statistics(indices.iter().map(|&i| &x[i])),
            PerSample::Chrf(x) => chrf::from_statistics(indices.iter().map(|&i| &x[i])),
            PerSample::Ter(x) => {
                let sum = |k: usize| indices.iter().map(|&i| x[i][k]).sum::<u64>() as f64;
                ter::compute(&[sum(0), sum(1)]).unwrap_or_else(|| ter::without_reference(sum(0)))
            }
        }
    }

    /// Whether resamples of the rows have a value, so that there can be an interval.
    pub fn has_intervals(&self) -> bool {
        !matches!(self.per_sample, PerSample::Cka(_))
    }

    /// What row `i` contributes, as lm-eval's sample files have it: a value; for metrics of a corpus what is summed or compared.
    pub fn of_row(&self, i: usize, sample: &Sample) -> Value {
        match &self.per_sample {
            PerSample::Percent(x) | PerSample::Mean(x) => json!(x[i]),
            PerSample::Cka(x) => json!(x[i]),
            PerSample::Ratio(_) => {
                json!([sample.log_likelihoods.iter().sum::<f64>(), sample.lengths.first()])
            }
            PerSample::Bleu(_) | PerSample::Chrf(_) | PerSample::Ter(_) => {
                json!([sample.targets.first(), sample.response])
            }
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
            "chrf" => "chrF".into(),
            "ter" => "TER".into(),
            "rougeL" => "ROUGE-L F1".into(),
            "cosine" => "cosine of translations".into(),
            "cka" => "linear CKA".into(),
            "retrieval_forward" => "retrieval@1 of translations %".into(),
            "retrieval_backward" => "retrieval@1 of sources %".into(),
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

/// What the metrics of a task need beside its samples.
struct Tools {
    bleu: Option<Tokenizer>,
    rouge: Option<Rouge>,
}

fn tools(task: &EvalTask) -> Result<Tools> {
    let metrics = task.reply_metrics();
    let dictionary = task.dictionary.as_deref();
    let bleu = metrics.contains(&Metric::Bleu).then(|| {
        let kind = tokenizer(task);
        kind.load(dictionary.filter(|_| kind.needs().is_some()))
    });
    let rouge = metrics.contains(&Metric::RougeL).then(|| Rouge::new(&task.language, dictionary, task.stem));
    Ok(Tools { bleu: bleu.transpose()?, rouge: rouge.transpose()? })
}

/// Whatever the metrics of `task` need is there; a warning where BLEU's words would mean nothing.
pub fn check(task: &EvalTask) -> Result<Option<String>> {
    let tools = tools(task)?;
    let unspaced = language_id::is_unspaced(&task.language);
    let useless = |t: &Tokenizer| {
        unspaced && matches!(t.kind(), BleuTokenizer::V13a | BleuTokenizer::Intl | BleuTokenizer::None)
    };
    Ok(tools.bleu.filter(useless).map(|t| {
        format!(
            "task {}: BLEU with tokenizer {} takes whole sentences of {} for words and says next to nothing: use char or flores200 (spBLEU), or read chrF++",
            task.name,
            t.kind().name(),
            language_id::name(&task.language)
        )
    }))
}

/// Every metric of `task`.
pub fn measures(task: &EvalTask, samples: &[Sample]) -> Result<Vec<Measure>> {
    ensure!(!samples.is_empty(), "task {} has no samples", task.name);
    let version = env!("CARGO_PKG_VERSION");
    let percent = |name: &'static str, higher_is_better, how: String, f: &dyn Fn(&Sample) -> f64| Measure {
        name,
        higher_is_better,
        decimals: 1,
        signature: format!("{how}|version:{version}"),
        per_sample: PerSample::Percent(samples.iter().map(f).collect()),
    };
    let target = |s: &Sample| s.targets.first().cloned().unwrap_or_default();
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
                signature: format!("bpb|bytes:utf8|context:cut|version:{version}"),
                per_sample: PerSample::Ratio(samples.iter().map(bits).collect()),
            }]
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
            let right = move |s: &Sample, per_char| {
                // A reply that was cleaned to a letter has no likelihoods.
                let chosen =
                    if s.log_likelihoods.is_empty() { s.response.clone() } else { letter(best(s, per_char)) };
                f64::from(u8::from(chosen == target(s)))
            };
            let protocol = serde_json::to_value(task.protocol)?;
            let how = format!(
                "acc|protocol:{}|choices:{}|shots:{}",
                protocol.as_str().unwrap_or_default(),
                serde_json::to_value(task.choices)?.as_str().unwrap_or_default(),
                task.few_shot
            );
            let mut out = vec![percent("acc", true, format!("{how}|norm:none"), &move |s| right(s, false))];
            if task.protocol != Protocol::PaperZeroshot {
                out.push(percent("acc_norm", true, format!("{how}|norm:characters"), &move |s| {
                    right(s, true)
                }));
            }
            out
        }
        TaskKind::Alignment => alignment_measures(task, samples)?,
        TaskKind::Translation | TaskKind::Qa | TaskKind::Mkqa | TaskKind::Summary => {
            let tools = tools(task)?;
            task.reply_metrics()
                .into_iter()
                .map(|m| reply_measure(task, m, &tools, samples))
                .collect::<Result<_>>()?
        }
    })
}

fn reply_measure(task: &EvalTask, metric: Metric, tools: &Tools, samples: &[Sample]) -> Result<Measure> {
    let version = env!("CARGO_PKG_VERSION");
    let language = &task.language;
    let target = |s: &Sample| s.targets.first().cloned().unwrap_or_default();
    let percent = |name: &'static str, higher_is_better, how: &str, f: &dyn Fn(&Sample) -> f64| Measure {
        name,
        higher_is_better,
        decimals: 1,
        signature: format!("{how}|lang:{language}|version:{version}"),
        per_sample: PerSample::Percent(samples.iter().map(f).collect()),
    };
    let corpus = |name: &'static str, higher_is_better, signature: String, per_sample| Measure {
        name,
        higher_is_better,
        decimals: 2,
        signature,
        per_sample,
    };
    let with = |s: &Sample, f: &dyn Fn(&str, &[&str], &str) -> f64| {
        f(&s.response, &s.targets.iter().map(String::as_str).collect::<Vec<_>>(), language)
    };
    let of_chrf = |words: usize| {
        let all = samples.iter().map(|s| chrf::statistics(&s.response, &target(s), words)).collect();
        (chrf::signature(words), PerSample::Chrf(all))
    };
    Ok(match metric {
        Metric::ExactMatch => percent("exact_match", true, "em|norm:mkqa", &|s| with(s, &qa::exact_match)),
        Metric::F1 => percent("f1", true, "f1|norm:mkqa", &|s| with(s, &qa::f1)),
        Metric::OffTarget => percent("off_target", false, "off-target", &|s| {
            f64::from(u8::from(is_off_target(&s.response, language)))
        }),
        Metric::Bleu => {
            let tok = tools.bleu.as_ref().context("BLEU has no tokenizer")?;
            let all = samples.iter().map(|s| bleu::statistics(&s.response, &target(s), tok)).collect();
            corpus("bleu", true, bleu::signature(tok.kind()), PerSample::Bleu(all))
        }
        Metric::Chrf | Metric::ChrfWords => {
            let (name, words) = if metric == Metric::Chrf { ("chrf", 0) } else { ("chrf++", 2) };
            let (signature, all) = of_chrf(words);
            corpus(name, true, signature, all)
        }
        Metric::Ter => {
            let options = TercomOptions::default();
            let all = samples.iter().map(|s| ter::statistics(&s.response, &target(s), &options)).collect();
            corpus("ter", false, ter::signature(&options), PerSample::Ter(all))
        }
        Metric::RougeL => {
            let rouge = tools.rouge.as_ref().context("ROUGE has no language")?;
            let all = samples.iter().map(|s| rouge.f1(&s.response, &target(s))).collect();
            corpus("rougeL", true, rouge.signature(), PerSample::Percent(all))
        }
    })
}

/// The headline numbers: those of the picture's layer.
fn alignment_measures(task: &EvalTask, samples: &[Sample]) -> Result<Vec<Measure>> {
    let mut all = looked("", task, samples)?;
    let layer = all.layer;
    let of = all.layers.swap_remove(layer);
    let pooling = serde_json::to_value(task.pooling.unwrap_or_default())?;
    let hits = |x: &[bool]| PerSample::Percent(x.iter().map(|x| f64::from(u8::from(*x))).collect());
    let (forward, backward) = (hits(&of.forward), hits(&of.backward));
    let measure = |name: &'static str, decimals, per_sample| Measure {
        name,
        higher_is_better: true,
        decimals,
        signature: format!(
            "{name}|lang:{}-{}|layer:{layer}|pooling:{}|version:{}",
            task.source_language,
            task.language,
            pooling.as_str().unwrap_or_default(),
            env!("CARGO_PKG_VERSION")
        ),
        per_sample,
    };
    Ok(vec![
        measure("cosine", 3, PerSample::Mean(of.cosines)),
        measure("cka", 3, PerSample::Cka(of.cka_parts)),
        measure("retrieval_forward", 1, forward),
        measure("retrieval_backward", 1, backward),
    ])
}

/// MKQA's official numbers and their signature, named as its script names them; its own exact match and F1 are measures already. A model states
/// no probability that there is no answer, so that it is 0 throughout, as for predictions without one.
pub fn official(task: &EvalTask, samples: &[Sample]) -> Result<Option<(Map<String, Value>, String)>> {
    if task.kind != TaskKind::Mkqa {
        return Ok(None);
    }
    let scored = |s: &Sample| {
        let answers: Vec<&str> = s.targets.iter().map(String::as_str).collect();
        mkqa::Scored::new(&answers, &s.response, 0.0, &task.language)
    };
    let scores = mkqa::scores(&samples.iter().map(scored).collect::<Vec<_>>());
    let Value::Object(mut scores) = serde_json::to_value(scores)? else { return Ok(None) };
    scores.retain(|key, _| key != "exact_match" && key != "f1");
    let (n, version) = (samples.len(), env!("CARGO_PKG_VERSION"));
    Ok(Some((scores, format!("mkqa|lang:{}|n:{n}|no-answer-prob:none|version:{version}", task.language))))
}

/// A, B, C ...
pub fn letter(index: usize) -> String {
    char::from_u32('A' as u32 + index as u32).unwrap_or('?').to_string()
}
