//! Parallel sentences seen from inside the model: a sample is a pair with what every hidden state says about it.
use anyhow::{Context, Result};
use serde_json::json;

use super::{Ask, Item};
use crate::{
    eval::{
        alignment::{AlignmentOptions, AlignmentReport, measure_alignment, read_pairs},
        sample::{HiddenPairs, Sample},
    },
    infer::{answerer::Answerer, engine::EngineOptions},
    metrics::{alignment::Alignment, projection::Plane},
    recipe::eval::EvalTask,
};

/// The pairs of the task's two files.
pub fn items(task: &EvalTask) -> Result<Vec<Item>> {
    let reference = task.reference.as_deref().context("`reference` is missing")?;
    let item = |(doc_id, source, target): (usize, String, String)| Item {
        doc: json!({"source": source, "target": target}),
        sample: Sample { doc_id, prompt: source, targets: vec![target], ..Default::default() },
        ask: Ask::Align,
        before: String::new(),
    };
    Ok(read_pairs(&task.file, reference, task.limit)?.into_iter().map(item).collect())
}

/// All pairs at once: each sentence is looked for among all translations.
pub fn run(
    answerer: &Answerer,
    task: &EvalTask,
    batch: EngineOptions,
    items: &[Item],
) -> Result<Vec<Sample>> {
    let mut samples: Vec<Sample> = items.iter().map(|i| i.sample.clone()).collect();
    let source: Vec<String> = samples.iter().map(|s| s.prompt.clone()).collect();
    let target: Vec<String> = samples.iter().map(|s| s.targets.concat()).collect();
    let how = AlignmentOptions {
        pooling: task.pooling.unwrap_or_default(),
        layer: task.layer,
        projection: task.projection.unwrap_or_default(),
        batch_tokens: batch.batch_tokens,
    };
    let found =
        measure_alignment("", &answerer.model, &answerer.tokenizer, (&source, &target), &how, &mut |_| {})?;
    let n = samples.len();
    for (i, sample) in samples.iter_mut().enumerate() {
        sample.pair = Some(HiddenPairs {
            layer: found.layer,
            points: [found.plane.points[i], found.plane.points[n + i]],
            cosine: found.layers.iter().map(|a| a.cosines[i]).collect(),
            forward: found.layers.iter().map(|a| a.forward[i]).collect(),
            backward: found.layers.iter().map(|a| a.backward[i]).collect(),
            cka: found.layers.iter().map(|a| a.cka_parts[i]).collect(),
        });
    }
    Ok(samples)
}

/// What a model's samples say together, for tables and pictures.
pub fn looked(name: &str, task: &EvalTask, samples: &[Sample]) -> Result<AlignmentReport> {
    let pairs: Vec<&HiddenPairs> = samples.iter().filter_map(|s| s.pair.as_ref()).collect();
    let damaged = || format!("task {}: its samples are not those of an alignment: delete them", task.name);
    let first = pairs.first().filter(|_| pairs.len() == samples.len()).with_context(damaged)?;
    let layers = (0..first.cosine.len()).map(|l| {
        Some(Alignment {
            cosines: pairs.iter().map(|p| p.cosine.get(l).copied()).collect::<Option<_>>()?,
            forward: pairs.iter().map(|p| p.forward.get(l).copied()).collect::<Option<_>>()?,
            backward: pairs.iter().map(|p| p.backward.get(l).copied()).collect::<Option<_>>()?,
            cka_parts: pairs.iter().map(|p| p.cka.get(l).copied()).collect::<Option<_>>()?,
        })
    });
    let points = (0..2).flat_map(|side| pairs.iter().map(move |p| p.points[side])).collect();
    Ok(AlignmentReport {
        name: name.into(),
        layers: layers.collect::<Option<Vec<_>>>().filter(|l| first.layer < l.len()).with_context(damaged)?,
        layer: first.layer,
        plane: Plane { points, explained: None },
    })
}
