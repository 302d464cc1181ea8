//! What can be wrong with the tasks of an evaluation.
use std::collections::HashSet;

use super::{Mistakes, exists};
use crate::{
    eval,
    recipe::eval::{EvalSettings, EvalTask},
};

/// Every task for itself, where there is anything wrong with them: the files that are not there, each once, then whatever else is wrong.
pub(super) fn check(settings: &EvalSettings, wrong: &mut Mistakes) {
    let Err(whole) = eval::run::check(settings) else { return };
    let (before, mut seen) = (wrong.0.len(), HashSet::new());
    for task in &settings.tasks {
        let EvalTask { file, reference, few_shot_file, few_shot_reference, .. } = task;
        let files = [Some(file), reference.as_ref(), few_shot_file.as_ref(), few_shot_reference.as_ref()];
        let missing: Vec<_> = files.into_iter().flatten().filter(|path| !path.exists()).collect();
        for path in missing.iter().filter(|path| seen.insert(path.to_path_buf())) {
            wrong.take("eval", exists(&format!("eval: task {}", task.name), path));
        }
        let one = EvalSettings { tasks: vec![task.clone()], ..settings.clone() };
        if let Err(e) = eval::run::check(&one) {
            let text = format!("{e:#}");
            let told = missing.iter().any(|path| text.contains(&path.display().to_string()));
            if !told {
                wrong.take::<()>("eval", Err(e));
            }
        }
    }
    // What only the tasks together have wrong: a name that occurs twice.
    if wrong.0.len() == before {
        wrong.take::<()>("eval", Err(whole));
    }
}
