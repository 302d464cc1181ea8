//! The subcommands: which function each one calls.
use std::path::{Path, PathBuf};

use anyhow::Result;
use tracing::info_span;

use crate::{
    data::contained,
    device::{nvtx, vectors},
    error::Error,
    models::weights::hub,
    orchestrate::{ablate, run},
    pipeline::interrupt::on_interrupt,
    report::{
        out,
        trace::{Ranges, Trace},
    },
    stages::{
        align, assemble, code_switch, doctor, eval, filter, generate, import, inspect, merge, metric, pack,
        parallel, score, sweep, train, translate,
    },
};

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Run all stages of a recipe
    Run(run::Args),
    /// Answer questions with a model
    Generate(generate::Args),
    /// Translate questions and answers
    Translate(translate::Args),
    /// Score the translations
    Score(score::Args),
    /// Decide which translations to keep
    Filter(filter::Args),
    /// Count what other thresholds would keep, without scoring again
    Sweep(sweep::Args),
    /// Mix dictionary equivalents into questions
    CodeSwitch(code_switch::Args),
    /// Select parallel sentences
    Parallel(parallel::Args),
    /// Make training examples from rows
    Assemble(assemble::Args),
    /// Tokenise examples into training shards
    Pack(pack::Args),
    /// Train an adapter or a model
    Train(train::Args),
    /// Convert published PyTorch checkpoints to safetensors
    Import(import::Args),
    /// Merge an adapter into its model
    Merge(merge::Args),
    /// Show rows, or token shards with their loss mask
    Inspect(inspect::Args),
    /// Evaluate a model; compare two
    Eval(eval::Args),
    /// Compare hidden states of parallel sentences, before and after training
    Align(align::Args),
    /// Run a matrix of ablations over a recipe
    Ablate(ablate::Args),
    /// Score files: BLEU, chrF, TER, ROUGE, MKQA, significance tests
    Metric(metric::Args),
    /// Show devices, kernels, memory and threads
    Doctor(doctor::Args),
    /// What the program starts for chat templates and tokenizers of others
    #[command(hide = true)]
    Contained(contained::work::Args),
}

impl Command {
    /// The same with `--model` at this revision of the hub.
    ///
    /// # Errors
    /// A command without `--model`, or one whose model is no name of the hub.
    pub fn at_revision(mut self, revision: &str) -> Result<Command> {
        let model = match &mut self {
            Command::Generate(generate::Args { model, .. })
            | Command::Pack(pack::Args { model, .. })
            | Command::Train(train::Args { model, .. })
            | Command::Import(import::Args { model, .. })
            | Command::Merge(merge::Args { model, .. })
            | Command::Eval(eval::Args { model, .. })
            | Command::Align(align::Args { model, .. }) => Some(model),
            Command::Translate(translate::Args { model, .. })
            | Command::Inspect(inspect::Args { model, .. }) => model.as_mut(),
            _ => None,
        };
        let none = "--revision goes with --model; a recipe says model = \"org/name@REVISION\"";
        let model = model.ok_or_else(|| Error::setting("revision", none))?;
        *model = hub::at_revision(model, revision)?;
        Ok(self)
    }

    /// Runs the subcommand. Its spans go to the file `trace` (or the one of `SDRRL_TRACE`), and to NVIDIA's profilers where they are wanted
    /// ([`nvtx::wanted`]).
    pub fn run(&self, trace: Option<&Path>) -> Result<()> {
        if let Command::Contained(args) = self {
            return contained::work::run(args);
        }
        out::set_mode(match self {
            Command::Inspect(_) | Command::Metric(_) | Command::Doctor(_) => out::Mode::PrintOnly,
            _ => out::Mode::Work,
        });
        on_interrupt()?;
        vectors::wanted()?;
        let variable = std::env::var_os("SDRRL_TRACE").filter(|v| !v.is_empty()).map(PathBuf::from);
        let path = trace.map(Path::to_path_buf).or(variable);
        let ranges = nvtx::wanted()?.then_some(Ranges { push: nvtx::push, pop: nvtx::pop });
        if path.is_none() && ranges.is_none() {
            return self.call();
        }
        let trace = Trace::begin(path.as_deref(), ranges)?;
        let whole = format!("{self:?}");
        let name = whole.split('(').next().unwrap_or_default();
        let done = info_span!("command", name).in_scope(|| self.call());
        // What went wrong in the command is what to look at first.
        let ended = trace.end();
        done.and(ended)
    }

    fn call(&self) -> Result<()> {
        match self {
            Command::Run(args) => run::run(args),
            Command::Generate(args) => generate::run(args),
            Command::Translate(args) => translate::run(args),
            Command::Score(args) => score::run(args),
            Command::Filter(args) => filter::run(args),
            Command::Sweep(args) => sweep::run(args),
            Command::CodeSwitch(args) => code_switch::run(args),
            Command::Parallel(args) => parallel::run(args),
            Command::Assemble(args) => assemble::run(args),
            Command::Pack(args) => pack::run(args),
            Command::Train(args) => train::run(args),
            Command::Import(args) => import::run(args),
            Command::Merge(args) => merge::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Eval(args) => eval::run(args),
            Command::Align(args) => align::run(args),
            Command::Ablate(args) => ablate::run(args),
            Command::Metric(args) => metric::run(args),
            Command::Doctor(args) => doctor::run(args),
            Command::Contained(args) => contained::work::run(args),
        }
    }
}
