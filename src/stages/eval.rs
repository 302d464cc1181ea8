//! `sdrrl eval`: perplexity, translation, multiple choice, question answering, summaries and alignment of a model; two models compared.
use std::path::PathBuf;

use anyhow::Result;

use crate::{
    eval::{
        compare,
        run::{Job, evaluate, read_tasks, results_table},
    },
    metrics::catalog,
    pipeline::placement::Placement,
    report::{out, table::use_colour},
};

/// The end of the help: what `metrics` of a task may name.
fn metrics_help() -> String {
    format!("Metrics of generated replies, for `metrics` of a task:\n{}", catalog::help())
}

/// Arguments of `eval`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = metrics_help())]
pub struct Args {
    /// Model: a Hugging Face directory, a .gguf file, or a name in the local Hugging Face cache
    #[arg(long)]
    pub model: String,
    /// Adapter directory (PEFT), merged on load
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// TOML file with `[[tasks]]`, or a recipe with `[[eval.tasks]]`
    #[arg(long)]
    pub tasks: PathBuf,
    /// Folder for results and samples
    #[arg(long)]
    pub out: PathBuf,
    /// Folder of an earlier evaluation with the same tasks: print what changed, with intervals
    #[arg(long)]
    pub compare: Option<PathBuf>,
    /// Chat template: auto (the model's own), alpaca, alpaca-llamafactory, llama2, chatml, seallm-v2, plain, or a .jinja file
    #[arg(long, default_value = "auto")]
    pub template: String,
    /// System prompt
    #[arg(long)]
    pub system: Option<String>,
    /// Data types and device
    #[command(flatten)]
    pub placement: Placement,
}

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    let settings = read_tasks(&args.tasks)?;
    let job = Job {
        model: &args.model,
        adapter: args.adapter.as_deref(),
        out: &args.out,
        template: &args.template,
        system: args.system.as_deref(),
        placement: args.placement,
        label: "eval",
    };
    evaluate(&job, &settings)?;
    match &args.compare {
        Some(before) => {
            let table = compare::table(&compare::compare(before, &args.out, &settings, args.placement)?);
            out::raw(format_args!("{}", table.to_text(use_colour())));
        }
        None => out::raw(format_args!(
            "{}",
            results_table(&args.out, &settings, args.placement)?.to_text(use_colour())
        )),
    }
    Ok(())
}
