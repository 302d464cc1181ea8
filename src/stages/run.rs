//! `sdrrl run`: a recipe through all stages, to the final table and the report.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use super::placement::{Placement, parse_dtype};
use super::{
    assemble, code_switch,
    eval::{self, compare},
    filter, generate, pack, parallel, report,
    rows::{Part, RowArgs, interrupted},
    score, train, translate,
};
use crate::{
    data::manifest::write_atomic,
    recipe::{
        Recipe,
        assemble::{AssembleSettings, Variant},
    },
};

/// Arguments of `run`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The recipe, e.g. recipes/quickstart.toml
    pub recipe: PathBuf,
    /// Change a setting, e.g. --set filter.tau=0.75 (may be given again)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Discard training checkpoints of an earlier run with other settings
    #[arg(long)]
    pub restart: bool,
}

/// Runs the recipe. What is finished with the same inputs and settings is skipped.
pub fn run(args: &Args) -> Result<()> {
    let recipe = Recipe::read(&args.recipe, &args.overrides)?;
    let dtype = parse_dtype(&recipe.dtype).map_err(|e| anyhow!("recipe: dtype: {e}"))?;
    let device = recipe.device.parse().context("recipe: device")?;
    let run = Run { recipe: &recipe, placement: Placement { dtype, device }, restart: args.restart };
    if recipe.examples.is_some() { run.ready_examples() } else { run.method() }
}

struct Run<'a> {
    recipe: &'a Recipe,
    placement: Placement,
    restart: bool,
}

impl Run<'_> {
    fn dir(&self, stage: &str) -> PathBuf {
        self.recipe.work.join(stage)
    }

    fn rows(&self, input: &str, out: &str) -> RowArgs {
        RowArgs {
            input: self.dir(input),
            out: self.dir(out),
            part: Part::default(),
            source_language: self.recipe.source_language.clone(),
            target_languages: self.recipe.target_languages.clone(),
        }
    }

    /// Pack and train on ready examples, then evaluate what came out.
    fn ready_examples(&self) -> Result<()> {
        let r = self.recipe;
        let examples = r.examples.clone().context("`examples` is missing")?;
        self.pack_and_train(&examples, "pack", "train")?;
        if r.eval.tasks.is_empty() {
            return Ok(());
        }
        let trained = self.dir("train");
        let is_adapter = trained.join("adapter_config.json").exists();
        let whole = trained.to_string_lossy();
        let (model, adapter) =
            if is_adapter { (r.model.as_str(), Some(trained.as_path())) } else { (whole.as_ref(), None) };
        self.evaluate(model, adapter, "eval")?;
        print!(
            "{}",
            eval::results_table(&self.dir("eval"), &r.eval)?.to_text(crate::report::table::use_colour())
        );
        Ok(())
    }

    fn pack_and_train(&self, examples: &Path, pack_dir: &str, train_dir: &str) -> Result<()> {
        let r = self.recipe;
        self.go_on()?;
        pack::run(&pack::Args {
            model: r.model.clone(),
            examples: examples.into(),
            out: self.dir(pack_dir),
            settings: r.pack.clone(),
        })?;
        self.go_on()?;
        train::run(&train::Args {
            adapter: None,
            model: r.model.clone(),
            shards: self.dir(pack_dir),
            out: self.dir(train_dir),
            placement: self.placement,
            restart: self.restart,
            settings: r.train.clone(),
        })
    }

    /// Between stages, so that one Ctrl-C ends the run.
    fn go_on(&self) -> Result<()> {
        ensure!(!interrupted(), "stopped between two stages: the same command goes on from there");
        Ok(())
    }

    fn method(&self) -> Result<()> {
        self.data()?;
        for variant in &self.recipe.variants {
            let name = variant.name();
            println!("── {name}");
            self.assemble(*variant)?;
            let (pack_dir, train_dir) = (format!("pack-{name}"), format!("train-{name}"));
            self.pack_and_train(&self.dir(&format!("assemble-{name}")), &pack_dir, &train_dir)?;
        }
        println!("── evaluation");
        if self.recipe.eval.tasks.is_empty() {
            println!("run: no [[eval.tasks]] in the recipe, so nothing is compared");
            return Ok(());
        }
        let model = self.recipe.model.clone();
        self.evaluate(&model, None, "eval-base")?;
        let mut all = vec![];
        for variant in &self.recipe.variants {
            let (adapter, out) =
                (self.dir(&format!("train-{}", variant.name())), format!("eval-{}", variant.name()));
            // A fully trained variant is a model of its own.
            if adapter.join("adapter_config.json").exists() {
                self.evaluate(&model, Some(&adapter), &out)?;
            } else {
                self.evaluate(&adapter.to_string_lossy(), None, &out)?;
            }
            let comparisons = compare::compare(&self.dir("eval-base"), &self.dir(&out), &self.recipe.eval)?;
            all.push((variant.name(), comparisons));
        }
        self.finish(&all)
    }

    fn data(&self) -> Result<()> {
        let r = self.recipe;
        let questions = generate::read_questions(&r.questions, &r.source_language, r.generate.limit)?;
        let question_dir = self.dir("questions");
        std::fs::create_dir_all(&r.work).with_context(|| format!("create {}", r.work.display()))?;
        generate::write_question_shards(&question_dir, &questions, r.rows_per_shard)?;
        let args = generate::Args {
            model: r.model.clone(),
            adapter: None,
            prompts: r.questions.clone(),
            out: self.dir("generate"),
            source_language: r.source_language.clone(),
            placement: self.placement,
            part: Part::default(),
            rows_per_shard: r.rows_per_shard,
            settings: r.generate.clone(),
        };
        println!("── data");
        generate::run_shards(&args, &question_dir, &args.out)?;
        self.go_on()?;
        translate::run(&translate::Args {
            rows: self.rows("generate", "translate"),
            model: Some(r.model.clone()),
            placement: self.placement,
            settings: r.translate.clone(),
        })?;
        self.go_on()?;
        score::run(&score::Args {
            rows: self.rows("translate", "score"),
            placement: self.placement,
            settings: r.score.clone(),
        })?;
        filter::run(&filter::Args { rows: self.rows("score", "filter"), settings: r.filter.clone() })?;
        code_switch::run(&code_switch::Args {
            rows: self.rows("filter", "code-switch"),
            settings: r.code_switch.clone(),
        })?;
        self.go_on()?;
        if r.parallel.file.is_none() {
            return Ok(());
        }
        parallel::run(&parallel::Args {
            out: self.dir("parallel"),
            source_language: r.source_language.clone(),
            target_languages: r.target_languages.clone(),
            settings: r.parallel.clone(),
        })
    }

    fn assemble(&self, variant: Variant) -> Result<()> {
        let r = self.recipe;
        assemble::run(&assemble::Args {
            input: self.dir("code-switch"),
            parallel: r.parallel.file.as_ref().map(|_| self.dir("parallel")),
            out: self.dir(&format!("assemble-{}", variant.name())),
            source_language: r.source_language.clone(),
            target_languages: r.target_languages.clone(),
            settings: AssembleSettings { variant, ..r.assemble.clone() },
        })
    }

    fn evaluate(&self, model: &str, adapter: Option<&Path>, out: &str) -> Result<()> {
        self.go_on()?;
        let job = eval::Job {
            model,
            adapter,
            out: &self.dir(out),
            template: &self.recipe.generate.template,
            system: self.recipe.generate.system.as_deref(),
            placement: self.placement,
            label: out,
        };
        eval::evaluate(&job, &self.recipe.eval)
    }

    /// results.json, the table, the report.
    fn finish(&self, all: &[(&str, Vec<compare::Comparison>)]) -> Result<()> {
        let r = self.recipe;
        let row = |c: &compare::Comparison| {
            json!({"task": c.task, "language": c.language, "metric": c.name, "higher-is-better": c.higher_is_better, "before": c.before,
                "after": c.after, "difference": c.paired.difference, "low": c.paired.low, "high": c.paired.high, "p": c.paired.p})
        };
        let variants: serde_json::Map<String, serde_json::Value> =
            all.iter().map(|(name, c)| (name.to_string(), c.iter().map(row).collect())).collect();
        let results = json!({"recipe": r.name, "variants": variants});
        write_atomic(&self.dir("results.json"), format!("{results:#}\n").as_bytes())?;
        println!();
        print!("{}", report::table(all).to_text(crate::report::table::use_colour()));
        println!();
        for line in report::conclusions(r, all) {
            println!("{line}");
        }
        let path = self.dir("report.html");
        write_atomic(&path, report::build(r, all)?.to_html().as_bytes())?;
        println!("report: {}", path.display());
        Ok(())
    }
}
