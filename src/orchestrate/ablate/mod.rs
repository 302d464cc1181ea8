//! `sdrrl ablate`: a matrix of runs over one recipe. Arms share every stage whose inputs and settings are equal, so that a matrix costs
//! little more than its trainings, and a killed one goes on where it was.
mod report;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    check,
    run::{Run, placement},
};
use crate::eval::compare::{self, Comparison};
use crate::pipeline::{
    manifest::Manifest,
    results::ResultsFolder,
    work_dir::{REPORT, RESULTS, Room, SUMMARY, WorkDir},
};
use crate::{
    recipe::ablate::{Ablations, ResolvedArm},
    report::{out::say, table::use_colour},
};

/// Arguments of `ablate`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The matrix, e.g. recipes/ablations.toml
    pub file: PathBuf,
    /// Change the matrix, e.g. --set work=runs/other or --set 'set=["train.max-steps=10"]' (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Print the arms and exit
    #[arg(long)]
    pub list: bool,
    /// Only check every arm for mistakes, as `run --check` does
    #[arg(long)]
    pub check: bool,
}

/// An arm that has run.
struct Ran {
    arm: ResolvedArm,
    /// The folder of its training, for the curves.
    train: PathBuf,
    /// What packing and training say about themselves.
    packed: Value,
    trained: Value,
    /// An earlier arm with the very same training set and settings.
    same_as: Option<usize>,
    /// Against the model before training.
    to_base: Vec<Comparison>,
    /// Against the reference arm; empty for the reference itself.
    to_reference: Vec<Comparison>,
}

/// Runs every arm, then writes results.json and report.html. What is finished with the same inputs and settings is skipped.
pub fn run(args: &Args) -> Result<()> {
    let matrix = Ablations::read(&args.file, &args.overrides)?;
    let arms = matrix.resolve(&args.file)?;
    if args.list {
        arms.iter().for_each(|a| say!("{}  {}  {}", a.arm.name, a.title(), a.arm.set.join("  ")));
        return Ok(());
    }
    for arm in &arms {
        let checked = placement(&arm.recipe).and_then(|placement| check::recipe(&arm.recipe, placement));
        checked.with_context(|| format!("{}: arm {}", args.file.display(), arm.arm.name))?;
    }
    if args.check {
        say!("check: no mistakes found in {} arms", arms.len());
        return Ok(());
    }
    let work = WorkDir::shared(&matrix.work);
    let folder = ResultsFolder::open(work.root(), "ablate", "ablate", SUMMARY)?;
    let count = arms.len();
    let mut ran: Vec<(Ran, PathBuf)> = vec![];
    for (i, arm) in arms.into_iter().enumerate() {
        say!("━━ arm {} of {count}: {}", i + 1, arm.title());
        let done = run_arm(arm, &work, &ran)?;
        ran.push(done);
    }
    let ran: Vec<Ran> = ran.into_iter().map(|(r, _)| r).collect();
    finish(&matrix, &work, folder, &ran)
}

fn run_arm(arm: ResolvedArm, work_dir: &WorkDir, earlier: &[(Ran, PathBuf)]) -> Result<(Ran, PathBuf)> {
    let name = arm.arm.name.clone();
    let work = || -> Result<(Ran, PathBuf)> {
        let run = Run::shared(&arm.recipe, work_dir)?;
        let variant = *arm.recipe.variants.first().context("`variants` is empty")?;
        let data = run.data()?;
        let (pack, train) = run.train_variant(&data, variant)?;
        let base = run.evaluate_base()?;
        let eval = run.evaluate_trained(&train, Room::Eval(Some(&name)), &format!("eval {name}"))?;
        let summary =
            |dir: &Path| -> Result<Value> { Ok(Manifest::load(dir)?.map_or(Value::Null, |m| m.summary)) };
        let settings = &arm.recipe.eval;
        let to_reference = match earlier.first() {
            Some((_, reference)) => compare::compare(reference, &eval, settings, run.placement)?,
            None => vec![],
        };
        let done = Ran {
            same_as: earlier.iter().position(|(e, _)| e.train == train),
            packed: summary(&pack)?,
            trained: summary(&train)?,
            to_base: compare::compare(&base, &eval, settings, run.placement)?,
            to_reference,
            train,
            arm: arm.clone(),
        };
        ensure!(!done.to_base.is_empty(), "no metric came out of its tasks");
        Ok((done, eval))
    };
    work().with_context(|| format!("arm {name}"))
}

/// results.json, the table, the report.
fn finish(matrix: &Ablations, work: &WorkDir, folder: ResultsFolder, ran: &[Ran]) -> Result<()> {
    let one = |c: &Comparison, name: &str| {
        json!({"task": c.task, "language": c.language, "metric": c.name, "higher-is-better": c.higher_is_better, name: c.before,
            "value": c.after, "difference": c.paired.difference, "low": c.paired.low, "high": c.paired.high, "p": c.paired.p})
    };
    let arms: Vec<Value> = ran
        .iter()
        .map(|r| {
            json!({"arm": r.arm.arm.name, "title": r.arm.title(), "set": r.arm.arm.set, "packed": r.packed, "trained": r.trained,
                "against-base": r.to_base.iter().map(|c| one(c, "base")).collect::<Vec<_>>(),
                "against-reference": r.to_reference.iter().map(|c| one(c, "reference")).collect::<Vec<_>>()})
        })
        .collect();
    let results = json!({"name": matrix.name, "recipe": matrix.recipe, "set": matrix.set, "arms": arms});
    folder.write(RESULTS, format!("{results:#}\n").as_bytes())?;
    say!();
    for (_, table) in report::tables(ran, 2) {
        say!("{}", table.to_text(use_colour()));
    }
    for line in report::conclusions(matrix, ran) {
        say!("{line}");
    }
    folder.write(REPORT, report::build(matrix, ran)?.to_html().as_bytes())?;
    folder.finish()?;
    say!("report: {}", work.report().display());
    Ok(())
}
