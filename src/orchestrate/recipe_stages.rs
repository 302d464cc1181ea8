//! The stages of a recipe, each in its folder: made, skipped where the same is there or, inside of a plan, only compared.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::json;

use super::alone::Alone;
use crate::{
    error::Error,
    eval::run::{Job, evaluate},
    pipeline::{
        clock,
        identity::without_place,
        interrupt::interrupted,
        placement::Placement,
        plan::planning,
        rows::{Part, RowArgs},
        work_dir::{Room, WorkDir, is_adapter},
    },
    recipe::{
        Recipe,
        assemble::{AssembleSettings, Variant},
        generate::GenerateEngine,
        pack::PackSettings,
        train::Method,
        translate::TranslateEngine,
    },
    report::out::say,
    stages::{assemble, code_switch, filter, generate, pack, parallel, score, train, translate},
};

/// How a recipe's models are held and where they compute.
pub(super) fn placement(recipe: &Recipe) -> Result<Placement> {
    let r = recipe;
    Placement::named(r.dtype.as_deref(), &r.base_dtype, &r.activations, &r.device).context("recipe")
}

/// A recipe at work.
pub(super) struct Run<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) placement: Placement,
    pub(super) restart: bool,
    /// Every path.
    pub(super) work: WorkDir,
    /// Where only one stage is asked for.
    pub(super) alone: Option<Alone>,
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
        Ok(Run { placement: placement(recipe)?, recipe, restart: false, work: work.clone(), alone: None })
    }

    /// The folder of a stage.
    fn dir(&self, room: Room, inputs: &[&Path], settings: &impl Serialize) -> Result<PathBuf> {
        let languages = (&self.recipe.source_language, &self.recipe.target_languages);
        let mut settings = json!([languages, settings]);
        // A server that has moved is the same.
        without_place(&mut settings);
        self.work.of(room, inputs, &settings)
    }

    /// Runs a stage, or plans it, in its folder, which is returned; `inputs` are the folders and files that decide which.
    fn stage(
        &self,
        room: Room,
        inputs: &[&Path],
        settings: &impl Serialize,
        work: &dyn Fn(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let out = self.dir(room, inputs, settings)?;
        self.stage_in(&out, room, inputs, work)?;
        Ok(out)
    }

    /// As [`Run::stage`], where the folder is known.
    fn stage_in(
        &self,
        out: &Path,
        room: Room,
        inputs: &[&Path],
        work: &dyn Fn(&Path) -> Result<()>,
    ) -> Result<()> {
        self.go_on()?;
        match &self.alone {
            Some(alone) => alone.stage(room, out, inputs, &|| work(out)),
            None => work(out),
        }
    }

    fn part(&self) -> Part {
        self.alone.as_ref().map_or(Part::default(), |alone| alone.part)
    }

    fn rows(&self, input: &Path, out: &Path) -> RowArgs {
        RowArgs {
            input: input.into(),
            out: out.into(),
            part: self.part(),
            source_language: self.recipe.source_language.clone(),
            target_languages: self.recipe.target_languages.clone(),
        }
    }

    /// The folders of token shards and of what was trained on them, beside `parallel` sentences where those are aligned.
    pub(super) fn pack_and_train(
        &self,
        examples: &Path,
        parallel: Option<&Path>,
        variant: Option<&str>,
    ) -> Result<(PathBuf, PathBuf)> {
        let r = self.recipe;
        let packed = self.stage(Room::Pack(variant), &[examples], &r.packing(), &|out| {
            pack::run(&pack::Args {
                model: r.model.clone(),
                examples: examples.into(),
                validation: None,
                out: out.into(),
                rows: r.train.objective.rows(),
                settings: r.pack.clone(),
            })
        })?;
        let probed = (r.eval.while_training > 0).then_some(&r.eval);
        let (settings, placement) = train::for_devices(&r.train, self.placement.in_f32());
        if placement.device != self.placement.device && !planning() {
            say!("train: this is learnt by one process, on {}", placement.device);
        }
        let named = json!([r.model, settings, placement.to_string(), probed]);
        let parallel = parallel.filter(|_| r.aligns_its_own());
        let inputs: Vec<&Path> = [packed.as_path()].into_iter().chain(parallel).collect();
        let trained = self.stage(Room::Train(variant), &inputs, &named, &|out| {
            train::run(&train::Args {
                adapter: None,
                model: r.model.clone(),
                shards: Some(packed.clone()),
                data: None,
                validation: None,
                out: out.into(),
                placement,
                restart: self.restart,
                resume: false,
                quiet: false,
                pack: PackSettings::default(),
                replace: true,
                settings: settings.clone(),
                parallel: parallel.map(Path::to_path_buf),
                probe_tasks: None,
                probe_rows: 0,
                probe_template: r.generate.template.clone(),
                probe_system: r.generate.system.clone(),
                probe: (r.eval.while_training > 0).then(|| r.eval.clone()),
            })
        })?;
        Ok((packed, trained))
    }

    /// Between stages: what they took is written down, and one Ctrl-C ends the run.
    pub(super) fn go_on(&self) -> Result<()> {
        self.record()?;
        let stopped = "stopped between two stages: run the same command again to resume";
        ensure!(!interrupted(), Error::interrupted(stopped));
        Ok(())
    }

    pub(super) fn record(&self) -> Result<()> {
        if planning() { Ok(()) } else { clock::record(self.work.root()) }
    }

    pub(super) fn headline(&self, name: &str) {
        if !planning() {
            say!("── {name}");
        }
    }

    /// The questions with their answers.
    fn answers(&self) -> Result<PathBuf> {
        let r = self.recipe;
        let (questions, counts) = generate::read_questions(&r.questions, &r.source_language, &r.generate)?;
        let files: Vec<&Path> = r.questions.iter().map(PathBuf::as_path).collect();
        let question_dir = self.dir(Room::Questions, &files, &json!([r.generate.limit, r.rows_per_shard]))?;
        let settings = json!([r.model, r.generate, self.placement.to_string()]);
        self.headline("data");
        let write =
            || generate::write_question_shards(&question_dir, &questions, counts.clone(), r.rows_per_shard);
        // Where stages are shared, their content decides the next folder's name; where one is asked for, they are a part of it.
        if self.alone.is_none() {
            write()?;
        }
        self.stage(Room::Generate, &[&question_dir], &settings, &|out| {
            if self.alone.is_some() {
                write()?;
            }
            let args = generate::Args {
                model: (r.generate.engine == GenerateEngine::Local).then(|| r.model.clone()),
                adapter: None,
                prompts: r.questions.clone(),
                prompt: vec![],
                out: Some(out.into()),
                source_language: r.source_language.clone(),
                placement: self.placement_where(r.generate.engine == GenerateEngine::Local),
                part: self.part(),
                rows_per_shard: r.rows_per_shard,
                settings: r.generate.clone(),
            };
            generate::run_shards(&args, &question_dir, out)
        })
    }

    /// The rows and the parallel sentences.
    pub(super) fn data(&self) -> Result<Data> {
        let r = self.recipe;
        let generated = self.answers()?;
        let settings = json!([r.model, r.translate, self.placement.to_string()]);
        let translated = self.stage(Room::Translate, &[&generated], &settings, &|out| {
            translate::run(&translate::Args {
                rows: self.rows(&generated, out),
                model: Some(r.model.clone()),
                placement: self.placement_where(r.translate.engine == TranslateEngine::Itself),
                settings: r.translate.clone(),
            })
        })?;
        let scorer = json!([r.score, self.placement.to_string()]);
        let scored = self.stage(Room::Score, &[&translated], &scorer, &|out| {
            score::run(&score::Args {
                rows: self.rows(&translated, out),
                placement: self.placement.of_other_models(),
                settings: r.score.clone(),
            })
        })?;
        let filtered = self.stage(Room::Filter, &[&scored], &r.filter, &|out| {
            filter::run(&filter::Args { rows: self.rows(&scored, out), settings: r.filter.clone() })
        })?;
        let rows = self.stage(Room::CodeSwitch, &[&filtered], &r.code_switch, &|out| {
            let (rows, settings) = (self.rows(&filtered, out), r.code_switch.clone());
            code_switch::run(&code_switch::Args { rows, settings })
        })?;
        if r.parallel.file.is_none() {
            return Ok(Data { rows, parallel: None });
        }
        let parallel = self.stage(Room::Parallel, &[], &r.parallel, &|out| {
            parallel::run(&parallel::Args {
                out: out.into(),
                source_language: r.source_language.clone(),
                target_languages: r.target_languages.clone(),
                settings: r.parallel.clone(),
            })
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
        let examples = self.stage(Room::Assemble(variant.name()), &inputs, &settings, &|out| {
            assemble::run(&assemble::Args {
                input: data.rows.clone(),
                parallel: data.parallel.clone(),
                out: out.into(),
                source_language: r.source_language.clone(),
                target_languages: r.target_languages.clone(),
                settings: settings.clone(),
            })
        })?;
        self.pack_and_train(&examples, data.parallel.as_deref(), Some(variant.name()))
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
        let r = self.recipe;
        let settings =
            json!([model, r.generate.template, r.generate.system, r.eval, self.placement.to_string()]);
        let inputs: Vec<&Path> = adapter.into_iter().collect();
        let out = self.dir(room, &inputs, &settings)?;
        // What was trained may be the model itself.
        let reads = [adapter.unwrap_or(Path::new(model))];
        self.stage_in(&out, room, &reads, &|out| {
            let job = Job {
                model,
                adapter,
                out,
                template: &r.generate.template,
                system: r.generate.system.as_deref(),
                placement: self.placement,
                label,
            };
            evaluate(&job, &r.eval)
        })?;
        Ok(out)
    }
}
