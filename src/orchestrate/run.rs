//! `sdrrl run`: a recipe through all stages, to the final table and the report.
use std::path::{Path, PathBuf};

use crate::error::Error;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::json;

use super::{check, dry_run::print_plan, expect::Expectation, report};
use crate::eval::{
    compare,
    run::{Job, evaluate, results_table},
};
use crate::pipeline::{
    clock,
    identity::without_place,
    interrupt::interrupted,
    placement::Placement,
    plan::{self, planning},
    results::ResultsFolder,
    rows::{Part, RowArgs},
    work_dir::{REPORT, RESULTS, Room, SUMMARY, WorkDir, is_adapter},
};
use crate::stages::{assemble, code_switch, filter, generate, pack, parallel, score, train, translate};
use crate::{
    recipe::{
        Recipe,
        assemble::{AssembleSettings, Variant},
        generate::GenerateEngine,
        pack::PackSettings,
        train::Method,
        translate::TranslateEngine,
    },
    report::{
        out::{self, say, say_text},
        table::use_colour,
    },
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
}

/// Runs the recipe. What is finished with the same inputs and settings is skipped.
pub fn run(args: &Args) -> Result<()> {
    let recipe = Recipe::read(&args.recipe, &args.overrides)?;
    let run = Run {
        placement: placement(&recipe)?,
        recipe: &recipe,
        restart: args.restart,
        work: WorkDir::new(&recipe.work),
    };
    check::recipe(&recipe, run.placement).with_context(|| format!("recipe {}", args.recipe.display()))?;
    let work = |folder: Option<ResultsFolder>| match recipe.examples {
        Some(_) => run.ready_examples(folder),
        None => run.method(folder),
    };
    // What would stop a stage hours from now stops the run here.
    let plan = || {
        ResultsFolder::check(&recipe.work, "run", SUMMARY)?;
        work(None)
    };
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

/// How a recipe's models are held and where they compute.
pub(super) fn placement(recipe: &Recipe) -> Result<Placement> {
    let r = recipe;
    Placement::named(r.dtype.as_deref(), &r.base_dtype, &r.activations, &r.device).context("recipe")
}

/// A recipe at work.
pub(super) struct Run<'a> {
    recipe: &'a Recipe,
    pub(super) placement: Placement,
    restart: bool,
    /// Every path.
    work: WorkDir,
}

/// Where the data of a recipe lies.
pub(super) struct Data {
    /// Rows with everything that `assemble` needs.
    pub rows: PathBuf,
    /// Parallel sentences, if the recipe has any.
    pub parallel: Option<PathBuf>,
}

impl<'a> Run<'a> {
    /// A run of `recipe` that shares its stages with others in `work`.
    pub(super) fn shared(recipe: &'a Recipe, work: &WorkDir) -> Result<Run<'a>> {
        Ok(Run { placement: placement(recipe)?, recipe, restart: false, work: work.clone() })
    }

    /// The folder of a stage.
    fn dir(&self, room: Room, inputs: &[&Path], settings: &impl Serialize) -> Result<PathBuf> {
        let languages = (&self.recipe.source_language, &self.recipe.target_languages);
        let mut settings = json!([languages, settings]);
        // A server that has moved is the same.
        without_place(&mut settings);
        self.work.of(room, inputs, &settings)
    }

    fn rows(&self, input: &Path, out: &Path) -> RowArgs {
        RowArgs {
            input: input.into(),
            out: out.into(),
            part: Part::default(),
            source_language: self.recipe.source_language.clone(),
            target_languages: self.recipe.target_languages.clone(),
        }
    }

    /// Pack and train on ready examples, then evaluate what came out. Only planned where there is no folder.
    fn ready_examples(&self, folder: Option<ResultsFolder>) -> Result<()> {
        let r = self.recipe;
        let examples = r.examples.clone().context("`examples` is missing")?;
        let (_, trained) = self.pack_and_train(&examples, None)?;
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

    /// The folders of token shards and of what was trained on them.
    fn pack_and_train(&self, examples: &Path, variant: Option<&str>) -> Result<(PathBuf, PathBuf)> {
        let r = self.recipe;
        self.go_on()?;
        let packed = self.dir(Room::Pack(variant), &[examples], &r.packing())?;
        pack::run(&pack::Args {
            model: r.model.clone(),
            examples: examples.into(),
            validation: None,
            out: packed.clone(),
            rows: r.train.objective.rows(),
            settings: r.pack.clone(),
        })?;
        self.go_on()?;
        let probed = (r.eval.while_training > 0).then_some(&r.eval);
        let (settings, placement) = train::for_devices(&r.train, self.placement.in_f32());
        if placement.device != self.placement.device && !planning() {
            say!("train: this objective is learnt by one process, on {}", placement.device);
        }
        let named = json!([r.model, settings, placement.to_string(), probed]);
        let trained = self.dir(Room::Train(variant), &[&packed], &named)?;
        train::run(&train::Args {
            adapter: None,
            model: r.model.clone(),
            shards: Some(packed.clone()),
            data: None,
            validation: None,
            out: trained.clone(),
            placement,
            restart: self.restart,
            resume: false,
            quiet: false,
            pack: PackSettings::default(),
            replace: true,
            settings,
            probe_tasks: None,
            probe_rows: 0,
            probe_template: r.generate.template.clone(),
            probe_system: r.generate.system.clone(),
            probe: (r.eval.while_training > 0).then(|| r.eval.clone()),
        })?;
        Ok((packed, trained))
    }

    /// Between stages: what they took is written down, and one Ctrl-C ends the run.
    fn go_on(&self) -> Result<()> {
        self.record()?;
        let stopped = "stopped between two stages: run the same command again to resume";
        ensure!(!interrupted(), Error::interrupted(stopped));
        Ok(())
    }

    fn record(&self) -> Result<()> {
        if planning() { Ok(()) } else { clock::record(self.work.root()) }
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

    fn headline(&self, name: &str) {
        if !planning() {
            say!("── {name}");
        }
    }

    /// The rows and the parallel sentences.
    pub(super) fn data(&self) -> Result<Data> {
        let r = self.recipe;
        let (questions, counts) = generate::read_questions(&r.questions, &r.source_language, &r.generate)?;
        let files: Vec<&Path> = r.questions.iter().map(PathBuf::as_path).collect();
        let question_dir = self.dir(Room::Questions, &files, &json!([r.generate.limit, r.rows_per_shard]))?;
        generate::write_question_shards(&question_dir, &questions, counts, r.rows_per_shard)?;
        let settings = json!([r.model, r.generate, self.placement.to_string()]);
        let out = self.dir(Room::Generate, &[&question_dir], &settings)?;
        let args = generate::Args {
            model: (r.generate.engine == GenerateEngine::Local).then(|| r.model.clone()),
            adapter: None,
            prompts: r.questions.clone(),
            prompt: vec![],
            out: Some(out.clone()),
            source_language: r.source_language.clone(),
            placement: self.placement_where(r.generate.engine == GenerateEngine::Local),
            part: Part::default(),
            rows_per_shard: r.rows_per_shard,
            settings: r.generate.clone(),
        };
        self.headline("data");
        generate::run_shards(&args, &question_dir, &out)?;
        self.go_on()?;
        let translated =
            self.dir(Room::Translate, &[&out], &json!([r.model, r.translate, self.placement.to_string()]))?;
        translate::run(&translate::Args {
            rows: self.rows(&out, &translated),
            model: Some(r.model.clone()),
            placement: self.placement_where(r.translate.engine == TranslateEngine::Itself),
            settings: r.translate.clone(),
        })?;
        self.go_on()?;
        let scorer = json!([r.score, self.placement.to_string()]);
        let scored = self.dir(Room::Score, &[&translated], &scorer)?;
        score::run(&score::Args {
            rows: self.rows(&translated, &scored),
            placement: self.placement.of_other_models(),
            settings: r.score.clone(),
        })?;
        let filtered = self.dir(Room::Filter, &[&scored], &r.filter)?;
        filter::run(&filter::Args { rows: self.rows(&scored, &filtered), settings: r.filter.clone() })?;
        let rows = self.dir(Room::CodeSwitch, &[&filtered], &r.code_switch)?;
        code_switch::run(&code_switch::Args {
            rows: self.rows(&filtered, &rows),
            settings: r.code_switch.clone(),
        })?;
        self.go_on()?;
        if r.parallel.file.is_none() {
            return Ok(Data { rows, parallel: None });
        }
        let parallel = self.dir(Room::Parallel, &[], &r.parallel)?;
        parallel::run(&parallel::Args {
            out: parallel.clone(),
            source_language: r.source_language.clone(),
            target_languages: r.target_languages.clone(),
            settings: r.parallel.clone(),
        })?;
        Ok(Data { rows, parallel: Some(parallel) })
    }

    /// Of a stage that runs the recipe's own model, or another.
    fn placement_where(&self, own: bool) -> Placement {
        if own { self.placement } else { self.placement.of_other_models() }
    }

    /// Makes a variant's examples and trains on them: the folders of the token shards and of the result.
    pub(super) fn train_variant(&self, data: &Data, variant: Variant) -> Result<(PathBuf, PathBuf)> {
        let r = self.recipe;
        let settings = AssembleSettings { variant, ..r.assemble.clone() };
        let mut inputs = vec![data.rows.as_path()];
        inputs.extend(data.parallel.as_deref());
        let examples = self.dir(Room::Assemble(variant.name()), &inputs, &settings)?;
        assemble::run(&assemble::Args {
            input: data.rows.clone(),
            parallel: data.parallel.clone(),
            out: examples.clone(),
            source_language: r.source_language.clone(),
            target_languages: r.target_languages.clone(),
            settings,
        })?;
        self.pack_and_train(&examples, Some(variant.name()))
    }

    /// The model as it was; the folder of its results.
    pub(super) fn evaluate_base(&self) -> Result<PathBuf> {
        self.evaluate(&self.recipe.model, None, Room::EvalBase, &Room::EvalBase.name())
    }

    /// What training wrote: an adapter, or a model of its own.
    pub(super) fn evaluate_trained(&self, trained: &Path, room: Room, label: &str) -> Result<PathBuf> {
        let adapter = if planning() { self.recipe.train.method == Method::Lora } else { is_adapter(trained) };
        if adapter {
            self.evaluate(&self.recipe.model, Some(trained), room, label)
        } else {
            self.evaluate(&trained.to_string_lossy(), None, room, label)
        }
    }

    fn evaluate(&self, model: &str, adapter: Option<&Path>, room: Room, label: &str) -> Result<PathBuf> {
        self.go_on()?;
        let r = self.recipe;
        let settings =
            json!([model, r.generate.template, r.generate.system, r.eval, self.placement.to_string()]);
        let inputs: Vec<&Path> = adapter.into_iter().collect();
        let out = self.dir(room, &inputs, &settings)?;
        let job = Job {
            model,
            adapter,
            out: &out,
            template: &r.generate.template,
            system: r.generate.system.as_deref(),
            placement: self.placement,
            label,
        };
        evaluate(&job, &r.eval)?;
        Ok(out)
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
