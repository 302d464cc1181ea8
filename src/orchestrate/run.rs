//! `sdrrl run`: a recipe through all stages, to the final table and the report.
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use super::{
    alone::{Alone, one_process},
    check,
    dry_run::print_plan,
    expect::Expectation,
    recipe_stages::{Run, placement},
    report,
};
use crate::{
    eval::{compare, run::results_table},
    pipeline::{
        plan,
        results::ResultsFolder,
        rows::Part,
        work_dir::{REPORT, RESULTS, Room, SUMMARY, WorkDir},
    },
    recipe::Recipe,
    report::{
        out::{self, say, say_text},
        table::use_colour,
    },
    stages::train,
};

/// Arguments of `run`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The recipe, e.g. recipes/quickstart.toml
    pub recipe: PathBuf,
    /// Change a setting, e.g. --set filter.tau=0.75 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Discard training checkpoints of an earlier run with other settings
    #[arg(long)]
    pub restart: bool,
    /// Only check for mistakes (settings, languages, files, models, templates, tasks, disk, memory), as every run does before its first stage, and print about how long each stage
    /// will take and its memory
    #[arg(long)]
    pub check: bool,
    /// Only print the stages: which are unchanged, and which would be run and why
    #[arg(long)]
    pub dry_run: bool,
    /// Run this stage alone, by the name of its folder (--stages lists them); those that it reads must be finished. Several ranks may train so (train-...)
    #[arg(long, value_name = "NAME", conflicts_with_all = ["check", "dry_run"])]
    pub stage: Option<String>,
    /// With --stage generate, translate, score, filter or code-switch: work on one part of the shards, such as 3/8: one run per job-array task
    #[arg(long, requires = "stage", default_value = "1/1")]
    pub part: Part,
    /// With --stage: wait so many seconds for the stages that it reads, which another process is finishing
    #[arg(long, requires = "stage", value_name = "SECONDS", default_value_t = 0)]
    pub wait: u64,
    /// Only print the stages for --stage, a line each: its name; `parts` if --part divides it, `ranks` if several ranks can train it, else `one`; the stages that it reads
    #[arg(long, conflicts_with_all = ["check", "dry_run", "stage"])]
    pub stages: bool,
}

/// Runs the recipe. What is finished with the same inputs and settings is skipped.
pub fn run(args: &Args) -> Result<()> {
    let recipe = Recipe::read(&args.recipe, &args.overrides)?;
    let run = Run {
        placement: placement(&recipe)?,
        recipe: &recipe,
        restart: args.restart,
        work: WorkDir::new(&recipe.work),
        alone: Alone::of(args),
    };
    let work = |folder: Option<ResultsFolder>| match recipe.examples {
        Some(_) => run.ready_examples(folder),
        None => run.method(folder),
    };
    // What would stop a stage hours from now stops the run here.
    let plan = || {
        ResultsFolder::check(&recipe.work, "run", SUMMARY)?;
        work(None)
    };
    let checked = || {
        let place = || format!("recipe {}", args.recipe.display());
        check::recipe(&recipe, run.placement).with_context(place)
    };
    if let Some(alone) = &run.alone {
        return alone.run(&checked, &plan);
    }
    one_process()?;
    checked()?;
    let steps = out::silently(|| plan::collect(plan))?;
    if args.dry_run {
        print_plan(steps);
        return Ok(());
    }
    let mut expected = Expectation::default();
    expected.add(&recipe, run.placement, &steps, &recipe.work)?;
    if args.check {
        expected.print();
        say!("check: no mistakes found; start it with `sdrrl run {}`", args.recipe.display());
        return Ok(());
    }
    say!("{}", expected.total());
    work(Some(ResultsFolder::open(&recipe.work, "run", "run", SUMMARY)?))
}

impl Run<'_> {
    /// Pack and train on ready examples, then evaluate what came out. Only planned where there is no folder.
    fn ready_examples(&self, folder: Option<ResultsFolder>) -> Result<()> {
        let r = self.recipe;
        let examples = r.examples.clone().context("`examples` is missing")?;
        let (_, trained) = self.pack_and_train(&examples, None, None)?;
        let out = match r.eval.tasks.is_empty() {
            true => None,
            false => Some(self.evaluate_trained(&trained, Room::Eval(None), "eval")?),
        };
        let Some(folder) = folder else { return Ok(()) };
        if let Some(out) = out {
            say_text!("{}", results_table(&out, &r.eval, self.placement)?.to_text(use_colour()));
        }
        folder.finish()
    }

    /// Only planned where there is no folder.
    fn method(&self, folder: Option<ResultsFolder>) -> Result<()> {
        let data = self.data()?;
        let mut trained = vec![];
        for variant in &self.recipe.variants {
            self.headline(variant.name());
            trained.push(self.train_variant(&data, *variant)?.1);
        }
        self.headline("evaluation");
        if self.recipe.eval.tasks.is_empty() {
            let Some(folder) = folder else { return Ok(()) };
            say!("run: no [[eval.tasks]] in the recipe, so nothing is compared");
            return folder.finish();
        }
        let base = self.evaluate_base()?;
        let mut all = vec![];
        for (variant, trained) in self.recipe.variants.iter().zip(&trained) {
            let room = Room::Eval(Some(variant.name()));
            let out = self.evaluate_trained(trained, room, &room.name())?;
            if folder.is_none() {
                continue;
            }
            all.push((variant.name(), compare::compare(&base, &out, &self.recipe.eval, self.placement)?));
        }
        folder.map_or(Ok(()), |folder| self.finish(&all, folder))
    }

    /// results.json, the table, the report.
    fn finish(&self, all: &[(&str, Vec<compare::Comparison>)], folder: ResultsFolder) -> Result<()> {
        self.record()?;
        let r = self.recipe;
        let row = |c: &compare::Comparison| {
            json!({"task": c.task, "language": c.language, "metric": c.name, "higher-is-better": c.higher_is_better, "before": c.before,
                "after": c.after, "difference": c.paired.difference, "low": c.paired.low, "high": c.paired.high, "p": c.paired.p})
        };
        let variants: serde_json::Map<String, serde_json::Value> =
            all.iter().map(|(name, c)| (name.to_string(), c.iter().map(row).collect())).collect();
        let results = json!({"recipe": r.name, "variants": variants});
        folder.write(RESULTS, format!("{results:#}\n").as_bytes())?;
        say!();
        say_text!("{}", report::table(all).to_text(use_colour()));
        say!();
        for line in report::conclusions(r, all) {
            say!("{line}");
        }
        folder.write(REPORT, report::build(r, all)?.to_html().as_bytes())?;
        folder.finish()?;
        say!("report: {}", self.work.report().display());
        // What a person would want to try first.
        if let Some(variant) = r.variants.first() {
            let trained = self.work.room(Room::Train(Some(variant.name())));
            for (i, command) in train::next_commands(&r.model, &trained).iter().enumerate() {
                say!("{}   {command}", if i == 0 { "next:" } else { "     " });
            }
        }
        Ok(())
    }
}
