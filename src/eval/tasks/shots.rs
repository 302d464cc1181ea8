//! Solved questions before each row of a task whose replies are compared, where no description says how: the prompt and what was expected of it,
//! in lines of their own, as lm-eval puts few-shot examples before a question.
use anyhow::{Result, ensure};

use super::{Item, rows_of};
use crate::recipe::eval::{EvalTask, TaskKind};

/// What stands between two solved questions; a reply ends where the model writes it.
pub(super) const SEPARATOR: &str = "\n\n";

/// Gives every item its solved questions: the first of `few-shot-file`, or of the task's own file; no row is shown before itself.
///
/// # Errors
/// Fewer rows with an answer than `few-shot`.
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
    let own = others.is_none();
    let solved = others.as_deref().unwrap_or(items);
    let asked = |item: &Item| match task.kind() {
        TaskKind::Summary => super::summaries::summary_prompt(task, &item.sample.prompt),
        _ => item.sample.prompt.clone(),
    };
    let answered = solved.iter().filter_map(|item| {
        let answer = item.sample.targets.iter().find(|t| !t.trim().is_empty())?;
        Some((item.sample.doc_id, format!("{}\n{}{SEPARATOR}", asked(item), answer.trim())))
    });
    let shots: Vec<(usize, String)> = answered.take(task.few_shot + usize::from(own)).collect();
    ensure!(
        shots.len() >= task.few_shot + usize::from(own),
        "few-shot is {}, but {} has {} rows with an answer{}",
        task.few_shot,
        task.few_shot_file.as_ref().unwrap_or(&task.file).display(),
        shots.len(),
        if own { ", and a row is not shown before itself" } else { "" }
    );
    for item in items {
        let others = shots.iter().filter(|(id, _)| !own || *id != item.sample.doc_id);
        item.before = others.take(task.few_shot).map(|(_, text)| text.as_str()).collect();
    }
    Ok(())
}
