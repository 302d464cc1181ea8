//! Running one task: prompts, replies, log-likelihoods.
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::measure::{Sample, letter};
use crate::{
    data::{row_shard::RowShard, text_file::read_lines},
    infer::engine::{Engine, EngineOptions, ScoreRequest},
    mt::self_translate::translation_prompt,
    recipe::{
        eval::{Choices, EvalTask, TaskKind},
        generate::GenerateSettings,
    },
    report::progress::Progress,
    stages::{generate::Answerer, rows::interrupted},
};

/// The samples of `task`, in the file's order.
pub fn run(
    answerer: &Answerer,
    task: &EvalTask,
    system: Option<&str>,
    batch_rows: usize,
    label: &str,
) -> Result<Vec<Sample>> {
    let mut samples = match task.kind {
        TaskKind::Perplexity => texts(task)?,
        TaskKind::Translation => translations(task)?,
        TaskKind::Qa => questions(task)?,
        TaskKind::MultipleChoice => return multiple_choice(answerer, task, label),
    };
    ensure!(!samples.is_empty(), "{} has no rows", task.file.display());
    if task.limit > 0 {
        samples.truncate(task.limit);
    }
    if task.kind == TaskKind::Perplexity {
        log_likelihoods(answerer, &mut samples, label)?;
        return Ok(samples);
    }
    let settings = GenerateSettings {
        max_new_tokens: task.max_new_tokens,
        temperature: Some(0.0),
        repetition_penalty: Some(1.0),
        no_repeat_ngram_size: Some(0),
        system: system.map(String::from),
        batch_rows,
        ..Default::default()
    };
    let mut progress = Progress::new(label, samples.len());
    for chunk in samples.chunks_mut(batch_rows.max(1) * 4) {
        ensure!(!interrupted(), "stopped: the same command starts this task again");
        let ids: Vec<String> = chunk.iter().map(|s| s.doc_id.to_string()).collect();
        let asked: Vec<_> =
            chunk.iter().zip(&ids).map(|(s, id)| (id.as_str(), s.prompt.as_str(), "")).collect();
        let replies = answerer.answer(&asked, &settings, &mut |n| progress.advance(n))?;
        for (sample, (text, ..)) in chunk.iter_mut().zip(replies) {
            // A translation of one line is one line.
            sample.response = match task.kind {
                TaskKind::Translation => text.lines().next().unwrap_or_default().trim().to_string(),
                _ => text,
            };
        }
    }
    progress.finish();
    Ok(samples)
}

fn texts(task: &EvalTask) -> Result<Vec<Sample>> {
    let lines = read_lines(&task.file)?;
    let text = |(doc_id, prompt): (usize, String)| Sample { doc_id, prompt, ..Default::default() };
    Ok(lines.into_iter().enumerate().filter(|(_, l)| !l.trim().is_empty()).map(text).collect())
}

fn translations(task: &EvalTask) -> Result<Vec<Sample>> {
    let reference = task.reference.as_deref().context("`reference` is missing")?;
    let (sources, references) = (read_lines(&task.file)?, read_lines(reference)?);
    ensure!(
        sources.len() == references.len(),
        "{} has {} lines, {} has {}: they must be parallel",
        task.file.display(),
        sources.len(),
        reference.display(),
        references.len()
    );
    let pairs = sources.iter().zip(references).enumerate();
    Ok(pairs
        .map(|(doc_id, (source, reference))| Sample {
            doc_id,
            prompt: translation_prompt(&task.prompt, &task.source_language, &task.language, source),
            targets: vec![reference],
            ..Default::default()
        })
        .collect())
}

fn questions(task: &EvalTask) -> Result<Vec<Sample>> {
    let shard = RowShard::open(&task.file)?;
    (0..shard.len())
        .map(|i| {
            let row: Map<String, Value> = shard.get(i)?;
            let text = |key: &str| row.get(key).and_then(Value::as_str).map(String::from);
            let list = |key: &str| {
                row.get(key)
                    .and_then(Value::as_array)
                    .map(|a| a.iter().filter_map(Value::as_str).map(String::from).collect())
            };
            let prompt = text("question").or_else(|| text("instruction"));
            let answers: Option<Vec<String>> =
                list("answers").or_else(|| text("answer").or_else(|| text("output")).map(|a| vec![a]));
            let (Some(prompt), Some(targets)) = (prompt, answers.filter(|a| !a.is_empty())) else {
                bail!("{}: expected `question` (a text) and `answers` (texts)", shard.place(i))
            };
            Ok(Sample { doc_id: i, prompt, targets, ..Default::default() })
        })
        .collect()
}

/// Scores each text from its first token on (behind the begin token, if the model has one). Texts beyond the context are cut.
fn log_likelihoods(answerer: &Answerer, samples: &mut [Sample], label: &str) -> Result<()> {
    let mut engine = Engine::new(&answerer.model, EngineOptions::default())?;
    let mut requests = vec![];
    for sample in samples.iter_mut() {
        let mut tokens = answerer.tokenizer.encode(&sample.prompt, true)?;
        tokens.truncate(engine.context());
        let start = 1.min(tokens.len());
        // Without a begin token the first token has nothing before it and is not scored; its bytes do not count then.
        let scored = answerer.tokenizer.decode(&tokens[start..])?;
        sample.lengths = vec![scored.len(), tokens.len() - start];
        requests.push(ScoreRequest { tokens, start });
    }
    let keep: Vec<usize> = (0..requests.len()).filter(|&i| requests[i].tokens.len() > 1).collect();
    let asked: Vec<ScoreRequest> = keep.iter().map(|&i| requests[i].clone()).collect();
    for (i, x) in keep.into_iter().zip(score(&mut engine, &asked, label)?) {
        samples[i].log_likelihoods = vec![x];
    }
    Ok(())
}

/// The log-likelihood of each request's scored tokens, in nats.
fn score(engine: &mut Engine, requests: &[ScoreRequest], label: &str) -> Result<Vec<f64>> {
    let mut progress = Progress::new(label, requests.len());
    let mut out = vec![];
    for chunk in requests.chunks(64) {
        ensure!(!interrupted(), "stopped: the same command starts this task again");
        for values in engine.log_probs(chunk, &mut |n| progress.advance(n))? {
            // Six decimals: more than f32 sums mean.
            let sum: f64 = values.iter().map(|x| f64::from(*x)).sum();
            out.push((sum * 1e6).round() / 1e6);
        }
    }
    progress.finish();
    Ok(out)
}

/// A question with its choices and the index of the right one.
struct Question {
    /// Belebele: the passage.
    passage: Option<String>,
    stem: String,
    choices: Vec<String>,
    right: usize,
}

fn multiple_choice(answerer: &Answerer, task: &EvalTask, label: &str) -> Result<Vec<Sample>> {
    let questions = read_questions(&task.file)?;
    let shots: Vec<String> = questions
        .iter()
        .take(task.few_shot)
        .map(|q| format!("{}{}\n\n", render(q, task.choices), continuation(q, q.right, task.choices)))
        .collect();
    let shots = shots.concat();
    let count = if task.limit > 0 { task.limit.min(questions.len()) } else { questions.len() };
    let mut engine = Engine::new(&answerer.model, EngineOptions::default())?;
    let (mut samples, mut requests) = (vec![], vec![]);
    for (doc_id, q) in questions.iter().enumerate().take(count) {
        let prompt = format!("{shots}{}", render(q, task.choices));
        let given = answerer.tokenizer.encode(&prompt, true)?;
        for i in 0..q.choices.len() {
            // The whole is encoded at once and cut where the prompt ends, as lm-eval does.
            let whole = format!("{prompt}{}", continuation(q, i, task.choices));
            let mut tokens = answerer.tokenizer.encode(&whole, true)?;
            let mut start = given.len().min(tokens.len() - 1).max(1);
            // Too long: the beginning goes.
            let surplus = tokens.len().saturating_sub(engine.context());
            tokens.drain(..surplus);
            start = start.saturating_sub(surplus).max(1);
            requests.push(ScoreRequest { tokens, start });
        }
        samples.push(Sample {
            doc_id,
            prompt,
            targets: vec![letter(q.right)],
            lengths: (0..q.choices.len())
                .map(|i| continuation(q, i, task.choices).trim().chars().count())
                .collect(),
            ..Default::default()
        });
    }
    let scores = score(&mut engine, &requests, label)?;
    let mut rest = &scores[..];
    for sample in &mut samples {
        let (own, others) = rest.split_at(sample.lengths.len());
        rest = others;
        sample.log_likelihoods = own.to_vec();
        let best = (0..own.len()).fold(0, |b, i| if own[i] > own[b] { i } else { b });
        sample.response = letter(best);
    }
    Ok(samples)
}

/// lm-eval's belebele template; without a passage the same with `Question:`.
fn render(q: &Question, choices: Choices) -> String {
    let mut out = match &q.passage {
        Some(passage) => format!("P: {passage}\nQ: {}\n", q.stem.trim()),
        None => format!("Question: {}\n", q.stem.trim()),
    };
    if choices == Choices::Letters {
        for (i, choice) in q.choices.iter().enumerate() {
            out.push_str(&format!("{}: {choice}\n", letter(i)));
        }
    }
    out + "Answer:"
}

fn continuation(q: &Question, i: usize, choices: Choices) -> String {
    match choices {
        Choices::Letters => format!(" {}", letter(i)),
        Choices::Texts => format!(" {}", q.choices[i].trim()),
    }
}

/// Belebele (`flores_passage`, `question`, `mc_answer1` ..., `correct_answer_num`) or EXAMS (`question.stem`, `question.choices`, `answerKey`).
fn read_questions(path: &Path) -> Result<Vec<Question>> {
    let shard = RowShard::open(path)?;
    ensure!(!shard.is_empty(), "{} has no rows", path.display());
    (0..shard.len())
        .map(|i| {
            let row: Value = shard.get(i)?;
            let found = if row["question"].is_object() { exams(&row) } else { belebele(&row) };
            found.with_context(|| {
                format!(
                    "{}: neither a Belebele nor an EXAMS question with its right answer among the choices",
                    shard.place(i)
                )
            })
        })
        .collect()
}

fn exams(row: &Value) -> Option<Question> {
    let question = &row["question"];
    let listed = question["choices"].as_array()?;
    let choices: Vec<String> =
        listed.iter().map(|c| Some(c["text"].as_str()?.to_string())).collect::<Option<_>>()?;
    let right = listed.iter().position(|c| c["label"] == row["answerKey"] && c["label"].is_string())?;
    Some(Question { passage: None, stem: question["stem"].as_str()?.to_string(), choices, right })
}

fn belebele(row: &Value) -> Option<Question> {
    let choices: Vec<String> =
        (1..=4).map(|i| Some(row[format!("mc_answer{i}")].as_str()?.to_string())).collect::<Option<_>>()?;
    let number = &row["correct_answer_num"];
    let number = number.as_u64().or_else(|| number.as_str()?.trim().parse().ok())? as usize;
    let right = number.checked_sub(1).filter(|r| *r < choices.len())?;
    let passage = Some(row["flores_passage"].as_str()?.to_string());
    Some(Question { passage, stem: row["question"].as_str()?.to_string(), choices, right })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn both_formats_are_read_and_rendered_as_lm_eval_does() {
        let row = json!({"flores_passage": "A passage.", "question": "What? ", "mc_answer1": "w", "mc_answer2": "x",
            "mc_answer3": "y", "mc_answer4": "z", "correct_answer_num": "2"});
        let q = belebele(&row).unwrap();
        assert_eq!(render(&q, Choices::Letters), "P: A passage.\nQ: What?\nA: w\nB: x\nC: y\nD: z\nAnswer:");
        assert_eq!((q.right, continuation(&q, 1, Choices::Letters).as_str()), (1, " B"));
        let row = json!({"question": {"stem": "S?", "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]}, "answerKey": "B"});
        let q = exams(&row).unwrap();
        assert_eq!((q.right, render(&q, Choices::Texts).as_str()), (1, "Question: S?\nAnswer:"));
    }

    proptest! {
        #[test]
        fn any_json_is_judged(text in "\\PC{0,80}", n in any::<u64>()) {
            if let Ok(row) = serde_json::from_str::<Value>(&text) {
                let _ = (exams(&row), belebele(&row));
            }
            let row = json!({"flores_passage": "", "question": "", "mc_answer1": "", "mc_answer2": "", "mc_answer3": "", "mc_answer4": "", "correct_answer_num": n});
            prop_assert_eq!(belebele(&row).is_some(), (1..=4).contains(&n));
        }
    }
}
