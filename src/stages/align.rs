//! `sdrrl align`: how near translations are to each other inside the model, layer by layer, before training against after.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::placement::Placement;
use crate::{
    data::{
        language_id::{name, require},
        manifest::{Manifest, write_atomic},
        text_file::read_lines,
        tokenizer::Tokenizer,
    },
    infer::hidden::{Pooling, sentence_vectors},
    metrics::alignment::{Alignment, mean, principal_plane},
    models::{llama::Llama, lora::Lora, weights::resolve},
    report::{
        html::{Block, Report, Section},
        intervals::{Curve, curves, scatter},
        progress::Progress,
        table::{Cell, Table, use_colour},
    },
};

/// Arguments of `align`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The model before training: a Hugging Face directory, a .gguf file, or a name in the local Hugging Face cache
    #[arg(long)]
    pub model: String,
    /// After training: an adapter directory (PEFT), or a model. Without it only --model is looked at
    #[arg(long)]
    pub after: Option<PathBuf>,
    /// Sentences of the source language, one a line
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
    /// Sentences at most, from the beginning (0: all)
    #[arg(long, default_value_t = 500)]
    pub limit: usize,
    /// How a sentence's tokens become one vector
    #[arg(long, value_enum, default_value = "mean")]
    pub pooling: Pooling,
    /// The layer of the picture; absent: the one in the middle
    #[arg(long)]
    pub layer: Option<usize>,
    /// Folder for alignment.json and report.html
    #[arg(long)]
    pub out: PathBuf,
    /// How the weights are held and where it computes
    #[command(flatten)]
    pub placement: Placement,
}

/// One model: each layer's vectors of both languages, and what they say.
struct Looked {
    name: &'static str,
    source: Vec<Vec<Vec<f32>>>,
    target: Vec<Vec<Vec<f32>>>,
    layers: Vec<Alignment>,
}

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    require(&args.source_language)?;
    require(&args.target_language)?;
    let (source, target) = read_pairs(&args.source, &args.target, args.limit)?;
    let path = resolve(&args.model)?;
    let mut inputs: Vec<(&str, &Path)> =
        vec![("model", &path), ("source", &args.source), ("target", &args.target)];
    inputs.extend(args.after.as_deref().map(|a| ("after", a)));
    let settings = json!({"languages": [args.source_language, args.target_language], "limit": args.limit,
        "pooling": args.pooling, "layer": args.layer, "dtype": args.placement.to_string()});
    let manifest = Manifest::expected("align", &inputs, &settings)?;
    if manifest.is_done(&args.out)? {
        println!("align: unchanged, skipped");
        return Ok(());
    }
    manifest.begin(&args.out)?;
    let tokenizer = Tokenizer::load(&path)?;
    let mut looked = vec![look("before", &load(&path, None, args)?, &tokenizer, &source, &target, args)?];
    if let Some(after) = &args.after {
        let model = load(&path, Some(after), args)?;
        looked.push(look("after", &model, &tokenizer, &source, &target, args)?);
    }
    let layers = looked[0].layers.len();
    let layer = args.layer.unwrap_or(layers / 2);
    ensure!(layer < layers, "--layer is {layer}: the model has hidden states 0 to {}", layers - 1);
    let table = table(&looked);
    print!("{}", table.to_text(use_colour()));
    let result = json!({"pairs": source.len(), "pooling": args.pooling, "models": looked.iter().map(values).collect::<Vec<_>>()});
    write_atomic(&args.out.join("alignment.json"), format!("{result:#}\n").as_bytes())?;
    let report = build(args, &looked, layer, table, source.len());
    write_atomic(&args.out.join("report.html"), report.to_html().as_bytes())?;
    println!("report: {}", args.out.join("report.html").display());
    manifest.finish(&args.out, json!({"pairs": source.len()}))
}

/// Parallel lines, without those where a side is empty.
pub fn read_pairs(source: &Path, target: &Path, limit: usize) -> Result<(Vec<String>, Vec<String>)> {
    let (a, b) = (read_lines(source)?, read_lines(target)?);
    ensure!(
        a.len() == b.len(),
        "{} has {} lines, {} has {}: they must be parallel",
        source.display(),
        a.len(),
        target.display(),
        b.len()
    );
    let most = if limit == 0 { usize::MAX } else { limit };
    let kept = a.into_iter().zip(b).filter(|(x, y)| !x.trim().is_empty() && !y.trim().is_empty());
    let (a, b): (Vec<String>, Vec<String>) = kept.take(most).unzip();
    ensure!(
        a.len() >= 2,
        "{} and {} have {} pairs of sentences: at least 2 are needed",
        source.display(),
        target.display(),
        a.len()
    );
    Ok((a, b))
}

fn load(path: &Path, after: Option<&Path>, args: &Args) -> Result<Llama> {
    let dtype = args.placement.dtype;
    let model = match after {
        Some(dir) if dir.join("adapter_config.json").exists() => {
            let mut model = Llama::load(path, dtype)?;
            model.apply_adapter(&Lora::load(dir, &model)?)?;
            model
        }
        Some(dir) => Llama::load(dir, dtype)?,
        None => Llama::load(path, dtype)?,
    };
    args.placement.place(model)
}

fn look(
    name: &'static str,
    model: &Llama,
    tokenizer: &Tokenizer,
    source: &[String],
    target: &[String],
    args: &Args,
) -> Result<Looked> {
    let mut progress = Progress::new(&format!("align {name}"), 2 * source.len());
    let mut vectors = |texts: &[String]| -> Result<Vec<Vec<Vec<f32>>>> {
        let tokens = texts.iter().map(|t| tokenizer.encode(t, true)).collect::<Result<Vec<_>>>()?;
        sentence_vectors(model, &tokens, args.pooling, 2048, &mut |n| progress.advance(n))
    };
    let (source, target) = (vectors(source)?, vectors(target)?);
    progress.finish();
    let layers: Vec<Alignment> = source
        .iter()
        .zip(&target)
        .enumerate()
        .map(|(l, (a, b))| Alignment::of(a, b).with_context(|| format!("hidden state {l}")))
        .collect::<Result<_>>()?;
    Ok(Looked { name, source, target, layers })
}

/// Name, how to read it, value of a layer.
type Metric = (&'static str, &'static str, fn(&Alignment) -> f64);
const METRICS: [Metric; 4] = [
    ("cosine", "mean cosine of translations", |a| mean(a.cosines.iter().copied())),
    ("linear CKA", "linear CKA", |a| a.cka),
    ("retrieval@1, source to target", "share found (%)", |a| share(&a.forward)),
    ("retrieval@1, target to source", "share found (%)", |a| share(&a.backward)),
];

fn share(hits: &[bool]) -> f64 {
    100.0 * mean(hits.iter().map(|x| f64::from(u8::from(*x))))
}

fn values(looked: &Looked) -> Value {
    let layers: Vec<Value> = looked
        .layers
        .iter()
        .map(|a| json!({"cosine": mean(a.cosines.iter().copied()), "cka": a.cka,
            "retrieval-source-target": share(&a.forward) / 100.0, "retrieval-target-source": share(&a.backward) / 100.0}))
        .collect();
    json!({"name": looked.name, "layers": layers})
}

fn table(looked: &[Looked]) -> Table {
    let mut header = vec!["layer".to_string()];
    for (metric, ..) in METRICS {
        header.extend(looked.iter().map(|l| format!("{metric}, {}", l.name)));
    }
    let mut table = Table::new(&header.iter().map(String::as_str).collect::<Vec<_>>());
    for layer in 0..looked[0].layers.len() {
        let mut row = vec![Cell::Number(layer as f64, 0)];
        for (i, (_, _, value)) in METRICS.iter().enumerate() {
            let decimals = if i < 2 { 3 } else { 1 };
            row.extend(looked.iter().map(|l| Cell::Number(value(&l.layers[layer]), decimals)));
        }
        table.push(row);
    }
    table
}

fn build(args: &Args, looked: &[Looked], layer: usize, table: Table, pairs: usize) -> Report {
    let (source, target) = (name(&args.source_language), name(&args.target_language));
    let pooling = if args.pooling == Pooling::Mean { "mean over tokens" } else { "last token" };
    let mut blocks = vec![];
    for l in looked {
        let groups = [(source, &l.source[layer]), (target, &l.target[layer])];
        let all: Vec<Vec<f32>> = groups.iter().flat_map(|(_, v)| v.iter().cloned()).collect();
        let (points, explained) = principal_plane(&all);
        let of = |i: usize, name: &str| Curve {
            name: name.into(),
            points: points[i * pairs..(i + 1) * pairs].iter().map(|p| (p.0, p.1, (p.1, p.1))).collect(),
        };
        let axis = |k: usize| format!("component {} ({:.0} % of the variance)", k + 1, 100.0 * explained[k]);
        blocks.push(Block::Svg {
            svg: scatter(
                &format!("Sentences at layer {layer}, {} training", l.name),
                &axis(0),
                &axis(1),
                &[of(0, source), of(1, target)],
                true,
            ),
            caption: format!(
                "{pairs} parallel sentences, {pooling}, projected on the two principal components of both languages together (fitted for this \
                 picture alone). A grey line joins each sentence with its translation."
            ),
        });
    }
    let mut by_layer = vec![];
    for (title, unit, value) in METRICS {
        let lines: Vec<Curve> = looked
            .iter()
            .map(|l| Curve {
                name: format!("{} training", l.name),
                points: l.layers.iter().enumerate().map(|(i, a)| (i as f64, value(a), (0.0, 0.0))).collect(),
            })
            .collect();
        by_layer.push(Block::Svg {
            svg: curves(title, "layer (0: embeddings)", unit, &lines, &[]),
            caption: format!("{title} of {pairs} {source}–{target} sentence pairs by layer, {pooling}."),
        });
    }
    by_layer.push(Block::Table(table));
    Report {
        title: "Alignment of hidden states".into(),
        subtitle: format!("{}, {source} and {target}", args.model),
        sections: vec![
            Section { heading: "The plane".into(), blocks },
            Section { heading: "Layer by layer".into(), blocks: by_layer },
        ],
    }
}
