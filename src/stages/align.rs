//! `sdrrl align`: how near translations are to each other inside the model, layer by layer, before training against after.
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::pipeline::{
    identity::{Identity, Inputs},
    manifest::Counts,
    placement::Placement,
    stage::{self, Made, Open, Stage},
    work_dir::{REPORT, is_adapter},
};
use crate::{
    data::{
        languages::{name, require},
        tokenizer::Tokenizer,
    },
    error::Error,
    eval::alignment::{
        AlignmentOptions, AlignmentReport, layer_curves, measure_alignment, planes, read_pairs, table, values,
    },
    infer::{engine::EngineOptions, hidden::Pooling},
    metrics::projection::Projection,
    models::{transformer::lora::Lora, transformer::weights::Transformer, weights::resolve},
    report::{
        html::{Block, Report, Section},
        out::{self, say},
        progress::Progress,
        table::{Table, use_colour},
    },
    tensor::Activations,
};

/// Arguments of `align`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The model before training: a Hugging Face directory, a .gguf file, or a name in the local Hugging Face cache
    #[arg(long)]
    pub model: String,
    /// The model after training: an adapter directory (PEFT), or a model. Without it, only --model is measured
    #[arg(long)]
    pub after: Option<PathBuf>,
    /// Sentences in the source language, one per line
    #[arg(long)]
    pub source: PathBuf,
    /// Their translations, line by line
    #[arg(long)]
    pub target: PathBuf,
    /// Language of --source
    #[arg(long, default_value = "en")]
    pub source_language: String,
    /// Language of --target
    #[arg(long)]
    pub target_language: String,
    /// Use at most this many sentences, from the beginning (0: all)
    #[arg(long, default_value_t = 500)]
    pub limit: usize,
    /// How a sentence's tokens become one vector
    #[arg(long, value_enum, default_value = "mean")]
    pub pooling: Pooling,
    /// Layer to plot [default: the middle one]
    #[arg(long)]
    pub layer: Option<usize>,
    /// How the hidden states are projected for the plot
    #[arg(long, value_enum, default_value = "pca")]
    pub projection: Projection,
    /// Folder for alignment.json and report.html
    #[arg(long)]
    pub out: PathBuf,
    /// Data types and device
    #[command(flatten)]
    pub placement: Placement,
}

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    require(&args.source_language)?;
    require(&args.target_language)?;
    args.projection.check()?;
    stage::run(&mut Align { args }).map(drop)
}

struct Align<'a> {
    args: &'a Args,
}

impl Stage for Align<'_> {
    const NAME: &'static str = "align";
    const FILES: &'static [&'static str] = &["alignment.json", REPORT];

    fn out(&self) -> &Path {
        &self.args.out
    }

    fn identity(&self) -> Result<Identity> {
        let args = self.args;
        let whole = args.after.as_deref().is_some_and(|dir| !is_adapter(dir));
        let both = "the model after training is read in f32, and beside one in int8 would differ for that: leave --activations out, or give an adapter";
        ensure!(
            !whole || args.placement.activations == Activations::F32,
            Error::setting("activations", both)
        );
        let languages = [&args.source_language, &args.target_language];
        let settings = json!({"languages": languages, "limit": args.limit, "pooling": args.pooling,
            "layer": args.layer, "projection": args.projection});
        Identity::of(&settings)
    }

    fn placement(&self) -> Option<Placement> {
        Some(self.args.placement)
    }

    fn inputs(&self) -> Result<Inputs> {
        let args = self.args;
        let inputs = Inputs::new().model("model", &resolve(&args.model)?)?;
        let inputs = inputs.file("source", &args.source).file("target", &args.target);
        match &args.after {
            Some(after) => inputs.model("after", after),
            None => Ok(inputs),
        }
    }

    fn run(&mut self, open: &mut Open) -> Result<Made> {
        let args = self.args;
        let pairs = read_pairs(&args.source, &args.target, args.limit)?;
        let texts: (Vec<String>, Vec<String>) = pairs.into_iter().map(|(_, a, b)| (a, b)).unzip();
        let path = resolve(&args.model)?;
        let tokenizer = Tokenizer::load(&path)?;
        let how = AlignmentOptions {
            pooling: args.pooling,
            layer: args.layer,
            projection: args.projection,
            batch_tokens: EngineOptions::default().batch_tokens,
        };
        let mut looked = vec![];
        for (name, after) in [("before", None), ("after", args.after.as_deref())] {
            if name == "after" && after.is_none() {
                continue;
            }
            let model = load(&path, after, args)?;
            let mut progress = Progress::new(&format!("align {name}"), 2 * texts.0.len());
            looked.push(measure_alignment(name, &model, &tokenizer, (&texts.0, &texts.1), &how, &mut |n| {
                progress.advance(n)
            })?);
            progress.finish();
        }
        let table = table(&looked);
        out::raw(format_args!("{}", table.to_text(use_colour())));
        let result = json!({"pairs": texts.0.len(), "pooling": args.pooling, "models": looked.iter().map(values).collect::<Vec<_>>()});
        open.write("alignment.json", format!("{result:#}\n").as_bytes())?;
        open.write(REPORT, build(args, &looked, table).to_html().as_bytes())?;
        say!("report: {}", open.path(REPORT).display());
        Ok(Made::new(json!({"pairs": texts.0.len()}))?.counting(Counts::all(texts.0.len())))
    }
}

fn load(path: &Path, after: Option<&Path>, args: &Args) -> Result<Transformer> {
    let placement = args.placement;
    let model = match after {
        Some(dir) if is_adapter(dir) => {
            let mut model = Transformer::load_for(path, placement)?;
            model.apply_adapter(&Lora::load(dir, &model)?)?;
            model
        }
        Some(dir) => Transformer::load_for(dir, placement.of_other_models())?,
        None => Transformer::load_for(path, placement)?,
    };
    model.place(placement.device)
}

fn build(args: &Args, reports: &[AlignmentReport], table: Table) -> Report {
    let languages = (name(&args.source_language), name(&args.target_language));
    let mut by_layer = layer_curves(reports, languages, args.pooling);
    by_layer.push(Block::Table(table));
    Report {
        title: "Alignment of hidden states".into(),
        subtitle: format!("{}, {} and {}", args.model, languages.0, languages.1),
        facts: vec![],
        sections: vec![
            Section {
                heading: "The plane".into(),
                blocks: planes(reports, languages, args.pooling, args.projection),
            },
            Section { heading: "Layer by layer".into(), blocks: by_layer },
        ],
    }
}
