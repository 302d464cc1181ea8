//! `sdrrl ablate`: a matrix of runs over one recipe. Arms share every stage whose inputs and settings are equal, so that a matrix costs
//! little more than its trainings, and a killed one goes on where it was.
mod many;
mod report;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    alone::one_process,
    check,
    dry_run::print_plan,
    expect::Expectation,
    recipe_stages::{Run, placement},
};
use crate::eval::compare::{self, Comparison};
use crate::pipeline::{
    manifest::Manifest,
    plan::{self, Step},
    results::ResultsFolder,
    work_dir::{REPORT, RESULTS, Room, SUMMARY, WorkDir},
};
use crate::{
    recipe::ablate::{Ablations, ResolvedArm},
    report::{
        out::{self, note, say},
        table::use_colour,
    },
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
    /// Only check every arm for mistakes, and print about how long each stage will take and its memory, as `run --check` does
    #[arg(long)]
    pub check: bool,
    /// Only print the stages of all arms, each once: which are unchanged, and which would be run and why
    #[arg(long)]
    pub dry_run: bool,
}

/// An arm that has run.
struct Ran {
    arm: ResolvedArm,
    /// The folders of its trainings, one a seed; the first is for the curves.
    trains: Vec<PathBuf>,
    /// What packing and training say about themselves.
    packed: Value,
    trained: Value,
    /// An earlier arm with the very same training set and settings.
    same_as: Option<usize>,
    /// Against the model before training.
    to_base: Vec<Comparison>,
    /// Against the reference arm; empty for the reference itself.
    to_reference: Vec<Comparison>,
    /// p-values of the headlines in `to_reference` among those of all arms (Holm), beside their own; filled in when all have run.
    holm: Vec<Option<f64>>,
}

/// Runs every arm, then writes results.json and report.html. What is finished with the same inputs and settings is skipped.
pub fn run(args: &Args) -> Result<()> {
    one_process()?;
    let matrix = Ablations::read(&args.file, &args.overrides)?;
    let arms = matrix.resolve(&args.file)?;
    if args.list {
        arms.iter().for_each(|a| say!("{}  {}  {}", a.arm.name, a.title(), a.arm.set.join("  ")));
        return Ok(());
    }
    check_arms(&arms).with_context(|| args.file.display().to_string())?;
    let comparisons = arms[0].recipe.eval.tasks.len() * (arms.len() - 1);
    many::too_few(comparisons, arms[0].recipe.eval.bootstrap_samples)
        .iter()
        .for_each(|m| note!("ablate: warning: {m}"));
    let work = WorkDir::shared(&matrix.work);
    // What would stop a stage hours from now stops the matrix here.
    out::silently(|| ResultsFolder::check(work.root(), "ablate", SUMMARY))?;
    let planned = |arm| out::silently(|| plan::collect(|| stages(arm, &matrix.seeds, &work).map(drop)));
    let steps: Vec<Vec<Step>> = arms.iter().map(planned).collect::<Result<_>>()?;
    if args.dry_run {
        print_plan(steps.concat());
        return Ok(());
    }
    let mut expected = Expectation::default();
    for (arm, steps) in arms.iter().zip(&steps) {
        expected.add(&arm.recipe, placement(&arm.recipe)?, steps, work.root())?;
    }
    if args.check {
        expected.print();
        say!("check: no mistakes found in {} arms", arms.len());
        return Ok(());
    }
    say!("{}", expected.total());
    let folder = ResultsFolder::open(work.root(), "ablate", "ablate", SUMMARY)?;
    let count = arms.len();
    let mut ran: Vec<(Ran, Vec<PathBuf>)> = vec![];
    for (i, arm) in arms.into_iter().enumerate() {
        say!("━━ arm {} of {count}: {}", i + 1, arm.title());
        let done = run_arm(arm, &matrix.seeds, &work, &ran)?;
        ran.push(done);
    }
    let mut ran: Vec<Ran> = ran.into_iter().map(|(r, _)| r).collect();
    many::correct(&mut ran);
    finish(&matrix, &work, folder, &ran)
}

/// The folders of an arm, one of each kind a seed.
#[derive(Default)]
struct Folders {
    packs: Vec<PathBuf>,
    trains: Vec<PathBuf>,
    bases: Vec<PathBuf>,
    evals: Vec<PathBuf>,
}

/// The stages of an arm, made or, inside of a plan, planned.
fn stages(arm: &ResolvedArm, seeds: &[u64], work: &WorkDir) -> Result<Folders> {
    let mut folders = Folders::default();
    for (seed, recipe) in arm.seeded(seeds) {
        let run = Run::shared(&recipe, work)?;
        let variant = *recipe.variants.first().context("`variants` is empty")?;
        let name = &arm.arm.name;
        let label = seed.map_or(name.clone(), |seed| format!("{name}-seed{seed}"));
        let data = run.data()?;
        let (pack, train) = run.train_variant(&data, variant)?;
        folders.bases.push(run.evaluate_base()?);
        let eval = run.evaluate_trained(&train, Room::Eval(Some(&label)), &format!("eval {label}"))?;
        folders.evals.push(eval);
        folders.packs.push(pack);
        folders.trains.push(train);
    }
    Ok(folders)
}

/// What is wrong with any arm, all at once: each mistake under the first arm that has it.
fn check_arms(arms: &[ResolvedArm]) -> Result<()> {
    let (mut seen, mut told) = (HashSet::new(), String::new());
    let mut wrong = vec![];
    for arm in arms {
        let placed = placement(&arm.recipe).map_err(|e| vec![e]);
        let found = placed.map_or_else(|e| e, |placement| check::mistakes(&arm.recipe, placement));
        let new: Vec<_> = found.into_iter().filter(|e| seen.insert(format!("{e:#}"))).collect();
        if !new.is_empty() {
            told += &format!("\narm {}:", arm.arm.name);
            new.iter().for_each(|e| told += &format!("\n  {e:#}"));
        }
        wrong.extend(new.into_iter().map(|e| e.context(format!("arm {}", arm.arm.name))));
    }
    match wrong.len() {
        0 => Ok(()),
        1 => Err(wrong.remove(0)),
        n => bail!("{n} mistakes:{told}"),
    }
}

fn run_arm(
    arm: ResolvedArm,
    seeds: &[u64],
    work_dir: &WorkDir,
    earlier: &[(Ran, Vec<PathBuf>)],
) -> Result<(Ran, Vec<PathBuf>)> {
    let name = arm.arm.name.clone();
    let work = || -> Result<(Ran, Vec<PathBuf>)> {
        let Folders { packs, trains, bases, evals } = stages(&arm, seeds, work_dir)?;
        let summary = |dirs: &[PathBuf]| -> Result<Value> {
            let first = dirs.first().context("there is no seed")?;
            Ok(Manifest::load(first)?.map_or(Value::Null, |m| m.summary))
        };
        let placement = placement(&arm.recipe)?;
        let compared = |others: &[PathBuf]| -> Result<Vec<Comparison>> {
            let runs: Vec<(&Path, &Path)> =
                others.iter().zip(&evals).map(|(a, b)| (a.as_path(), b.as_path())).collect();
            compare::compare_runs(&runs, &arm.recipe.eval, placement)
        };
        let to_reference = earlier.first().map(|(_, reference)| compared(reference)).transpose()?;
        let done = Ran {
            same_as: earlier.iter().position(|(e, _)| e.trains == trains),
            packed: summary(&packs)?,
            trained: summary(&trains)?,
            to_base: compared(&bases)?,
            to_reference: to_reference.unwrap_or_default(),
            holm: vec![],
            trains,
            arm: arm.clone(),
        };
        ensure!(!done.to_base.is_empty(), "no metric came out of its tasks");
        Ok((done, evals.clone()))
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
            let corrected = |(i, c): (usize, &Comparison)| {
                let mut found = one(c, "reference");
                if let Some(p) = r.holm.get(i).copied().flatten() {
                    found["p-holm"] = json!(p);
                }
                found
            };
            json!({"arm": r.arm.arm.name, "title": r.arm.title(), "set": r.arm.arm.set, "packed": r.packed, "trained": r.trained,
                "against-base": r.to_base.iter().map(|c| one(c, "base")).collect::<Vec<_>>(),
                "against-reference": r.to_reference.iter().enumerate().map(corrected).collect::<Vec<_>>()})
        })
        .collect();
    let results = json!({"name": matrix.name, "recipe": matrix.recipe, "set": matrix.set, "steps": matrix.steps, "seeds": matrix.seeds, "arms": arms});
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
