//! One task of an evaluation written once for several languages.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::eval::EvalTask;
use crate::data::languages;

/// Replaces each task that has `languages` by one for each of them, in their order.
///
/// # Errors
/// A task without a language, a language that is not known, a name that all of its tasks would have.
pub fn expand(tasks: &mut Vec<EvalTask>) -> Result<()> {
    let mut expanded = vec![];
    for task in std::mem::take(tasks) {
        if task.languages.is_empty() {
            ensure!(
                !task.language.is_empty(),
                "task {}: `language` is missing: a code such as \"es\", or `languages` with several",
                task.name
            );
            expanded.push(task);
            continue;
        }
        ensure!(
            task.languages.len() == 1 || task.name.contains("{language"),
            "task {}: with `languages`, `name` needs {{language}}: each of its tasks has a name of its own",
            task.name
        );
        for code in &task.languages {
            expanded.push(in_language(&task, code).with_context(|| format!("task {}", task.name))?);
        }
    }
    *tasks = expanded;
    Ok(())
}

fn in_language(task: &EvalTask, code: &str) -> Result<EvalTask> {
    let known = languages::require(code)?;
    let fill = |text: &str| {
        let filled = [("{language}", code), ("{language3}", known.code3), ("{flores}", known.nllb)];
        filled.iter().fold(text.to_string(), |text, (key, value)| text.replace(key, value))
    };
    let path = |path: &Path| PathBuf::from(fill(&path.to_string_lossy()));
    let paths = |given: &Option<PathBuf>| given.as_deref().map(path);
    let all = |texts: &[String]| texts.iter().map(|text| fill(text)).collect();
    Ok(EvalTask {
        name: fill(&task.name),
        columns: all(&task.columns),
        only: all(&task.only),
        file: path(&task.file),
        reference: paths(&task.reference),
        language: if task.language.is_empty() { code.into() } else { fill(&task.language) },
        languages: vec![],
        source_language: fill(&task.source_language),
        prompt: task.prompt.as_deref().map(fill),
        few_shot_file: paths(&task.few_shot_file),
        few_shot_reference: paths(&task.few_shot_reference),
        dictionary: paths(&task.dictionary),
        ..task.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks(text: &str) -> Result<Vec<EvalTask>> {
        let mut tasks = vec![toml::from_str(text)?];
        expand(&mut tasks)?;
        Ok(tasks)
    }

    #[test]
    fn a_task_is_written_once_for_several_languages() {
        let found = tasks(
            "name = \"to-{language}\"\nkind = \"translation\"\nlanguages = [\"cs\", \"pt\"]\nfile = \"test.en\"\n\
             reference = \"{language}/{language3}/devtest.{flores}\"\nprompt = \"{text} {target}\"",
        );
        let found = found.unwrap();
        assert_eq!(found.len(), 2);
        let second = &found[1];
        assert_eq!((second.name.as_str(), second.language.as_str()), ("to-pt", "pt"));
        assert_eq!(second.reference.as_deref(), Some(Path::new("pt/por/devtest.por_Latn")));
        assert_eq!((second.prompt(), second.source_language.as_str()), ("{text} {target}", "en"));
        assert!(second.languages.is_empty() && found[0].name == "to-cs");
        // The other direction: `language` stays, `source-language` varies.
        let back = "name = \"{language}-en\"\nkind = \"translation\"\nlanguages = [\"cs\"]\nlanguage = \"en\"\n\
                    source-language = \"{language}\"\nfile = \"test.{language}\"\nreference = \"test.en\"";
        let back = &tasks(back).unwrap()[0];
        assert_eq!((back.language.as_str(), back.source_language.as_str()), ("en", "cs"));
        assert_eq!((back.file.as_path(), back.name.as_str()), (Path::new("test.cs"), "cs-en"));
    }

    #[test]
    fn what_cannot_be_expanded_is_named() {
        let refused = |text: &str, part: &str| {
            let error = format!("{:#}", tasks(text).unwrap_err());
            assert!(error.contains(part), "{error}");
        };
        let task = "kind = \"qa\"\nfile = \"f\"\n";
        refused(&format!("name = \"t\"\n{task}"), "task t: `language` is missing");
        refused(&format!("name = \"t\"\nlanguages = [\"es\", \"cs\"]\n{task}"), "`name` needs {language}");
        refused(&format!("name = \"t-{{language}}\"\nlanguages = [\"es\", \"qq\"]\n{task}"), "qq");
    }
}
