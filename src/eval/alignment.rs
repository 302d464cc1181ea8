//! How near translations are to each other inside the model, layer by layer.
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    data::{text_file::read_lines, tokenizer::Tokenizer},
    infer::hidden::{Pooling, sentence_vectors},
    metrics::{
        alignment::Alignment,
        projection::{Plane, Projection, project},
    },
    models::transformer::weights::Transformer,
    report::{
        html::Block,
        intervals::{Curve, curves, scatter},
        table::{Cell, Table},
    },
};

/// What is done with the sentences.
#[derive(Clone, Copy, Debug)]
pub struct AlignmentOptions {
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
pub struct AlignmentReport {
    /// What it is called.
    pub name: String,
    /// By hidden state: 0 are the embeddings.
    pub layers: Vec<Alignment>,
    /// The hidden state of the picture.
    pub layer: usize,
    /// All source sentences, then all translations.
    pub plane: Plane,
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

/// Runs the model over the sentences and their translations; `on_done` is told of each.
pub fn measure_alignment(
    name: &str,
    model: &Transformer,
    tokenizer: &Tokenizer,
    texts: (&[String], &[String]),
    how: &AlignmentOptions,
    on_done: &mut dyn FnMut(usize),
) -> Result<AlignmentReport> {
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
    Ok(AlignmentReport { name: name.into(), layers, layer, plane: project(&both, how.projection)? })
}

/// A number of each layer, as tables and curves have it.
struct LayerNumber {
    title: &'static str,
    axis: &'static str,
    decimals: usize,
    of: fn(&Alignment) -> f64,
}

const NUMBERS: [LayerNumber; 4] = [
    LayerNumber { title: "cosine", axis: "mean cosine of translations", decimals: 3, of: Alignment::cosine },
    LayerNumber { title: "linear CKA", axis: "linear CKA", decimals: 3, of: Alignment::cka },
    LayerNumber {
        title: "retrieval@1, source to target",
        axis: "share found (%)",
        decimals: 1,
        of: |a| 100.0 * a.retrieved().0,
    },
    LayerNumber {
        title: "retrieval@1, target to source",
        axis: "share found (%)",
        decimals: 1,
        of: |a| 100.0 * a.retrieved().1,
    },
];

/// Every layer's numbers.
pub fn values(looked: &AlignmentReport) -> Value {
    let of = |a: &Alignment| {
        let (forward, backward) = a.retrieved();
        json!({"cosine": a.cosine(), "cka": a.cka(), "retrieval-source-target": forward, "retrieval-target-source": backward})
    };
    json!({"name": looked.name, "layers": looked.layers.iter().map(of).collect::<Vec<_>>()})
}

/// One row per layer.
pub fn table(looked: &[AlignmentReport]) -> Table {
    let mut header = vec!["layer".to_string()];
    for number in &NUMBERS {
        header.extend(looked.iter().map(|l| format!("{}, {}", number.title, l.name)));
    }
    let mut table = Table::new(&header.iter().map(String::as_str).collect::<Vec<_>>());
    for layer in 0..looked[0].layers.len() {
        let mut row = vec![Cell::Number(layer as f64, 0)];
        for number in &NUMBERS {
            row.extend(looked.iter().map(|l| Cell::Number((number.of)(&l.layers[layer]), number.decimals)));
        }
        table.push(row);
    }
    table
}

/// A picture of each model's sentences in both languages.
pub fn planes(
    looked: &[AlignmentReport],
    languages: (&str, &str),
    pooling: Pooling,
    projection: Projection,
) -> Vec<Block> {
    let picture = |l: &AlignmentReport| {
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

/// Each number over the layers, one curve per model.
pub fn layer_curves(looked: &[AlignmentReport], languages: (&str, &str), pooling: Pooling) -> Vec<Block> {
    let pairs = looked.first().map_or(0, |l| l.plane.points.len() / 2);
    let of = |LayerNumber { title, axis, of: value, .. }: &LayerNumber| {
        let lines: Vec<Curve> = looked
            .iter()
            .map(|l| Curve {
                name: format!("{} training", l.name),
                points: l.layers.iter().enumerate().map(|(i, a)| (i as f64, value(a), (0.0, 0.0))).collect(),
            })
            .collect();
        Block::Svg {
            svg: curves(title, "layer (0: embeddings)", axis, &lines, &[]),
            caption: format!(
                "{title} of {pairs} {}–{} sentence pairs by layer, {}.",
                languages.0,
                languages.1,
                words(pooling)
            ),
        }
    };
    NUMBERS.iter().map(of).collect()
}
