//! Perplexity, translation, multiple choice, question answering, summaries and alignment of a model.
//!
//! `OUT/TASK/samples.jsonl` holds each prompt with its reply: what the metrics are computed from, now or later; `OUT/TASK/scores.jsonl` keeps what
//! each row contributes to each metric. `OUT/results.json` and
//! `OUT/samples_TASK_sdrrl.jsonl` are for others, in lm-eval's layout. A task that is finished is not run again.
use std::path::{Path, PathBuf};

use crate::data::files::FileContext;
use crate::error::{Error, Kind};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    alignment, measure,
    sample::{Sample, read_samples},
    samples,
    tasks::{self, Piece},
};
use crate::pipeline::{
    devices::{Computing, Work, on_devices},
    identity::{Identity, Inputs},
    manifest::Counts,
    plan::planning,
    results::ResultsFolder,
    stage::{self, Made, Open, Ran, Stage},
    work_dir::{RESULTS, SAMPLES, SCORES},
};
use crate::{
    data::{languages, row_shard::ShardWriter},
    infer::answerer::Answerer,
    metrics::{forms, projection::Projection},
    models::weights::resolve,
    pipeline::{interrupt::interrupted, placement::Placement},
    recipe::{
        eval::{ChoiceProtocol, EvalSettings, EvalTask, TaskKind},
        source, task_languages,
    },
    report::{
        out::{note, say},
        table::{Cell, Table},
    },
};

/// The command, in the manifest of its folder.
const EVALUATION: &str = "evaluation";
/// What it writes there beside the folders of its tasks.
const FILES: &[&str] = &[RESULTS, samples::FILES];

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
    let text = crate::data::json::read_text(path).at(path, || format!("read tasks {}", path.display()))?;
    let origin = path.display().to_string();
    let mut settings: EvalSettings = match toml::from_str::<Recipe>(&text) {
        Ok(recipe) => source::parse(&toml::to_string(&recipe.eval)?, &origin, &[])?,
        Err(_) => source::parse(&text, &origin, &[])?,
    };
    task_languages::expand(&mut settings.tasks).with_context(|| origin)?;
    Ok(settings)
}

/// Evaluates every task that is not finished, then writes results.json.
pub fn evaluate(job: &Job, settings: &EvalSettings) -> Result<()> {
    evaluate_loaded(job, settings, None)
}

/// The same with the job's model, where the caller has loaded it.
pub fn evaluate_loaded(job: &Job, settings: &EvalSettings, given: Option<&Answerer>) -> Result<()> {
    let loaded = check(settings)?;
    ResultsFolder::check(job.out, EVALUATION, FILES)?;
    for task in &settings.tasks {
        stage::check_place::<Evaluation>(&job.out.join(&task.name))?;
    }
    let folder = match planning() {
        true => None,
        false => Some(ResultsFolder::open(job.out, EVALUATION, job.label, FILES)?),
    };
    let run = |answerer: &Answerer, piece: Piece| {
        let Piece { task, rows } = piece;
        let items = &loaded[task][rows];
        tasks::run(answerer, &settings.tasks[task], job.system, settings.batch(), items)
    };
    let work = Work {
        load: &|device| {
            let placement = Placement { device, ..job.placement };
            Answerer::load(job.model, job.adapter, placement, job.template)
        },
        compute: &|answerer: &mut Answerer, piece| run(answerer, piece),
        end: &|_| Ok(()),
    };
    // Metrics may have models of their own, which need the memory: this one is gone by then.
    let [done, skipped] = match given {
        Some(answerer) => {
            let mut run = |piece| run(answerer, piece);
            evaluate_tasks(job, settings, &loaded, Computing::Here(&mut run))?
        }
        None => on_devices(job.placement.device, &work, |by| evaluate_tasks(job, settings, &loaded, by)).0?,
    };
    let Some(folder) = folder else { return Ok(()) };
    if done == 0 && skipped > 0 && job.out.join(RESULTS).exists() {
        say!("{}: unchanged, skipped", job.label);
    } else {
        say!("{}: {done} tasks evaluated, {skipped} unchanged", job.label);
    }
    write_results(job, settings, &loaded, &folder)?;
    folder.finish()
}

/// How many tasks were evaluated, and how many were found done.
fn evaluate_tasks(
    job: &Job,
    settings: &EvalSettings,
    items: &[Vec<tasks::Item>],
    mut computing: Computing<Piece, Vec<Sample>>,
) -> Result<[usize; 2]> {
    let (mut done, mut skipped) = (0, 0);
    for (number, (task, items)) in settings.tasks.iter().zip(items).enumerate() {
        let stopped = || format!("stopped before task {}: run the same command again to resume", task.name);
        ensure!(!interrupted(), Error::interrupted(stopped()));
        let dir = job.out.join(&task.name);
        let computing = &mut computing;
        match stage::run(&mut Evaluation { job, number, task, items, dir, settings, computing })? {
            Ran::Unchanged => skipped += 1,
            _ => done += 1,
        }
    }
    Ok([done, skipped])
}

/// One task of a model.
struct Evaluation<'a, 'c> {
    job: &'a Job<'a>,
    /// Among the tasks.
    number: usize,
    task: &'a EvalTask,
    items: &'a [tasks::Item],
    dir: PathBuf,
    settings: &'a EvalSettings,
    /// By models that are loaded once for all tasks, and only if one is not finished.
    computing: &'a mut Computing<'c, Piece, Vec<Sample>>,
}

impl Stage for Evaluation<'_, '_> {
    const NAME: &'static str = "eval";
    const FILES: &'static [&'static str] = &["samples.*", SCORES];

    fn label(&self) -> String {
        format!("{} {}", self.job.label, self.task.name)
    }

    fn out(&self) -> &Path {
        &self.dir
    }

    fn quiet_if_unchanged(&self) -> bool {
        true
    }

    fn identity(&self) -> Result<Identity> {
        // How the samples are measured changes no sample.
        let identity =
            json!({"template": self.job.template, "system": self.job.system, "task": self.task.sampled()});
        Identity::of(&identity)
    }

    fn placement(&self) -> Option<Placement> {
        Some(self.job.placement)
    }

    fn inputs(&self) -> Result<Inputs> {
        let (job, task) = (self.job, self.task);
        let inputs = Inputs::new().model("model", &resolve(job.model)?)?.template(job.template);
        let inputs = inputs
            .file("file", &task.file)
            .maybe("reference", task.reference.as_deref())
            .maybe("few-shot-file", task.few_shot_file.as_deref())
            .maybe("few-shot-reference", task.few_shot_reference.as_deref());
        match job.adapter {
            Some(adapter) => inputs.model("adapter", adapter),
            None => Ok(inputs),
        }
    }

    fn run(&mut self, open: &mut Open) -> Result<Made> {
        let (job, task, label) = (self.job, self.task, self.label());
        let writer = ShardWriter::open_or_resume(&open.path(SAMPLES), open.job())?;
        let (task_of, batch) = ((self.number, task), self.settings.batch());
        tasks::run_into(self.computing, task_of, batch, self.items, writer, &label)
            .with_context(|| format!("task {}", task.name))?;
        let samples = read_samples(job.out, task)?;
        let truncated = samples.iter().filter(|s| s.truncated).count();
        if truncated > 0 {
            say!("{label}: {truncated} of {} articles were cut to fit the model's context", samples.len());
        }
        let counts = Counts { read: self.items.len(), written: samples.len(), ..Counts::default() };
        Ok(Made::new(json!({"samples": samples.len(), "truncated": truncated}))?.counting(counts))
    }
}

/// The rows of every task; whatever is wrong with the tasks or their files is an error here, before anything is computed.
pub fn check(settings: &EvalSettings) -> Result<Vec<Vec<tasks::Item>>> {
    let empty = "eval.tasks is empty: add [[eval.tasks]]";
    ensure!(!settings.tasks.is_empty(), Error::setting("eval.tasks", empty));
    let mut loaded = vec![];
    check_tasks(settings).or_kind(|message| Error::setting("eval.tasks", message))?;
    for task in &settings.tasks {
        let items = tasks::load(task).with_context(|| format!("task {}", task.name));
        loaded.push(items.or_kind(|message| Error::bad_input(task.file.display(), message))?);
    }
    Ok(loaded)
}

/// What can be wrong with a task's solved questions apart from their rows.
fn check_shots(task: &EvalTask) -> Result<()> {
    let kind = task.kind();
    let none = [TaskKind::Perplexity, TaskKind::Alignment].contains(&kind);
    let given = task.few_shot > 0 || task.few_shot_file.is_some() || task.few_shot_reference.is_some();
    ensure!(!none || !given, "`few-shot` is not for kind {}: nothing is asked there", kind.name());
    let five = kind == TaskKind::MultipleChoice && task.protocol == ChoiceProtocol::Paper5shot;
    ensure!(
        task.few_shot > 0 || five || task.few_shot_file.is_none(),
        "`few-shot-file` without `few-shot`: say how many solved questions are shown"
    );
    let lines = kind == TaskKind::Translation && task.description.is_none();
    ensure!(
        (lines && task.few_shot_file.is_some()) == task.few_shot_reference.is_some(),
        "`few-shot-reference` has the translations of the lines of `few-shot-file`: it is needed there for kind translation, and only there"
    );
    Ok(())
}

/// What can be wrong with tasks apart from their rows.
fn check_tasks(settings: &EvalSettings) -> Result<()> {
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
        languages::require(&task.language).with_context(|| format!("task {}", task.name))?;
        ensure!(
            task.kind.is_some() || task.description.is_some(),
            "task {}: `kind` is missing (one of perplexity, translation, multiple-choice, qa, mkqa, summary, alignment), or a `description`",
            task.name
        );
        tasks::described::check(task).with_context(|| format!("task {}", task.name))?;
        let aligns = task.kind() == TaskKind::Alignment;
        ensure!(
            task.description.is_some()
                || (aligns || task.kind() == TaskKind::Translation) == task.reference.is_some(),
            "task {}: `reference` belongs to kinds translation and alignment, which need it",
            task.name
        );
        ensure!(
            aligns || (task.pooling.is_none() && task.layer.is_none() && task.projection.is_none()),
            "task {}: `pooling`, `layer` and `projection` belong to kind alignment",
            task.name
        );
        languages::require(&task.source_language).with_context(|| format!("task {}", task.name))?;
        task.projection.map_or(Ok(()), Projection::check).with_context(|| format!("task {}", task.name))?;
        check_shots(task).with_context(|| format!("task {}", task.name))?;
        let replies = task.kind().generates() && task.description.is_none();
        ensure!(
            !replies || task.prompt().contains("{text}"),
            "task {}: `prompt` needs {{text}}, where the question stands",
            task.name
        );
        for warning in measure::check(task).with_context(|| format!("task {}", task.name))? {
            note!("warning: {warning}");
        }
    }
    Ok(())
}

/// Says where replies and references are in different forms of Unicode.
fn warn_of_forms(task: &EvalTask, samples: &[Sample]) {
    if !task.kind().generates() {
        return;
    }
    let (mut replies, mut targets) =
        (samples.iter().map(|s| &s.response), samples.iter().flat_map(|s| &s.targets));
    let differ = forms::differ(("its replies", &mut replies), ("its references", &mut targets));
    differ.iter().for_each(|warning| note!("warning: task {}: {warning}", task.name));
}

/// results.json and the sample files in lm-eval's layout, without anything that differs between two equal runs.
fn write_results(
    job: &Job,
    settings: &EvalSettings,
    items: &[Vec<tasks::Item>],
    folder: &ResultsFolder,
) -> Result<()> {
    let (mut results, mut better, mut counts, mut configs) = (Map::new(), Map::new(), Map::new(), Map::new());
    let (mut n_shot, mut alignment) = (Map::new(), Map::new());
    for (task, items) in settings.tasks.iter().zip(items) {
        let (samples, measures) = measure::of_folder(job.out, task, Some(items), job.placement)?;
        warn_of_forms(task, &samples);
        let mut own = Map::new();
        own.insert("alias".into(), json!(task.name));
        let (mut own_better, mut signatures) = (Map::new(), Map::new());
        let rows = samples::rows(task, items, &samples, &measures)?;
        folder.write(&samples::file_name(task), rows.as_bytes())?;
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
        if task.kind() == TaskKind::Alignment {
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
    folder.write(RESULTS, format!("{value:#}\n").as_bytes())
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
