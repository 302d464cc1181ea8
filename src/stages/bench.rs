//! `sdrrl bench`: how fast this program is on this machine, beside what the machine can do, as text and JSON; two results compared with intervals.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    bench::{
        Found, Row, Runs, ceilings, compare, generate, kernels, models, peak_mib, score, train, translate,
    },
    data::{files::FileContext, json::read_text},
    device::Device,
    error::Error,
    models::{
        m2m100::M2m100,
        transformer::weights::Transformer,
        weights::{WeightSource, resolve},
        xlm_roberta::XlmRoberta,
    },
    pipeline::{placement::Placement, provenance},
    report::{
        out::{note, say, say_text},
        table::use_colour,
    },
};

/// Arguments of `bench`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What is measured
    #[command(subcommand)]
    pub what: What,
}

/// What can be measured.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum What {
    /// Single ops: products, attention, norms ... beside the memory's and the best product's rate
    Kernels(Kernels),
    /// Steps of LoRA training
    Train(Train),
    /// Prefill and decoding
    Generate(Generate),
    /// Translation with an NLLB or M2M100 model
    Translate(Translate),
    /// Scoring with an XLM-RoBERTa encoder, as CometKiwi does
    Score(Score),
}

/// What every bench takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Common {
    /// How often
    #[command(flatten)]
    pub runs: Runs,
    /// Write the result to a new file, as JSON, for --compare
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Compare with the result of the same command that --json wrote earlier
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// How the weights are held and where it computes
    #[command(flatten)]
    pub placement: Placement,
}

/// Arguments of `bench kernels`.
#[derive(Clone, Debug, clap::Args)]
pub struct Kernels {
    /// Only rows whose name contains one of these
    pub filters: Vec<String>,
    /// Print the names of the rows, and measure nothing
    #[arg(long)]
    pub list: bool,
    /// The rest
    #[command(flatten)]
    pub common: Common,
}

/// Arguments of `bench train`.
#[derive(Clone, Debug, clap::Args)]
pub struct Train {
    /// A model that is there, instead of a shape
    #[arg(long, conflicts_with = "shape")]
    pub model: Option<String>,
    /// A shape with random weights: tiny, smollm2-135m, llama-1b or llama2-7b
    #[arg(long, default_value = "smollm2-135m")]
    pub shape: String,
    /// Documents of a step [default: 4; on a GPU 8]
    #[arg(long)]
    pub rows: Option<usize>,
    /// Tokens of each [default: 256; on a GPU 2048]
    #[arg(long)]
    pub length: Option<usize>,
    /// Rank of the adapters
    #[arg(long, default_value_t = 16)]
    pub lora_rank: usize,
    /// The rest
    #[command(flatten)]
    pub common: Common,
}

/// Arguments of `bench generate`.
#[derive(Clone, Debug, clap::Args)]
pub struct Generate {
    /// A model that is there, instead of a shape
    #[arg(long, conflicts_with = "shape")]
    pub model: Option<String>,
    /// A shape with random weights: tiny, smollm2-135m, llama-1b or llama2-7b
    #[arg(long, default_value = "smollm2-135m")]
    pub shape: String,
    /// Prompts at once, one measurement for each number
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    pub batches: Vec<usize>,
    /// Tokens of a prompt
    #[arg(long, default_value_t = 64)]
    pub prompt: usize,
    /// New tokens behind each
    #[arg(long, default_value_t = 64)]
    pub new: usize,
    /// The rest
    #[command(flatten)]
    pub common: Common,
}

/// Arguments of `bench translate`.
#[derive(Clone, Debug, clap::Args)]
pub struct Translate {
    /// A directory with an NLLB or M2M100 model, instead of a shape
    #[arg(long, conflicts_with = "shape")]
    pub model: Option<PathBuf>,
    /// A shape with random weights: nllb-600m or tiny
    #[arg(long, default_value = "nllb-600m")]
    pub shape: String,
    /// Sentences of a run
    #[arg(long, default_value_t = 16)]
    pub sentences: usize,
    /// New tokens of a translation, at most
    #[arg(long, default_value_t = 31)]
    pub new: usize,
    /// Hypotheses a sentence, one measurement for each number (1 is greedy)
    #[arg(long, value_delimiter = ',', default_value = "1,4")]
    pub beams: Vec<usize>,
    /// The rest
    #[command(flatten)]
    pub common: Common,
}

/// Arguments of `bench score`.
#[derive(Clone, Debug, clap::Args)]
pub struct Score {
    /// A directory with an XLM-RoBERTa encoder, instead of a shape
    #[arg(long, conflicts_with = "shape")]
    pub model: Option<PathBuf>,
    /// A shape with random weights: xlm-r-large or tiny
    #[arg(long, default_value = "xlm-r-large")]
    pub shape: String,
    /// Pairs of a run
    #[arg(long, default_value_t = 32)]
    pub pairs: usize,
    /// Tokens of a batch
    #[arg(long, default_value_t = 2048)]
    pub batch_tokens: usize,
    /// The rest
    #[command(flatten)]
    pub common: Common,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Kernels(a) if a.list => {
            let device = a.common.placement.device.open()?;
            kernels::names(&device).iter().for_each(|name| say!("{name}"));
            Ok(())
        }
        What::Kernels(a) => with(&a.common, "kernels", json!({"filters": a.filters}), |b| {
            let found = kernels::measure(&b.device, &a.filters, a.common.runs)?;
            b.ceilings = found.ceilings;
            Ok(found.rows)
        }),
        What::Train(a) => bench_train(a),
        What::Generate(a) => bench_generate(a),
        What::Translate(a) => bench_translate(a),
        What::Score(a) => bench_score(a),
    }
}

/// What a bench has at hand.
struct Bench {
    device: Device,
    ceilings: Vec<Row>,
    formulas: Vec<String>,
}

/// Checks the files, measures, prints, writes, compares.
fn with(
    common: &Common,
    name: &str,
    mut settings: Value,
    measure: impl FnOnce(&mut Bench) -> Result<Vec<Row>>,
) -> Result<()> {
    let old = common.compare.as_deref().map(read).transpose()?;
    if let Some(path) = &common.json {
        let message = || format!("{} exists: choose another --json, or remove it", path.display());
        ensure!(!path.exists(), Error::exists(path, message()));
    }
    let placement = common.placement;
    let mut bench = Bench { device: placement.device.open()?, ceilings: vec![], formulas: vec![] };
    if bench.device.gpu().is_some_and(|g| g.is_emulated()) {
        note!("bench: times on the emulated device say nothing about a GPU");
    }
    settings["placement"] = placement.to_string().into();
    if let Some(old) = &old {
        compare::check(name, &settings, old)?;
    }
    let rows = measure(&mut bench)?;
    let peak_memory_mib = peak_mib(&bench.device);
    let Bench { ceilings, formulas, .. } = bench;
    let facts = provenance::facts(placement);
    let found = Found { bench: name.into(), settings, facts, formulas, ceilings, rows, peak_memory_mib };
    for (fact, value) in &found.facts {
        say!("{fact:12} {value}");
    }
    say!("{:12} {}", "settings", found.settings);
    found.formulas.iter().for_each(|f| say!("{f}"));
    say_text!("{}", found.table().to_text(use_colour()));
    if let Some(mib) = found.peak_memory_mib {
        say!("peak memory {mib:.0} MiB");
    }
    if let Some(path) = &common.json {
        let text = serde_json::to_string_pretty(&found)? + "\n";
        crate::data::files::write_atomic(path, text.as_bytes())?;
        say!("written to {}", path.display());
    }
    if let Some(old) = &old {
        let (table, alone) = compare::table(&found, old)?;
        say!();
        say_text!("{}", table.to_text(use_colour()));
        alone.iter().for_each(|line| say!("{line}"));
    }
    Ok(())
}

fn read(path: &Path) -> Result<Found> {
    let text = read_text(path).reading(path)?;
    let wrong = || format!("{}: no result that `sdrrl bench ... --json` wrote", path.display());
    serde_json::from_str(&text).with_context(wrong)
}

/// At least one of each.
fn positive(counts: &[(&str, usize)]) -> Result<()> {
    for (name, count) in counts {
        ensure!(*count > 0, Error::setting(*name, format!("--{name} is 0: 1 or more was expected")));
    }
    Ok(())
}

/// A model that is there, or a shape; and whether its weights are random.
fn decoder(
    model: Option<&str>,
    shape: &str,
    placement: Placement,
    device: &Device,
) -> Result<(Transformer, bool)> {
    match model {
        Some(model) => {
            let path = resolve(model)?;
            WeightSource::open(&path)?.0.spec()?.check_reckoned()?;
            Ok((Transformer::load_for(&path, placement)?.place(placement.device)?, false))
        }
        None => {
            placement.stored_if(false, "a shape with random weights")?;
            Ok((models::random_decoder(models::config(shape)?, placement.dtype, device)?, true))
        }
    }
}

fn bench_train(a: &Train) -> Result<()> {
    let Common { runs, placement, .. } = a.common;
    // The device is opened where it is used; its kind decides the defaults.
    let large = matches!(placement.device, crate::device::DeviceChoice::Cuda(_));
    let (rows, length) = if large { (8, 2048) } else { (4, 256) };
    let (rows, length) = (a.rows.unwrap_or(rows), a.length.unwrap_or(length));
    positive(&[("rows", rows), ("length", length.saturating_sub(1)), ("lora-rank", a.lora_rank)])?;
    let settings = json!({"model": a.model.as_ref().unwrap_or(&a.shape), "rows": rows, "length": length, "lora-rank": a.lora_rank});
    with(&a.common, "train", settings, |b| {
        let (mut model, random) = decoder(a.model.as_deref(), &a.shape, placement, &b.device)?;
        let case = train::Case { rows, length, rank: a.lora_rank, random };
        b.formulas.push(train::model_flop(&model.config, case).1);
        let ceiling = ceilings::product(&b.device, placement.dtype, runs)?;
        let found = train::measure(&mut model, case, runs, &ceiling)?;
        b.ceilings.push(ceiling);
        Ok(found)
    })
}

fn bench_generate(a: &Generate) -> Result<()> {
    let Common { runs, placement, .. } = a.common;
    positive(&[("prompt", a.prompt), ("new", a.new.saturating_sub(1))])?;
    a.batches.iter().try_for_each(|&rows| positive(&[("batches", rows)]))?;
    let settings = json!({"model": a.model.as_ref().unwrap_or(&a.shape), "batches": a.batches, "prompt": a.prompt, "new": a.new});
    with(&a.common, "generate", settings, |b| {
        let (model, _) = decoder(a.model.as_deref(), &a.shape, placement, &b.device)?;
        let ceiling = ceilings::memory(&b.device, runs)?;
        let mut found = vec![];
        for &rows in &a.batches {
            let case = generate::Case { rows, prompt: a.prompt, new: a.new };
            found.extend(generate::measure(&model, placement.dtype, case, runs, &ceiling)?);
        }
        b.formulas.push("bytes of a decode step = the weights of all products once + each row's keys and values at its mean length".into());
        b.ceilings.push(ceiling);
        Ok(found)
    })
}

fn bench_translate(a: &Translate) -> Result<()> {
    let Common { runs, placement, .. } = a.common;
    placement.stored_if(false, "a translator")?;
    positive(&[("sentences", a.sentences), ("new", a.new)])?;
    a.beams.iter().try_for_each(|&beams| positive(&[("beams", beams)]))?;
    let of = a.model.as_ref().map_or(a.shape.clone(), |m| m.to_string_lossy().into_owned());
    let settings = json!({"model": of, "sentences": a.sentences, "new": a.new, "beams": a.beams});
    with(&a.common, "translate", settings, |b| {
        let model = match &a.model {
            Some(dir) => M2m100::load(dir, placement.dtype)?,
            None => models::random_translator(&a.shape, placement.dtype)?,
        };
        let model = model.to_device(&b.device)?;
        let mut found = vec![];
        for &beams in &a.beams {
            let case = translate::Case { sentences: a.sentences, new: a.new, beams };
            found.extend(translate::measure(&model, case, runs)?);
        }
        Ok(found)
    })
}

fn bench_score(a: &Score) -> Result<()> {
    let Common { runs, placement, .. } = a.common;
    placement.stored_if(false, "an encoder")?;
    positive(&[("pairs", a.pairs), ("batch-tokens", a.batch_tokens)])?;
    let of = a.model.as_ref().map_or(a.shape.clone(), |m| m.to_string_lossy().into_owned());
    let settings = json!({"model": of, "pairs": a.pairs, "batch-tokens": a.batch_tokens});
    with(&a.common, "score", settings, |b| {
        let model = match &a.model {
            Some(dir) => XlmRoberta::load(dir, placement.dtype)?,
            None => models::random_encoder(&a.shape, placement.dtype)?,
        };
        let model = model.to_device(&b.device)?;
        let ceiling = ceilings::product(&b.device, placement.dtype, runs)?;
        b.formulas.push("model FLOP = 2 x parameters of the layers' products x tokens + 4 x tokens^2 x C a layer for attention".into());
        let found = score::measure(&model, a.pairs, a.batch_tokens, runs, &ceiling)?;
        b.ceilings.push(ceiling);
        Ok(found)
    })
}
