//! Evaluates a model on two tasks and scores translations: `cargo run --release --example evaluate [OUT]`.
use std::path::{Path, PathBuf};

use sdrrl::{
    EvalSettings, EvalTask, LoadOptions, Model, ScoreOptions, ScoreSettings, TaskKind, TranslationScorer,
};

const WORLD: &str = "assets/quickstart/world";

fn main() -> sdrrl::Result<()> {
    // This model is trusted: its chat template, which is a program, runs in this process. For others give the path of a `sdrrl` binary, which runs it within
    // limits (without this line one beside this program or on the PATH is taken).
    sdrrl::use_program(None);
    let out = std::env::args().nth(1).map(PathBuf::from);
    run(&out.unwrap_or_else(|| std::env::temp_dir().join("sdrrl-example-eval")))
}

/// Evaluates into the folder `out`.
pub fn run(out: &Path) -> sdrrl::Result<()> {
    // Questions with known answers, in both languages of the quickstart's model: it is at home in English alone.
    let task = |language: &str| EvalTask {
        limit: 24,
        max_new_tokens: 24,
        ..EvalTask::new(
            &format!("qa-{language}"),
            TaskKind::Qa,
            language,
            format!("{WORLD}/test.{language}.jsonl"),
        )
    };
    let settings = EvalSettings { tasks: vec![task("en"), task("es")], ..EvalSettings::default() };
    let model = Model::load("assets/quickstart/model", &LoadOptions::default())?;
    for m in model.evaluate(&settings, out)? {
        let (low, high) = m.interval.unwrap_or((f64::NAN, f64::NAN));
        println!("{:6} {:12} {:6.2} [{low:.2}, {high:.2}] of {} rows", m.task, m.metric, m.value, m.samples);
    }

    // Without a reference: how good is a translation? The built-in engine reads a dictionary; others are models.
    let file = Some(format!("{WORLD}/words.{{source}}-{{target}}.txt").into());
    let options = ScoreOptions {
        settings: ScoreSettings { file, ..ScoreSettings::default() },
        ..ScoreOptions::default()
    };
    let pairs = [
        ("The tailor likes soup.", "Al sastre le gusta la sopa."),
        ("The tailor likes soup.", "The tailor."),
    ];
    let scores = TranslationScorer::load(&options)?.score(&pairs)?;
    for ((_, translation), score) in pairs.iter().zip(scores) {
        println!("{score:.3} {translation}");
    }
    Ok(())
}
