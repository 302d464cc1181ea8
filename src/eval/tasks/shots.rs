//! Solved questions before each row of a task whose replies are compared, where no description says how: the prompt and what was expected of it,
//! in lines of their own, as lm-eval puts few-shot examples before a question.
use anyhow::{Result, ensure};

use super::{Item, rows_of};
use crate::recipe::eval::{EvalTask, TaskKind};

/// What stands between two solved questions; a reply ends where the model writes it.
pub(super) const SEPARATOR: &str = "\n\n";

/// Gives every item its solved questions: the first of `few-shot-file`, or of the task's own file; no question is shown before itself, from whichever file.
///
/// # Errors
/// Fewer rows with an answer, each to another question than the item's, than `few-shot`.
pub(super) fn put_before(task: &EvalTask, items: &mut [Item]) -> Result<()> {
    let replies = [TaskKind::Translation, TaskKind::Qa, TaskKind::Mkqa, TaskKind::Summary];
    if task.few_shot == 0 || !replies.contains(&task.kind()) {
        return Ok(());
    }
    let others = match &task.few_shot_file {
        Some(file) => {
            let solved =
                EvalTask { file: file.clone(), reference: task.few_shot_reference.clone(), ..task.clone() };
            Some(rows_of(&solved)?)
        }
        None => None,
    };
    let solved = others.as_deref().unwrap_or(items);
    let asked = |item: &Item| match task.kind() {
        TaskKind::Summary => super::summaries::summary_prompt(task, &item.sample.prompt),
        _ => item.sample.prompt.clone(),
    };
    // One more than is shown, each of another question, so that whoever asks one of them has enough.
    let mut shots: Vec<(String, String)> = vec![];
    for item in solved {
        let answer = item.sample.targets.iter().find(|t| !t.trim().is_empty());
        let Some(answer) = answer.filter(|_| shots.len() <= task.few_shot) else { continue };
        let question = asked(item);
        if shots.iter().all(|(q, _)| *q != question) {
            let text = format!("{question}\n{}{SEPARATOR}", answer.trim());
            shots.push((question, text));
        }
    }
    for item in items {
        let question = asked(item);
        let others: Vec<&str> =
            shots.iter().filter(|(q, _)| *q != question).map(|(_, text)| text.as_str()).collect();
        ensure!(
            others.len() >= task.few_shot,
            "few-shot is {}, but {} has {} rows with an answer{}",
            task.few_shot,
            task.few_shot_file.as_ref().unwrap_or(&task.file).display(),
            shots.len(),
            if others.len() < shots.len() { ", and a row is not shown before itself" } else { "" }
        );
        item.before = others[..task.few_shot].concat();
    }
    Ok(())
}
