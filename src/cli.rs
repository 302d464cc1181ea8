//! The subcommands: which function each one calls.
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::CommandFactory;
use tracing::info_span;

use crate::{
    data::contained,
    device::{nvtx, vectors},
    error::Error,
    models::weights::hub,
    orchestrate::{ablate, run},
    pipeline::interrupt::on_interrupt,
    report::{
        environment, out,
        trace::{Ranges, Trace},
    },
    stages::{
        align, assemble, chat, code_switch, doctor, eval, filter, generate, help, import, inspect, merge,
        metric, pack, parallel, score, serve, sweep, train, translate,
    },
};

/// Near the end of the help.
const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  failed; the message says what to change
    2  wrong usage
  With these the command is right, and the same one may be run again:
   69  too little memory, or the device is not there
   75  another process is at work in the folder
  130  stopped by Ctrl-C or a signal; what is done is kept, the same command goes on";

/// Self-distillation from resource-rich languages (SDRRL, arXiv 2402.12204), from first prompt to final table.
#[derive(clap::Parser)]
#[command(name = "sdrrl", version, disable_help_subcommand = true, max_term_width = 110, after_help = format!("{EXIT_CODES}\n\n{}", environment::help()))]
pub struct Cli {
    /// What is to be done
    #[command(subcommand)]
    pub command: Command,
    /// Record where the time goes in a new file, for ui.perfetto.dev or chrome://tracing (SDRRL_TRACE=FILE does the same)
    #[arg(long, global = true, value_name = "FILE", help_heading = "Diagnostics")]
    pub trace: Option<std::path::PathBuf>,
    /// Judge languages by this fastText model (lid.176, OpenLID, GlotLID; .bin or .ftz) instead of the built-in identifier, which knows 70
    /// (SDRRL_LANGUAGE_ID=FILE does the same)
    #[arg(long, global = true, value_name = "FILE", help_heading = "Languages")]
    pub language_id: Option<std::path::PathBuf>,
    /// The branch, tag or commit of the hub's model that --model names, as NAME@REVISION does
    #[arg(long, global = true, help_heading = "Models")]
    pub revision: Option<String>,
}

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Run all stages of a recipe
    Run(run::Args),
    /// Answer questions with a model
    Generate(generate::Args),
    /// Talk to a model in the terminal, with adapters side by side
    Chat(chat::Args),
    /// Serve a model and its adapters over OpenAI's API, with a page to try it
    Serve(serve::Args),
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
    Train(Box<train::Args>),
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
    /// Explain a command, or one of: tasks, recipe, formats
    Help(help::Args),
    /// Print a script that completes commands and options in a shell
    Completions(help::CompletionArgs),
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
            Command::Chat(_)
            | Command::Inspect(_)
            | Command::Metric(_)
            | Command::Doctor(_)
            | Command::Help(_)
            | Command::Completions(_) => out::Mode::PrintOnly,
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
            Command::Chat(args) => chat::run(args),
            Command::Serve(args) => serve::run(args),
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
            Command::Help(args) => help::run(args, Cli::command()),
            Command::Completions(args) => help::complete(args, Cli::command()),
            Command::Contained(args) => contained::work::run(args),
        }
    }
}
