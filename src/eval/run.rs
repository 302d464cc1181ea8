//! Perplexity, translation, multiple choice, question answering, summaries and alignment of a model.
//!
//! `OUT/TASK/samples.jsonl` holds each prompt with its reply: what the metrics are computed from, now or later; `OUT/TASK/scores.jsonl` keeps what
//! each row contributes to each metric. `OUT/results.json` and
//! `OUT/samples_TASK_sdrrl.jsonl` are for others, in lm-eval's layout. A task that is finished is not run again.
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    alignment, measure,
    samples::{self, read_samples},
    tasks,
};
use crate::pipeline::manifest::Manifest;
use crate::{
    data::{
        files::{remove_if_there, write_atomic},
        language_id,
        row_shard::ShardWriter,
    },
    infer::answerer::Answerer,
    models::weights::resolve,
    pipeline::{interrupt::interrupted, placement::Placement},
    recipe::{
        eval::{EvalSettings, TaskKind},
        source,
    },
    report::table::{Cell, Table},
};

/// A model to evaluate, and where to.
pub struct Job<'a> {
    /// Path or name.
    pub model: &'a str,
    /// Merged on load.
    pub adapter: Option<&'a Path>,
    /// Folder for results and samples.
    pub out: &'a Path,
    /// Chat template.
    pub template: &'a str,
    /// System prompt.
    pub system: Option<&'a str>,
    /// Weights in memory, and where it computes.
    pub placement: Placement,
    /// What it is called on the screen.
    pub label: &'a str,
}

/// The tasks of a file that has them at its top or under `eval`.
pub fn read_tasks(path: &Path) -> Result<EvalSettings> {
    #[derive(Deserialize)]
    struct Recipe {
        eval: toml::Value,
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("read tasks {}", path.display()))?;
    match toml::from_str::<Recipe>(&text) {
        Ok(recipe) => source::parse(&toml::to_string(&recipe.eval)?, &path.display().to_string(), &[]),
        Err(_) => source::parse(&text, &path.display().to_string(), &[]),
    }
}

/// Evaluates every task that is not finished, then writes results.json.
pub fn evaluate(job: &Job, settings: &EvalSettings) -> Result<()> {
    let loaded = check(settings)?;
    let model_path = resolve(job.model)?;
    let mut answerer = None;
    let (mut done, mut skipped) = (0, 0);
    for (task, items) in settings.tasks.iter().zip(&loaded) {
        ensure!(!interrupted(), "stopped before task {}: the same command goes on from there", task.name);
        let mut inputs: Vec<(&str, &Path)> = vec![("model", &model_path), ("file", &task.file)];
        inputs.extend(job.adapter.map(|a| ("adapter", a)));
        inputs.extend(task.reference.as_deref().map(|r| ("reference", r)));
        inputs.extend(task.few_shot_file.as_deref().map(|r| ("few-shot-file", r)));
        let mut identity =
            json!({"template": job.template, "system": job.system, "dtype": job.placement.to_string()});
        // How the samples are measured changes no sample.
        identity["task"] = serde_json::to_value(task.sampled())?;
        let manifest = Manifest::expected("eval", &inputs, &identity)?;
        let dir = job.out.join(&task.name);
        if manifest.is_done(&dir)? {
            skipped += 1;
            continue;
        }
        if answerer.is_none() {
            answerer = Some(Answerer::load(job.model, job.adapter, job.placement, job.template)?);
        }
        let Some(answerer) = &answerer else { continue };
        // Of samples that are about to be others.
        remove_if_there(&dir.join("scores.jsonl"))?;
        manifest.begin(&dir)?;
        let label = format!("{} {}", job.label, task.name);
        let writer = ShardWriter::open_or_resume(&dir.join("samples.jsonl"), manifest.job())?;
        tasks::run_into(answerer, task, job.system, settings.batch(), items, writer, &label)
            .with_context(|| format!("task {}", task.name))?;
        let samples = read_samples(job.out, task)?;
        let truncated = samples.iter().filter(|s| s.truncated).count();
        if truncated > 0 {
            println!(
                "{label}: {truncated} of {} articles were cut to fit the model's context",
                samples.len()
            );
        }
        manifest.finish(&dir, json!({"samples": samples.len(), "truncated": truncated}))?;
        done += 1;
    }
    if done == 0 && skipped > 0 && job.out.join("results.json").exists() {
        println!("{}: unchanged, skipped", job.label);
    } else {
        println!("{}: {done} tasks evaluated, {skipped} unchanged", job.label);
    }
    // Metrics may have models of their own, which need the memory.
    drop(answerer);
    write_results(job, settings, &loaded)
}

/// The rows of every task; whatever is wrong with the tasks or their files is an error here, before anything is computed.
pub fn check(settings: &EvalSettings) -> Result<Vec<Vec<tasks::Item>>> {
    ensure!(!settings.tasks.is_empty(), "eval.tasks is empty: add [[eval.tasks]]");
    let mut loaded = vec![];
    for (i, task) in settings.tasks.iter().enumerate() {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        ensure!(
            !task.name.is_empty() && task.name.chars().all(plain) && !task.name.starts_with('.'),
            "eval.tasks: the name `{}` must be letters, digits, - and _",
            task.name
        );
        ensure!(
            settings.tasks[..i].iter().all(|t| t.name != task.name),
            "eval.tasks: the name {} occurs twice",
            task.name
        );
        language_id::require(&task.language).with_context(|| format!("task {}", task.name))?;
        let aligns = task.kind == TaskKind::Alignment;
        ensure!(
            (aligns || task.kind == TaskKind::Translation) == task.reference.is_some(),
            "task {}: `reference` belongs to kinds translation and alignment, which need it",
            task.name
        );
        ensure!(
            aligns || (task.pooling.is_none() && task.layer.is_none() && task.projection.is_none()),
            "task {}: `pooling`, `layer` and `projection` belong to kind alignment",
            task.name
        );
        language_id::require(&task.source_language).with_context(|| format!("task {}", task.name))?;
        let replies = task.kind.generates();
        ensure!(
            !replies || task.prompt().contains("{text}"),
            "task {}: `prompt` needs {{text}}, where the question stands",
            task.name
        );
        for warning in measure::check(task).with_context(|| format!("task {}", task.name))? {
            eprintln!("warning: {warning}");
        }
        loaded.push(tasks::load(task).with_context(|| format!("task {}", task.name))?);
    }
    Ok(loaded)
}

/// results.json and the sample files in lm-eval's layout, without anything that differs between two equal runs.
fn write_results(job: &Job, settings: &EvalSettings, items: &[Vec<tasks::Item>]) -> Result<()> {
    let (mut results, mut better, mut counts, mut configs) = (Map::new(), Map::new(), Map::new(), Map::new());
    let (mut n_shot, mut alignment) = (Map::new(), Map::new());
    for (task, items) in settings.tasks.iter().zip(items) {
        let (samples, measures) = measure::of_folder(job.out, task, Some(items), job.placement)?;
        let mut own = Map::new();
        own.insert("alias".into(), json!(task.name));
        let (mut own_better, mut signatures) = (Map::new(), Map::new());
        samples::write(job.out, task, items, &samples, &measures)?;
        for m in measures {
            let key = m.about.key;
            own.insert(format!("{key},none"), json!(m.whole()));
            own.insert(format!("{key}_stderr,none"), m.stderr().map_or(json!("N/A"), |x| json!(x)));
            own_better.insert(key.into(), json!(m.about.higher_is_better));
            signatures.insert(key.into(), json!(m.signature));
        }
        if let Some((scores, signature)) = measure::official(task, &samples)? {
            own.extend(scores.into_iter().map(|(key, value)| (format!("{key},none"), value)));
            signatures.insert("mkqa".into(), json!(signature));
        }
        if task.kind == TaskKind::Alignment {
            let looked = tasks::alignment::looked(&task.name, task, &samples)?;
            alignment.insert(task.name.clone(), alignment::values(&looked)["layers"].clone());
        }
        results.insert(task.name.clone(), Value::Object(own));
        better.insert(task.name.clone(), Value::Object(own_better));
        counts.insert(task.name.clone(), json!({"original": samples.len(), "effective": samples.len()}));
        let mut config = serde_json::to_value(task)?;
        config["prompt"] = json!(task.prompt());
        config["signature"] = json!(signatures);
        config["truncated"] = json!(samples.iter().filter(|s| s.truncated).count());
        n_shot.insert(task.name.clone(), json!(task.few_shot));
        configs.insert(task.name.clone(), config);
    }
    let name = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned());
    let mut value = json!({
        "results": results,
        "configs": configs,
        "higher_is_better": better,
        "n-shot": n_shot,
        "n-samples": counts,
        "config": {"model": "sdrrl", "model_args": {"dtype": job.placement.to_string(), "adapter": job.adapter.and_then(name)}, "bootstrap_iters": settings.bootstrap_samples},
        "model_name": name(Path::new(job.model)),
        "chat_template": job.template,
        "system_instruction": job.system,
        "version": env!("CARGO_PKG_VERSION"),
    });
    if !alignment.is_empty() {
        value["alignment"] = Value::Object(alignment);
    }
    write_atomic(&job.out.join("results.json"), format!("{value:#}\n").as_bytes())
}

/// One row per metric of each task. Scores that are not kept yet are computed, by models as `placement` says.
///
/// # Errors
/// A task that was not evaluated.
pub fn results_table(out: &Path, settings: &EvalSettings, placement: Placement) -> Result<Table> {
    let mut table = Table::new(&["task", "language", "metric", "value", "samples", "signature"]);
    for task in &settings.tasks {
        let (samples, measures) = measure::of_folder(out, task, None, placement)?;
        for m in measures {
            table.push(vec![
                Cell::Text(task.name.clone()),
                Cell::Text(task.language.clone()),
                Cell::Text(m.about.title()),
                Cell::Number(m.whole(), m.about.decimals),
                Cell::Number(samples.len() as f64, 0),
                Cell::Text(m.signature.clone()),
            ]);
        }
    }
    Ok(table)
}
