//! Multiple-choice questions: the formats that are read, the prompts that are asked.
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Ask, Item, unique};
use crate::{
    data::row_shard::RowShard,
    eval::sample::Sample,
    metrics::catalog::letter,
    recipe::eval::{ChoiceProtocol, Choices, EvalTask},
};

/// A question with its choices and the index of the right one.
#[derive(Clone, Debug)]
struct Question {
    /// Belebele: the passage.
    passage: Option<String>,
    stem: String,
    choices: Vec<String>,
    right: usize,
}

/// A question and its row.
type Row = (Question, Value);

/// Every question of the task, rendered as its protocol has it.
pub fn items(task: &EvalTask) -> Result<Vec<Item>> {
    let rows = read(&task.file)?;
    let solved = match &task.few_shot_file {
        Some(file) => read(file)?,
        None => rows.clone(),
    };
    let shots =
        if task.protocol == ChoiceProtocol::Paper5shot && task.few_shot == 0 { 5 } else { task.few_shot };
    ensure!(
        shots <= solved.len(),
        "few-shot is {shots}, but {} has {} questions",
        task.few_shot_file.as_ref().unwrap_or(&task.file).display(),
        solved.len()
    );
    if task.protocol == ChoiceProtocol::PaperZeroshot {
        ensure!(shots == 0, "protocol paper-zeroshot takes no solved questions: leave few-shot at 0");
        return Ok(rows.into_iter().enumerate().map(|(i, row)| instruction(i, row)).collect());
    }
    let shots: String = solved
        .iter()
        .take(shots)
        .map(|(q, _)| format!("{}{}\n\n", render(q, task.choices), continuation(q, q.right, task.choices)))
        .collect();
    let item = |(doc_id, (q, doc)): (usize, Row)| {
        let prompt = format!("{shots}{}", render(&q, task.choices));
        let continuations: Vec<String> =
            (0..q.choices.len()).map(|i| continuation(&q, i, task.choices)).collect();
        let sample = Sample {
            doc_id,
            prompt,
            targets: vec![letter(q.right)],
            lengths: super::lengths(&continuations.iter().map(|c| c.trim()).collect::<Vec<_>>()),
            ..Default::default()
        };
        Item { sample, ask: Ask::Choose(continuations), before: String::new(), doc }
    };
    Ok(rows.into_iter().enumerate().map(item).collect())
}

/// The zero-shot instruction of the Belebele authors (sample_zero_shot_instructions.md), answered in words.
fn instruction(doc_id: usize, (q, doc): Row) -> Item {
    let passage = q.passage.as_ref().map(|p| format!("Passage:\n{p}\n###\n")).unwrap_or_default();
    let choices: Vec<String> =
        q.choices.iter().enumerate().map(|(i, c)| format!("({}) {c}", letter(i))).collect();
    let prompt = format!(
        "Given the following passage, query, and answer choices, output the letter corresponding to the correct answer.\n###\n{passage}Query:\n\
         {}\n###\nChoices:\n{}\n###\nAnswer:",
        q.stem.trim(),
        choices.join("\n")
    );
    let sample = Sample { doc_id, prompt, targets: vec![letter(q.right)], ..Default::default() };
    Item { sample, ask: Ask::Letter(q.choices.len()), before: String::new(), doc }
}

/// The letter that a reply names: the first `(A)`, else a letter that stands first and alone, else nothing.
pub fn named_letter(reply: &str, choices: usize) -> String {
    let letters: Vec<String> = (0..choices).map(letter).collect();
    let bracketed = letters.iter().filter_map(|l| Some((reply.find(&format!("({l})"))?, l))).min();
    let first: String = reply.trim_start().chars().take_while(|c| c.is_alphanumeric()).collect();
    bracketed.map(|(_, l)| l).or_else(|| letters.iter().find(|l| **l == first)).cloned().unwrap_or_default()
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

/// Belebele (`flores_passage`, `question`, `mc_answer1` ..., `correct_answer_num`), EXAMS (`question.stem`, `question.choices`, `answerKey`), or
/// plain rows (`question`, `choices`: texts, `answer`: a letter or an index from 0).
fn read(path: &Path) -> Result<Vec<Row>> {
    let shard = RowShard::open(path)?;
    ensure!(!shard.is_empty(), "{} has no rows", path.display());
    let mut seen = std::collections::HashSet::new();
    let mut out = vec![];
    for i in 0..shard.len() {
        let row: Value = shard.get(i)?;
        unique(&row, &shard.place(i), &mut seen)?;
        let found = if row["question"].is_object() {
            exams(&row)
        } else if row["choices"].is_array() {
            plain(&row)
        } else {
            belebele(&row)
        };
        let q = found.with_context(|| shard.place(i))?;
        ensure!(q.choices.len() >= 2, "{}: a question needs two choices or more", shard.place(i));
        out.push((q, row));
    }
    Ok(out)
}

fn text(row: &Value, field: &str) -> Result<String> {
    row[field].as_str().map(String::from).with_context(|| format!("the text `{field}` is missing"))
}

fn in_range(right: Option<usize>, given: &Value, field: &str, choices: usize) -> Result<usize> {
    right
        .filter(|r| *r < choices)
        .with_context(|| format!("`{field}` is {given}: the right answer is none of the {choices} choices"))
}

fn exams(row: &Value) -> Result<Question> {
    let question = &row["question"];
    let listed = question["choices"].as_array().context("`question.choices` is missing")?;
    let choices: Vec<String> = listed
        .iter()
        .map(|c| c["text"].as_str().map(String::from).context("a choice has no `text`"))
        .collect::<Result<_>>()?;
    let right = listed.iter().position(|c| c["label"] == row["answerKey"] && c["label"].is_string());
    let right = in_range(right, &row["answerKey"], "answerKey", choices.len())?;
    Ok(Question { passage: None, stem: text(question, "stem")?, choices, right })
}

fn belebele(row: &Value) -> Result<Question> {
    let choices: Vec<String> =
        (1..=4).map(|i| text(row, &format!("mc_answer{i}"))).collect::<Result<_>>().context(
            "neither Belebele (mc_answer1 ...) nor EXAMS (question.choices) nor plain (`question`, `choices`, `answer`)",
        )?;
    let given = &row["correct_answer_num"];
    let number = given.as_u64().or_else(|| given.as_str()?.trim().parse().ok());
    let right = number.and_then(|n| usize::try_from(n).ok()?.checked_sub(1));
    let right = in_range(right, given, "correct_answer_num", choices.len())?;
    Ok(Question { passage: Some(text(row, "flores_passage")?), stem: text(row, "question")?, choices, right })
}

fn plain(row: &Value) -> Result<Question> {
    let listed = row["choices"].as_array().context("`choices` is missing")?;
    let choices: Vec<String> = listed
        .iter()
        .map(|c| c.as_str().map(String::from).context("a choice is no text"))
        .collect::<Result<_>>()?;
    let given = &row["answer"];
    let right = match given {
        Value::Number(n) => n.as_u64().and_then(|n| usize::try_from(n).ok()),
        Value::String(s) => (0..choices.len()).find(|&i| letter(i) == s.trim()),
        _ => bail!("`answer` is missing: a letter or an index from 0"),
    };
    let right = in_range(right, given, "answer", choices.len())?;
    let passage = row["passage"].as_str().map(String::from);
    Ok(Question { passage, stem: text(row, "question")?, choices, right })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn formats_are_read_and_rendered_as_lm_eval_does() {
        let row = json!({"flores_passage": "A passage.", "question": "What? ", "mc_answer1": "w", "mc_answer2": "x",
            "mc_answer3": "y", "mc_answer4": "z", "correct_answer_num": "2"});
        let q = belebele(&row).unwrap();
        assert_eq!(render(&q, Choices::Letters), "P: A passage.\nQ: What?\nA: w\nB: x\nC: y\nD: z\nAnswer:");
        assert_eq!((q.right, continuation(&q, 1, Choices::Letters).as_str()), (1, " B"));
        assert!(
            instruction(0, (q.clone(), row))
                .sample
                .prompt
                .ends_with("###\nChoices:\n(A) w\n(B) x\n(C) y\n(D) z\n###\nAnswer:")
        );
        let row = json!({"question": {"stem": "S?", "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]}, "answerKey": "B"});
        let q = exams(&row).unwrap();
        assert_eq!((q.right, render(&q, Choices::Texts).as_str()), (1, "Question: S?\nAnswer:"));
        let row = json!({"question": "S?", "choices": ["a", "b"], "answer": "B"});
        assert_eq!(plain(&row).unwrap().right, 1);
        for answer in [json!(2), json!("C"), json!(-1), json!(null)] {
            let row = json!({"question": "S?", "choices": ["a", "b"], "answer": answer});
            assert!(plain(&row).is_err(), "{row}");
        }
    }

    #[test]
    fn replies_are_cleaned_to_a_letter() {
        for (reply, letter) in [
            ("(B)", "B"),
            ("The answer is (C), not (A).", "C"),
            ("D. Because", "D"),
            ("Apples", ""),
            ("E", ""),
            ("", ""),
        ] {
            assert_eq!(named_letter(reply, 4), letter, "{reply}");
        }
    }

    proptest! {
        #[test]
        fn any_json_is_judged(text in "\\PC{0,80}", n in any::<u64>()) {
            if let Ok(row) = serde_json::from_str::<Value>(&text) {
                let _ = (exams(&row), belebele(&row), plain(&row));
            }
            let row = json!({"flores_passage": "", "question": "", "mc_answer1": "", "mc_answer2": "", "mc_answer3": "", "mc_answer4": "", "correct_answer_num": n});
            prop_assert_eq!(belebele(&row).is_ok(), (1..=4).contains(&n));
            let _ = named_letter(&text, 5);
        }
    }
}
