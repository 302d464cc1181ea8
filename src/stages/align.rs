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
    infer::{
        engine::EngineOptions,
        hidden::{Pooling, sentence_vectors},
    },
    metrics::{
        alignment::Alignment,
        projection::{Plane, Projection, project},
    },
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
    /// How the picture is made
    #[arg(long, value_enum, default_value = "pca")]
    pub projection: Projection,
    /// Folder for alignment.json and report.html
    #[arg(long)]
    pub out: PathBuf,
    /// How the weights are held and where it computes
    #[command(flatten)]
    pub placement: Placement,
}

/// What is done with the sentences.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// How a sentence's tokens become one vector.
    pub pooling: Pooling,
    /// The hidden state of the picture; absent: the one in the middle.
    pub layer: Option<usize>,
    /// How the picture is made.
    pub projection: Projection,
    /// Tokens that run together.
    pub batch_tokens: usize,
}

/// One model: what its layers say about the pairs, and a picture of one of them.
pub struct Looked {
    /// What it is called.
    pub name: String,
    /// By hidden state: 0 are the embeddings.
    pub layers: Vec<Alignment>,
    /// The hidden state of the picture.
    pub layer: usize,
    /// All source sentences, then all translations.
    pub plane: Plane,
}

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    require(&args.source_language)?;
    require(&args.target_language)?;
    let pairs = read_pairs(&args.source, &args.target, args.limit)?;
    let texts: (Vec<String>, Vec<String>) = pairs.into_iter().map(|(_, a, b)| (a, b)).unzip();
    let path = resolve(&args.model)?;
    let mut inputs: Vec<(&str, &Path)> =
        vec![("model", &path), ("source", &args.source), ("target", &args.target)];
    inputs.extend(args.after.as_deref().map(|a| ("after", a)));
    let settings = json!({"languages": [args.source_language, args.target_language], "limit": args.limit,
        "pooling": args.pooling, "layer": args.layer, "projection": args.projection, "dtype": args.placement.to_string()});
    let manifest = Manifest::expected("align", &inputs, &settings)?;
    if manifest.is_done(&args.out)? {
        println!("align: unchanged, skipped");
        return Ok(());
    }
    manifest.begin(&args.out)?;
    let tokenizer = Tokenizer::load(&path)?;
    let how = How {
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
        looked
            .push(look(name, &model, &tokenizer, (&texts.0, &texts.1), &how, &mut |n| progress.advance(n))?);
        progress.finish();
    }
    let table = table(&looked);
    print!("{}", table.to_text(use_colour()));
    let result = json!({"pairs": texts.0.len(), "pooling": args.pooling, "models": looked.iter().map(values).collect::<Vec<_>>()});
    write_atomic(&args.out.join("alignment.json"), format!("{result:#}\n").as_bytes())?;
    let report = build(args, &looked, table);
    write_atomic(&args.out.join("report.html"), report.to_html().as_bytes())?;
    println!("report: {}", args.out.join("report.html").display());
    manifest.finish(&args.out, json!({"pairs": texts.0.len()}))
}

/// Parallel lines with their index, without those where a side is empty.
pub fn read_pairs(source: &Path, target: &Path, limit: usize) -> Result<Vec<(usize, String, String)>> {
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
    let pairs = a.into_iter().zip(b).enumerate().map(|(i, (a, b))| (i, a, b));
    let kept = pairs.filter(|(_, a, b)| !a.trim().is_empty() && !b.trim().is_empty());
    let pairs: Vec<_> = kept.take(most).collect();
    ensure!(
        pairs.len() >= 2,
        "{} and {} have {} pairs of sentences: at least 2 are needed",
        source.display(),
        target.display(),
        pairs.len()
    );
    Ok(pairs)
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

/// Runs the model over the sentences and their translations; `on_done` is told of each.
pub fn look(
    name: &str,
    model: &Llama,
    tokenizer: &Tokenizer,
    texts: (&[String], &[String]),
    how: &How,
    on_done: &mut dyn FnMut(usize),
) -> Result<Looked> {
    let states = model.config.num_hidden_layers + 1;
    let layer = how.layer.unwrap_or(states / 2);
    ensure!(layer < states, "layer is {layer}: the model has hidden states 0 to {}", states - 1);
    let mut vectors = |texts: &[String]| -> Result<Vec<Vec<Vec<f32>>>> {
        let tokens = texts.iter().map(|t| tokenizer.encode(t, true)).collect::<Result<Vec<_>>>()?;
        sentence_vectors(model, &tokens, how.pooling, how.batch_tokens, on_done)
    };
    let (source, target) = (vectors(texts.0)?, vectors(texts.1)?);
    let layers = source
        .iter()
        .zip(&target)
        .enumerate()
        .map(|(l, (a, b))| Alignment::of(a, b).with_context(|| format!("hidden state {l}")))
        .collect::<Result<_>>()?;
    let both = [source[layer].as_slice(), target[layer].as_slice()].concat();
    Ok(Looked { name: name.into(), layers, layer, plane: project(&both, how.projection)? })
}

/// Name, how to read it, value of a layer.
type Metric = (&'static str, &'static str, fn(&Alignment) -> f64);
const METRICS: [Metric; 4] = [
    ("cosine", "mean cosine of translations", |a| a.cosine()),
    ("linear CKA", "linear CKA", |a| a.cka()),
    ("retrieval@1, source to target", "share found (%)", |a| 100.0 * a.retrieved().0),
    ("retrieval@1, target to source", "share found (%)", |a| 100.0 * a.retrieved().1),
];

/// Every layer's numbers.
pub fn values(looked: &Looked) -> Value {
    let of = |a: &Alignment| {
        let (forward, backward) = a.retrieved();
        json!({"cosine": a.cosine(), "cka": a.cka(), "retrieval-source-target": forward, "retrieval-target-source": backward})
    };
    json!({"name": looked.name, "layers": looked.layers.iter().map(of).collect::<Vec<_>>()})
}

/// One row a layer.
pub fn table(looked: &[Looked]) -> Table {
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

fn build(args: &Args, looked: &[Looked], table: Table) -> Report {
    let languages = (name(&args.source_language), name(&args.target_language));
    let mut by_layer = layer_curves(looked, languages, args.pooling);
    by_layer.push(Block::Table(table));
    Report {
        title: "Alignment of hidden states".into(),
        subtitle: format!("{}, {} and {}", args.model, languages.0, languages.1),
        sections: vec![
            Section {
                heading: "The plane".into(),
                blocks: planes(looked, languages, args.pooling, args.projection),
            },
            Section { heading: "Layer by layer".into(), blocks: by_layer },
        ],
    }
}

/// A picture of each model's sentences in both languages.
pub fn planes(
    looked: &[Looked],
    languages: (&str, &str),
    pooling: Pooling,
    projection: Projection,
) -> Vec<Block> {
    let picture = |l: &Looked| {
        let pairs = l.plane.points.len() / 2;
        let of = |i: usize, name: &str| Curve {
            name: name.into(),
            points: l.plane.points[i * pairs..(i + 1) * pairs]
                .iter()
                .map(|p| (p.0, p.1, (p.1, p.1)))
                .collect(),
        };
        let axis = |k: usize| match (projection, l.plane.explained) {
            (Projection::Tsne, _) => format!("t-SNE {}", k + 1),
            (_, Some(e)) => format!("component {} ({:.0} % of the variance)", k + 1, 100.0 * e[k]),
            (_, None) => format!("component {}", k + 1),
        };
        let groups = [of(0, languages.0), of(1, languages.1)];
        let title = format!("Sentences at layer {}, {} training", l.layer, l.name);
        Block::Svg {
            svg: scatter(&title, &axis(0), &axis(1), &groups, true),
            caption: format!(
                "{pairs} parallel sentences, {}, by {} of both languages together (fitted for this picture alone). A grey line joins each \
                 sentence with its translation.",
                words(pooling),
                projection.name()
            ),
        }
    };
    looked.iter().map(picture).collect()
}

fn words(pooling: Pooling) -> &'static str {
    if pooling == Pooling::Mean { "mean over tokens" } else { "last token" }
}

/// Each number over the layers, a curve a model.
pub fn layer_curves(looked: &[Looked], languages: (&str, &str), pooling: Pooling) -> Vec<Block> {
    let pairs = looked.first().map_or(0, |l| l.plane.points.len() / 2);
    let of = |(title, unit, value): &Metric| {
        let lines: Vec<Curve> = looked
            .iter()
            .map(|l| Curve {
                name: format!("{} training", l.name),
                points: l.layers.iter().enumerate().map(|(i, a)| (i as f64, value(a), (0.0, 0.0))).collect(),
            })
            .collect();
        Block::Svg {
            svg: curves(title, "layer (0: embeddings)", unit, &lines, &[]),
            caption: format!(
                "{title} of {pairs} {}–{} sentence pairs by layer, {}.",
                languages.0,
                languages.1,
                words(pooling)
            ),
        }
    };
    METRICS.iter().map(of).collect()
}
