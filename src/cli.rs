//! The command line; the subcommands, one line each, which names the module with its `Args` and `run`.
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
        environment,
        out::{self, Mode},
        trace::{Ranges, Trace},
    },
    stages::{
        self, align, chat, eval, generate, help, import, inspect, merge, pack, quantize, serve, train,
        translate,
    },
};

/// Near the end of the help.
const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  failed; the message says why and what to change
    2  wrong usage
  With the following codes nothing is wrong with the command; run it again to continue:
   69  not enough memory, or the device is not available
   75  another process is using the folder
  130  stopped by Ctrl-C or a signal; finished work is kept";

/// Self-distillation from resource-rich languages (SDRRL, arXiv 2402.12204), from first prompt to final table.
#[derive(clap::Parser)]
#[command(name = "sdrrl", version, disable_help_subcommand = true, max_term_width = 110, after_help = format!("{EXIT_CODES}\n\n{}", environment::help()))]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
    /// Record where the time goes in a new file, to view in ui.perfetto.dev or chrome://tracing (or set SDRRL_TRACE=FILE)
    #[arg(long, global = true, value_name = "FILE", help_heading = "Diagnostics")]
    pub trace: Option<std::path::PathBuf>,
    /// Identify languages with this fastText model (lid.176, OpenLID, GlotLID; .bin or .ftz) instead of the built-in identifier, which knows 70 languages
    /// (or set SDRRL_LANGUAGE_ID=FILE)
    #[arg(long, global = true, value_name = "FILE", help_heading = "Languages")]
    pub language_id: Option<std::path::PathBuf>,
    /// Branch, tag or commit of the Hugging Face model named by --model (the same as NAME@REVISION)
    #[arg(long, global = true, help_heading = "Models")]
    pub revision: Option<String>,
}

/// Makes the enum of the subcommands and the call of each from lines `/// help`, `Name: module, what it is on the screen;`.
macro_rules! subcommands {
    ($($(#[$about:meta])* $name:ident: $($module:ident)::+, $mode:expr;)*) => {
        /// The subcommands.
        #[derive(clap::Subcommand)]
        // One exists in a process.
        #[allow(clippy::large_enum_variant)]
        pub enum Command {
            $($(#[$about])* $name($($module)::+::Args),)*
            /// Explain a command, or one of: tasks, recipe, formats
            Help(help::Args),
            /// Print a script that completes commands and options in a shell
            Completions(help::CompletionArgs),
            /// What the program starts for chat templates and tokenizers of others
            #[command(hide = true)]
            Contained(contained::work::Args),
        }

        impl Command {
            /// In traces.
            fn name(&self) -> &'static str {
                match self {
                    $(Command::$name(_) => stringify!($name),)*
                    Command::Help(_) => "Help",
                    Command::Completions(_) => "Completions",
                    Command::Contained(_) => "Contained",
                }
            }

            /// What its output is to it.
            fn mode(&self) -> Mode {
                match self {
                    $(Command::$name(_) => $mode,)*
                    Command::Help(_) | Command::Completions(_) => Mode::PrintOnly,
                    Command::Contained(_) => Mode::Work,
                }
            }

            fn call(&self) -> Result<()> {
                match self {
                    $(Command::$name(args) => $($module)::+::run(args),)*
                    Command::Help(args) => help::run(args, Cli::command()),
                    Command::Completions(args) => help::complete(args, Cli::command()),
                    Command::Contained(args) => contained::work::run(args),
                }
            }
        }
    };
}

subcommands! {
    /// Run all stages of a recipe
    Run: run, Mode::Work;
    /// Answer questions with a model
    Generate: stages::generate, Mode::Work;
    /// Talk to a model in the terminal, with adapters side by side
    Chat: stages::chat, Mode::PrintOnly;
    /// Serve a model and its adapters over an OpenAI-compatible API, with a test page
    Serve: stages::serve, Mode::Work;
    /// Translate questions and answers
    Translate: stages::translate, Mode::Work;
    /// Score the translations
    Score: stages::score, Mode::Work;
    /// Decide which translations to keep
    Filter: stages::filter, Mode::Work;
    /// Count what other thresholds would keep, without scoring again
    Sweep: stages::sweep, Mode::Work;
    /// Replace words of questions by their dictionary translations
    CodeSwitch: stages::code_switch, Mode::Work;
    /// Select parallel sentences
    Parallel: stages::parallel, Mode::Work;
    /// Make training examples from rows
    Assemble: stages::assemble, Mode::Work;
    /// Tokenise examples into training shards
    Pack: stages::pack, Mode::Work;
    /// Train an adapter or a model
    Train: stages::train, Mode::Work;
    /// Convert published PyTorch checkpoints to safetensors
    Import: stages::import, Mode::Work;
    /// Merge an adapter into its model
    Merge: stages::merge, Mode::Work;
    /// Write a model, or an adapter, as a GGUF file for llama.cpp and Ollama
    Quantize: stages::quantize, Mode::Work;
    /// Estimate training on GPUs that are not at hand: time, links, memory
    Plan: stages::plan, Mode::PrintOnly;
    /// Export the log of a training to MLflow or Weights & Biases, as offline folders
    Export: stages::export, Mode::Work;
    /// Show rows, token shards with their loss mask, or the header of a .gguf file
    Inspect: stages::inspect, Mode::PrintOnly;
    /// Evaluate a model, or compare two
    Eval: stages::eval, Mode::Work;
    /// Compare hidden states of parallel sentences, before and after training
    Align: stages::align, Mode::Work;
    /// Run a matrix of ablations over a recipe
    Ablate: ablate, Mode::Work;
    /// Score files: BLEU, chrF, TER, ROUGE, MKQA, significance tests
    Metric: stages::metric, Mode::PrintOnly;
    /// Show devices, kernels, memory and threads
    Doctor: stages::doctor, Mode::PrintOnly;
    /// Measure this program on this machine: kernels, train, generate, translate, score
    Bench: stages::bench, Mode::PrintOnly;
}

impl Command {
    /// The same with `--model` at this revision of the hub.
    ///
    /// # Errors
    /// A command without `--model`, or one whose model is no name of the hub.
    pub fn at_revision(mut self, revision: &str) -> Result<Command> {
        let model = match &mut self {
            Command::Chat(chat::Args { model, .. })
            | Command::Serve(serve::Args { model, .. })
            | Command::Pack(pack::Args { model, .. })
            | Command::Train(train::Args { model, .. })
            | Command::Import(import::Args { model, .. })
            | Command::Merge(merge::Args { model, .. })
            | Command::Quantize(quantize::Args { model, .. })
            | Command::Eval(eval::Args { model, .. })
            | Command::Align(align::Args { model, .. }) => Some(model),
            Command::Generate(generate::Args { model, .. })
            | Command::Translate(translate::Args { model, .. })
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
        out::set_mode(self.mode());
        on_interrupt()?;
        vectors::wanted()?;
        let variable = std::env::var_os("SDRRL_TRACE").filter(|v| !v.is_empty()).map(PathBuf::from);
        let path = trace.map(Path::to_path_buf).or(variable);
        let ranges = nvtx::wanted()?.then_some(Ranges { push: nvtx::push, pop: nvtx::pop });
        if path.is_none() && ranges.is_none() {
            return self.call();
        }
        let trace = Trace::begin(path.as_deref(), ranges)?;
        let done = info_span!("command", name = self.name()).in_scope(|| self.call());
        // What went wrong in the command is what to look at first.
        let ended = trace.end();
        done.and(ended)
    }
}
