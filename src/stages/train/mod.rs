//! `sdrrl train`: LoRA, full fine-tuning or training from scratch on packed token shards (SDRRL, steps 7 and 8).
mod aligned;
mod amount;
mod answers;
pub(super) mod card;
mod data;
mod export;
mod launch;
mod load;
pub mod page;
mod probe;
mod reference;
mod rewards;
mod screen;
mod settings;
mod summary;
mod teacher;
mod together;
mod watch;

use std::{
    path::{Path, PathBuf},
    rc::Rc,
};

use crate::error::Error;
use crate::{
    distributed::{ranks::Ranks, team::Team},
    models::{transformer::train_step::TrainStep, transformer::weights::Transformer, weights::resolve},
    pipeline::{
        identity::{Identity, Inputs},
        interrupt::interrupted,
        manifest::{Counts, Manifest},
        placement::Placement,
        plan::planning,
        rows::apart,
        stage::{self, Made, Open, Replace, Stage},
        work_dir::{ADAPTER_CONFIG, METRICS, PAGE, TIMING},
    },
    recipe::{
        eval::EvalSettings,
        pack::PackSettings,
        train::{Reduce, TrainSettings},
    },
    stages::pack::Validation,
    train::{
        checkpoint,
        distillation::Distillation,
        trainer::{CHANGEABLE, Checks, RANKS, train},
    },
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use aligned::Aligned;
pub use amount::Amount;
use answers::Sampled;
pub use data::check_headers;
use export::export;
pub use launch::{check_devices, for_devices};
use load::{load, step_of};
use reference::{Reference, preference};
use screen::{Screen, Seen};
pub use settings::memory;
use settings::{check_guard, guard_text, kept, trainer_settings};
pub use summary::next_commands;
use summary::{ending, interruption};
use teacher::Teacher;

/// Arguments of `train`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Model: a Hugging Face directory, a .gguf file or a name in the local cache; with --method scratch a directory with config.json
    /// and tokenizer.json
    #[arg(long)]
    pub model: String,
    /// Directory written by `pack`
    #[arg(long, required_unless_present = "data")]
    pub shards: Option<PathBuf>,
    /// Your own data instead of --shards: a file of conversations, questions with answers, or what --objective learns from (JSON Lines, JSON, Parquet), packed
    /// into OUT/pack; - is standard input. Settings that are not given are chosen to suit it
    #[arg(long, value_name = "FILE", conflicts_with = "shards")]
    pub data: Option<PathBuf>,
    /// With --data: the share of its rows, or another file, to measure the validation loss on [default: 0.05]
    #[arg(long, value_name = "SHARE|FILE", value_parser = str::parse::<Validation>, requires = "data")]
    pub validation: Option<Validation>,
    /// Start from this PEFT adapter instead of a new one; its rank, alpha, dropout, kind and modules replace those of --lora-*
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// Directory for the adapter or the model, and the logs
    #[arg(long)]
    pub out: PathBuf,
    /// Data types and device
    #[command(flatten)]
    pub placement: Placement,
    /// Discard the checkpoints in --out, and replace a result of other settings
    #[arg(long)]
    pub restart: bool,
    /// Resume an interrupted training run; an error if there is none. (Without this option the same command resumes too, or begins.)
    #[arg(long, conflicts_with = "restart")]
    pub resume: bool,
    /// Print only warnings and the result, no progress
    #[arg(long)]
    pub quiet: bool,
    /// Replace a finished training run of other inputs or settings, and print why, as `run` does with every stage
    #[arg(skip)]
    pub replace: bool,
    /// How
    #[command(flatten)]
    pub settings: TrainSettings,
    /// How rows of --data are packed
    #[command(flatten)]
    pub pack: PackSettings,
    /// TOML file with `[[tasks]]`; its generation tasks are run at each validation
    #[arg(long)]
    pub probe_tasks: Option<PathBuf>,
    /// Rows of each task to generate at each validation
    #[arg(long, default_value_t = 20)]
    pub probe_rows: usize,
    /// Chat template for the prompts of those tasks
    #[arg(long, default_value = "auto")]
    pub probe_template: String,
    /// System prompt for those tasks
    #[arg(long)]
    pub probe_system: Option<String>,
    /// The folder of stage `parallel`, whose pairs are aligned where a recipe names no others
    #[arg(skip)]
    pub parallel: Option<PathBuf>,
    /// The tasks themselves, where a recipe gives them
    #[arg(skip)]
    pub probe: Option<EvalSettings>,
}

/// Runs the stage: in this process, as one rank of several, or by starting a process for each of several GPUs.
pub fn run(args: &Args) -> Result<()> {
    let args = &*launch::given(args)?;
    args.settings.check()?;
    let ranks = if planning() { None } else { Ranks::of_environment()? };
    match (ranks, args.placement.device) {
        (Some(ranks), _) => together::run(args, &ranks),
        (None, devices) if devices.each().len() > 1 && !planning() => launch::run(args),
        _ => run_with(args, None),
    }
}

/// In this process, rank 0 of several or alone.
fn run_with(args: &Args, together: Option<&together::First>) -> Result<()> {
    check_place(args)?;
    let model_path = resolve(&args.model)?;
    let args = &data::prepare(args)?;
    let mut train = Train::new(args, model_path, together)?;
    stage::run(&mut train)?;
    if planning() { Ok(()) } else { summary::print(args, &train.seen) }
}

/// What is wrong with the placement, or with the folder of the result and those in it, before anything is packed.
fn check_place(args: &Args) -> Result<()> {
    load::check_placement(args)?;
    resolve(&args.model)?;
    must_go_on(args)?;
    if args.data.is_some() {
        // Packing may take long.
        stage::check_place::<Train>(&args.out)?;
    }
    if args.settings.objective.has_reference() {
        stage::check_place::<Reference>(&args.out.join(reference::FOLDER))?;
    }
    if args.settings.stored_teacher().is_some() {
        stage::check_place::<Teacher>(&args.out.join(teacher::FOLDER))?;
    }
    Ok(())
}

/// `--resume` is for what can be gone on with.
fn must_go_on(args: &Args) -> Result<()> {
    let begun = checkpoint::latest_state(&args.out).is_some() || Manifest::load(&args.out)?.is_some();
    let none = || {
        format!(
            "--resume: {} holds no checkpoint and no finished training: leave --resume out to begin",
            args.out.display()
        )
    };
    ensure!(begun || !args.resume, Error::not_found(&args.out, none()));
    Ok(())
}

struct Train<'a> {
    args: &'a Args,
    shards: PathBuf,
    /// What they hold, where that is open already.
    opened: Option<data::Shards>,
    model_path: PathBuf,
    probe: Option<probe::Probe>,
    seen: Seen,
    /// Where the other ranks come to, if there are any.
    together: Option<&'a together::First>,
    /// How many train together: as many as there are devices, which are a rank each.
    ranks: usize,
}

impl<'a> Train<'a> {
    fn new(args: &'a Args, model_path: PathBuf, together: Option<&'a together::First>) -> Result<Train<'a>> {
        let shards = args.shards.clone().context("--shards is missing")?;
        let probe = probe::Probe::new(args, &model_path)?;
        let ranks = together.map_or(args.placement.device.each().len(), |t| t.ranks());
        let seen = Seen::default();
        Ok(Train { args, shards, opened: None, model_path, probe, seen, together, ranks })
    }
}

impl Stage for Train<'_> {
    const NAME: &'static str = "train";
    const FILES: &'static [&'static str] = &[
        "*.safetensors",
        "*.safetensors.index.json",
        ADAPTER_CONFIG,
        "config.json",
        "generation_config.json",
        METRICS,
        TIMING,
        PAGE,
        "tokenizer*",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template*",
        "additional_chat_templates/*.jinja",
    ];

    fn out(&self) -> &Path {
        &self.args.out
    }

    fn identity(&self) -> Result<Identity> {
        let s = &self.args.settings;
        // How a step is cut into micro-batches decides the order in which gradients are added; so do the ranks, unless sums have a fixed order.
        let identity = Identity::of(s)?.with("batch-tokens", s.batch_tokens)?;
        let count = self.ranks > 1 && s.reduce == Reduce::AllReduce;
        let identity = if count { identity.with(RANKS, self.ranks)? } else { identity };
        match &self.probe {
            Some(probe) => identity.with("probe", probe.identity()?),
            None => Ok(identity),
        }
    }

    fn placement(&self) -> Option<Placement> {
        Some(self.args.placement)
    }

    fn inputs(&self) -> Result<Inputs> {
        let inputs = Inputs::new().model("model", &self.model_path)?.file("shards", &self.shards);
        let inputs = inputs.maybe("guard-file", self.args.settings.guard_file.as_deref());
        let inputs = aligned::inputs(self.args, inputs);
        match &self.args.adapter {
            Some(adapter) => inputs.model("adapter", adapter),
            None => Ok(inputs),
        }
    }

    fn goes_on(&self, begun: &Manifest, expected: &Manifest) -> bool {
        !self.args.restart && differences(&checkpoint_identity(begun), expected).is_empty()
    }

    fn replaces(&self) -> Replace {
        if self.args.restart || self.args.replace {
            return Replace::AndSayWhy;
        }
        Replace::Never("choose another --out, or --restart to train again and replace it")
    }

    fn check_folder(&self, expected: &Manifest) -> Result<()> {
        let args = self.args;
        for (name, input) in [("--model", Some(&self.model_path)), ("--adapter", args.adapter.as_ref())] {
            if let Some(input) = input {
                apart(input, &args.out).with_context(|| format!("train into the folder of {name}"))?;
            }
        }
        checkpoint::refuse_foreign(&args.out)?;
        let Some(state) = checkpoint::latest_state(&args.out).filter(|_| !args.restart) else {
            return Ok(());
        };
        let changed = differences(&state.settings, expected);
        let (out, changed_to) = (args.out.display(), changed.join("; "));
        let message = || {
            format!(
                "{out} holds a checkpoint of a run with other settings ({changed_to}): use those again, or --restart to start over"
            )
        };
        ensure!(changed.is_empty(), Error::exists(&args.out, message()));
        Ok(())
    }

    fn meet(&self, expected: &Manifest) -> Result<()> {
        self.together.map_or(Ok(()), |first| first.meet(self.args, expected))
    }

    fn run(&mut self, open: &mut Open) -> Result<Made> {
        let team = Rc::new(self.together.and_then(|first| first.team()).unwrap_or_default());
        let made = self.work(open.manifest(), Some(&*open), &team);
        team.ended(made)?.context("the stage has no result")
    }
}

impl Train<'_> {
    /// The work itself, of one rank; rank 0, or one alone, has the folder `open` and the result.
    fn work(&mut self, manifest: &Manifest, open: Option<&Open>, team: &Rc<Team>) -> Result<Option<Made>> {
        let args = self.args;
        open.filter(|_| args.restart).map(|_| checkpoint::clean(&args.out)).transpose()?;
        let opened = self.opened.take().map_or_else(|| data::Shards::open(&self.shards, &args.settings), Ok);
        let data::Shards { train: shard, validation, source } = opened?;
        check_guard(&args.settings, source.as_ref(), &shard)?;
        let text = guard_text(&args.settings, &self.model_path)?;
        let aligned = Aligned::of(args, &self.model_path)?;
        let (model, trainable) = load(args, &self.model_path)?;
        let mixed = kept(&args.settings, &shard, &trainable)?;
        let held = [Some(&shard), validation.as_ref()];
        let sampled = Sampled::new(&args.settings, &self.model_path, (&model, &trainable), held)?;
        let mut model = together::place(args, model, team)?;
        let texts = text.iter().map(|t| t.longest());
        let texts = texts.chain(aligned.iter().map(|a| a.room(args.settings.batch_tokens)));
        let all = [Some(&shard), validation.as_ref(), source.as_ref()];
        let room = load::room(all, args.settings.batch_tokens).max(texts.max().unwrap_or(0));
        let mut step = step_of(&args.settings, &model, trainable, mixed, room)?;
        if !args.quiet && team.is_first() {
            amount::print(args, (&model, &step), &shard, team.world().size());
            aligned.iter().for_each(Aligned::print);
        }
        data::warn_of_few_steps(&args.settings, shard.units());
        let mut settings = trainer_settings(&args.settings, checkpoint_identity(manifest));
        let inputs = [&*self.shards, &*self.model_path];
        settings.preference = preference(args, inputs, (&model, &mut step), held, team)?;
        let mut screen = Screen::new(&model, &step, args.quiet);
        let how = (&**team, settings.fixed_order);
        let drawn = sampled.as_ref().map(|s| s.on_policy(&model, validation.as_ref(), how)).transpose()?;
        let stored = teacher::stored(args, inputs, (&model, &mut step), held, team)?;
        let probe = self.probe.as_ref();
        let mut measure = |m: &Transformer, s: &TrainStep| probe.map_or(Ok(vec![]), |p| p.measure(m, s));
        let outcome = train(
            &mut model,
            &mut step,
            &shard,
            Checks {
                validation: validation.as_ref(),
                source: source.as_ref(),
                text: text.as_ref(),
                probe: probe.is_some().then_some(&mut measure),
                alignment: aligned.as_ref().map(|a| &a.sentences),
                distillation: drawn.map(Distillation::OnPolicy).or(stored.map(Distillation::Stored)),
                team: team.clone(),
            },
            &settings,
            &args.out,
            &interrupted,
            &mut |event| screen.show(event),
        )?;
        team.disconnect();
        self.seen = screen.end();
        ensure!(outcome.finished, interruption(&outcome, &args.out));
        let Some(open) = open else { return Ok(None) };
        export(args, &self.shards, &model, &step, &self.model_path, (settings.lr, &outcome))?;
        open.write(PAGE, page::page(args, &self.shards, &outcome)?.to_html().as_bytes())?;
        checkpoint::clean(&args.out)?;
        let summary = aligned::summary(summary::of(&outcome, &args.out)?, aligned.as_ref());
        Ok(Some(Made::new(summary)?.counting(Counts::all(shard.len())).saying(ending(&outcome, &args.out))))
    }
}

/// A setting that changes the result alone.
const SAVE_DTYPE: &str = "save-dtype";

/// What a checkpoint remembers of the work that it belongs to: settings, and the inputs' hashes.
fn checkpoint_identity(manifest: &Manifest) -> Value {
    let mut identity = manifest.settings.clone();
    // How the result is written decides nothing before.
    identity.as_object_mut().map(|settings| settings.shift_remove(SAVE_DTYPE));
    identity["inputs"] = json!(manifest.inputs);
    identity
}

/// What differs between the work of a checkpoint and what is asked now, in words.
fn differences(of_checkpoint: &Value, expected: &Manifest) -> Vec<String> {
    let mut old = expected.clone();
    old.settings = of_checkpoint.clone();
    old.settings[CHANGEABLE] = expected.settings[CHANGEABLE].clone();
    match expected.settings.get(RANKS) {
        Some(ranks) => old.settings[RANKS] = ranks.clone(),
        None => drop(old.settings.as_object_mut().map(|settings| settings.shift_remove(RANKS))),
    }
    if let Some(dtype) = expected.settings.get(SAVE_DTYPE) {
        old.settings[SAVE_DTYPE] = dtype.clone();
    }
    let inputs = old.settings.as_object_mut().and_then(|map| map.remove("inputs"));
    old.inputs = inputs.and_then(|v| serde_json::from_value(v).ok()).unwrap_or_default();
    expected.differences(&old)
}
