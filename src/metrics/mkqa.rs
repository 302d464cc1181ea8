//! MKQA (Longpre et al. 2021) as its official script scores it (apple/ml-mkqa, `mkqa_eval.py`): its files, its numbers and their rounding.
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{qa, significance::mean};
use crate::data::{languages, text_file};

/// The known answers of one question.
#[derive(Clone, Debug, PartialEq)]
pub struct Gold {
    /// `example_id`.
    pub id: String,
    /// Texts and aliases, each once; only "" where there is no answer.
    pub answers: Vec<String>,
}

/// What was predicted for one question.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// `example_id`.
    pub id: String,
    /// yes, no, the text, or "" for no answer.
    pub answer: String,
    /// `no_answer_prob`, on any scale; 0 if it is not given.
    pub no_answer: f64,
}

/// The script's numbers, in percent but for the threshold. Those over no questions are NaN, as there.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct MkqaScores {
    /// Exact match where "no answer" is said above the threshold.
    pub best_em: f64,
    /// F1 likewise; the threshold is the one that makes it largest.
    pub best_f1: f64,
    /// Of the questions with an answer.
    pub best_answerable_em: f64,
    /// Of the questions with an answer.
    pub best_answerable_f1: f64,
    /// Of the questions without an answer.
    pub best_unanswerable_em: f64,
    /// Above it a prediction counts as "no answer".
    pub best_f1_threshold: f64,
    /// As predicted, without a threshold.
    pub exact_match: f64,
    /// As predicted.
    pub f1: f64,
    /// Of the questions with an answer.
    pub answerable_exact_match: f64,
    /// Of the questions with an answer.
    pub answerable_f1: f64,
    /// Of the questions without an answer.
    pub unanswerable_exact_match: f64,
}

/// Each line of a JSONL file, with its place for messages.
fn rows(path: &Path) -> Result<Vec<(String, Value)>> {
    let mut out = vec![];
    let mut lines = text_file::lines(path)?;
    while let Some(line) = lines.next().transpose()? {
        let place = format!("{}:{}", path.display(), lines.number());
        if !line.trim().is_empty() {
            let row = serde_json::from_str(&line).with_context(|| format!("{place}: not JSON"))?;
            out.push((place, row));
        }
    }
    ensure!(!out.is_empty(), "{} has no rows", path.display());
    Ok(out)
}

fn id_of(row: &Value, place: &str, seen: &mut HashSet<String>) -> Result<String> {
    let id = match &row["example_id"] {
        Value::String(id) => id.clone(),
        Value::Number(id) => id.to_string(),
        other => bail!("{place}: example_id is {other}, expected a number or a string"),
    };
    ensure!(seen.insert(id.clone()), "{place}: example_id {id} stands in the file twice");
    Ok(id)
}

/// Reads the official annotations (`mkqa.jsonl.gz`) for one language, by its name in the file (`no`, `zh_cn`) or any other.
pub fn read_gold(path: &Path, language: &str) -> Result<Vec<Gold>> {
    let mut seen = HashSet::new();
    let mut out = vec![];
    for (place, row) in rows(path)? {
        let all = row["answers"].as_object().with_context(|| format!("{place}: no object `answers`"))?;
        let code = languages::without_script(language);
        let answers =
            all.get(language).or_else(|| all.get(code)).and_then(Value::as_array).with_context(|| {
                let known = all.keys().map(String::as_str).collect::<Vec<_>>().join(" ");
                format!("{place}: no answers in {language}; there are {known}")
            })?;
        let mut texts = BTreeSet::new();
        for answer in answers {
            texts.insert(match &answer["text"] {
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                other => bail!("{place}: an answer's text is {other}"),
            });
            let aliases = answer["aliases"].as_array().into_iter().flatten();
            for alias in aliases {
                let text = alias.as_str().with_context(|| format!("{place}: an alias is {alias}"))?;
                texts.insert(text.into());
            }
        }
        ensure!(!texts.is_empty(), "{place}: a question needs an answer, if only one without text");
        out.push(Gold { id: id_of(&row, &place, &mut seen)?, answers: texts.into_iter().collect() });
    }
    Ok(out)
}

/// Reads predictions in the official form: `example_id`, `prediction`, `binary_answer`, `no_answer_prob`.
pub fn read_predictions(path: &Path) -> Result<Vec<Prediction>> {
    let mut seen = HashSet::new();
    let mut out = vec![];
    for (place, row) in rows(path)? {
        let text = |key: &str| match row.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(Value::Null) => Ok(String::new()),
            Some(other) => bail!("{place}: {key} is {other}, expected text or null"),
            None => bail!("{place}: there is no {key}"),
        };
        let binary = text("binary_answer")?.to_lowercase();
        ensure!(
            matches!(binary.as_str(), "" | "yes" | "no"),
            "{place}: binary_answer is {binary:?}, expected yes, no or null"
        );
        let no_answer = match row.get("no_answer_prob") {
            None => 0.0,
            Some(p) => p.as_f64().with_context(|| format!("{place}: no_answer_prob is {p}"))?,
        };
        let answer = if binary.is_empty() { text("prediction")? } else { binary };
        out.push(Prediction { id: id_of(&row, &place, &mut seen)?, answer, no_answer });
    }
    Ok(out)
}

/// One prediction against its question.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredAnswer {
    em: f64,
    f1: f64,
    answerable: bool,
    answered: bool,
    no_answer: f64,
}

impl ScoredAnswer {
    /// `answers` as in [`Gold`], `answer` and `no_answer` as in [`Prediction`].
    pub fn new(answers: &[&str], answer: &str, no_answer: f64, language: &str) -> ScoredAnswer {
        ScoredAnswer {
            em: qa::exact_match(answer, answers, language),
            f1: qa::f1(answer, answers, language),
            answerable: answers != [""],
            answered: !answer.is_empty(),
            no_answer,
        }
    }
}

/// The official numbers. Every question needs a prediction, every prediction a question.
pub fn evaluate(golds: &[Gold], predictions: &[Prediction], language: &str) -> Result<MkqaScores> {
    let by_id: HashMap<&str, &Gold> = golds.iter().map(|g| (g.id.as_str(), g)).collect();
    let predicted: HashMap<&str, &Prediction> = predictions.iter().map(|p| (p.id.as_str(), p)).collect();
    let missing: Vec<&str> =
        golds.iter().map(|g| g.id.as_str()).filter(|id| !predicted.contains_key(id)).collect();
    if let Some(first) = missing.first() {
        bail!("{} of {} questions have no prediction, the first is {first}", missing.len(), golds.len());
    }
    let score = |gold: &Gold, p: &Prediction| {
        let answers: Vec<&str> = gold.answers.iter().map(String::as_str).collect();
        ScoredAnswer::new(&answers, &p.answer, p.no_answer, language)
    };
    // In the order of the predictions for the threshold, of the questions for the means: sums depend on it in their last bits.
    let sweep: Vec<ScoredAnswer> = predictions
        .iter()
        .map(|p| {
            let gold = by_id.get(p.id.as_str());
            Ok(score(gold.with_context(|| format!("prediction {} is of no question in the file", p.id))?, p))
        })
        .collect::<Result<_>>()?;
    let all: Vec<ScoredAnswer> =
        golds.iter().filter_map(|g| Some(score(g, predicted.get(g.id.as_str())?))).collect();
    let (best, threshold) = best_threshold(&sweep);
    Ok(summary(&all, best, threshold))
}

/// The official numbers of predictions in the order of their questions.
pub fn scores(all: &[ScoredAnswer]) -> MkqaScores {
    let (best, threshold) = best_threshold(all);
    summary(all, best, threshold)
}

/// The largest F1 (percent), and the threshold with which it is reached: from nobody answers to everybody does.
fn best_threshold(all: &[ScoredAnswer]) -> (f64, f64) {
    let mut sorted: Vec<&ScoredAnswer> = all.iter().collect();
    sorted.sort_by(|a, b| a.no_answer.partial_cmp(&b.no_answer).unwrap_or(std::cmp::Ordering::Equal));
    let mut now = all.iter().filter(|s| !s.answerable).count() as f64;
    let (mut best, mut threshold) = (now, 0.0);
    for s in sorted {
        now += match (s.answerable, s.answered) {
            (true, _) => s.f1,
            (false, true) => -1.0,
            (false, false) => 0.0,
        };
        if now > best {
            (best, threshold) = (now, s.no_answer);
        }
    }
    (100.0 * best / all.len() as f64, threshold)
}

fn summary(all: &[ScoredAnswer], best_f1: f64, threshold: f64) -> MkqaScores {
    // NumPy rounds its own numbers by scaling them, Python its own exactly.
    let average = |which: &dyn Fn(&ScoredAnswer) -> bool, of: &dyn Fn(&ScoredAnswer) -> f64| {
        let values: Vec<f64> = all.iter().filter(|s| which(s)).map(of).collect();
        (100.0 * mean(&values) * 100.0).round_ties_even() / 100.0
    };
    let exact = |x: f64| format!("{x:.2}").parse().unwrap_or(x);
    let cut = |s: &ScoredAnswer, value: f64| {
        if s.no_answer > threshold { f64::from(u8::from(!s.answerable)) } else { value }
    };
    let (any, yes, no) =
        (|_: &ScoredAnswer| true, |s: &ScoredAnswer| s.answerable, |s: &ScoredAnswer| !s.answerable);
    MkqaScores {
        best_em: average(&any, &|s| cut(s, s.em)),
        best_f1: exact(best_f1),
        best_answerable_em: average(&yes, &|s| cut(s, s.em)),
        best_answerable_f1: average(&yes, &|s| cut(s, s.f1)),
        best_unanswerable_em: average(&no, &|s| cut(s, s.em)),
        best_f1_threshold: exact(threshold),
        exact_match: average(&any, &|s| s.em),
        f1: average(&any, &|s| s.f1),
        answerable_exact_match: average(&yes, &|s| s.em),
        answerable_f1: average(&yes, &|s| s.f1),
        unanswerable_exact_match: average(&no, &|s| s.em),
    }
}
