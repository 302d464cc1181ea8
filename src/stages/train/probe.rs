//! Generation metrics while training: some rows of each generation task are answered by a merged copy of the model.
use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Args;
use crate::pipeline::hash::hash_path;
use crate::report::out::say;
use crate::{
    data::{template::ChatTemplate, tokenizer::Tokenizer},
    device::Device,
    eval::{
        measure::measures,
        run::{check, read_tasks},
        tasks::{self, Item},
    },
    infer::{answerer::Answerer, generation_config::GenerationConfig},
    models::{transformer::train_step::TrainStep, transformer::weights::Transformer},
    recipe::eval::EvalSettings,
};

/// Tasks with everything that turns their rows into replies.
pub(super) struct Probe {
    settings: EvalSettings,
    items: Vec<Vec<Item>>,
    template: String,
    system: Option<String>,
    tokenizer: Arc<Tokenizer>,
    chat: Arc<ChatTemplate>,
    generation: GenerationConfig,
}

/// Leaves out, and names, the metrics that have a model of their own: it would be loaded at every evaluation.
fn without_models(settings: &mut EvalSettings) {
    settings.tasks.retain_mut(|task| {
        let (left_out, kept): (Vec<_>, Vec<_>) =
            task.metric_names().into_iter().partition(|m| m.about().needs.model);
        for metric in &left_out {
            say!("train: task {}: {} is not measured while training", task.name, metric.name());
        }
        if !left_out.is_empty() {
            task.metrics = kept;
            task.scorers.clear();
        }
        left_out.is_empty() || !task.metrics.is_empty()
    });
}

impl Probe {
    /// The generation tasks that `args` asks for; `None` if there are none.
    pub fn new(args: &Args, model: &Path) -> Result<Option<Probe>> {
        let mut settings = match (&args.probe, &args.probe_tasks) {
            (Some(settings), _) => settings.clone(),
            (None, Some(path)) => EvalSettings { while_training: args.probe_rows, ..read_tasks(path)? },
            (None, None) => return Ok(None),
        };
        settings.tasks.retain(|t| t.kind().generates());
        without_models(&mut settings);
        let rows = settings.while_training;
        if rows == 0 || settings.tasks.is_empty() {
            return Ok(None);
        }
        for task in &mut settings.tasks {
            task.limit = if task.limit == 0 { rows } else { task.limit.min(rows) };
        }
        let items = check(&settings)?;
        let tokenizer = Arc::new(Tokenizer::load(model)?);
        let generation = GenerationConfig::from_model(model)?;
        generation.refuse_unsupported(0.0)?;
        Ok(Some(Probe {
            chat: ChatTemplate::load(&args.probe_template, &tokenizer)?.into(),
            template: args.probe_template.clone(),
            system: args.probe_system.clone(),
            generation,
            tokenizer,
            items,
            settings,
        }))
    }

    /// For the manifest: what decides the measured values.
    pub fn identity(&self) -> Result<Value> {
        let paths = self
            .settings
            .tasks
            .iter()
            .flat_map(|t| [Some(&t.file), t.reference.as_ref()].into_iter().flatten());
        let files = paths.map(|p| hash_path(p)).collect::<Result<Vec<_>>>()?;
        Ok(
            json!({"tasks": self.settings.tasks, "files": files, "template": self.template, "system": self.system}),
        )
    }

    /// The metrics of every task, as `TASK/METRIC`. The model in training is not touched.
    pub fn measure(&self, model: &Transformer, step: &TrainStep) -> Result<Vec<(String, f64)>> {
        let device = model.device();
        let mut copy = model.to_device(&Device::Cpu)?;
        if let Some(lora) = step.adapter() {
            copy.apply_adapter(&lora.to_device(&copy.spec, &Device::Cpu)?)?;
        }
        let answerer = Answerer {
            model: copy.to_device(&device)?,
            tokenizer: self.tokenizer.clone(),
            template: self.chat.clone(),
            generation: self.generation.clone(),
        };
        let mut out = vec![];
        for (task, items) in self.settings.tasks.iter().zip(&self.items) {
            let samples = tasks::run(&answerer, task, self.system.as_deref(), self.settings.batch(), items)
                .with_context(|| format!("task {}, measured while training", task.name))?;
            ensure!(!samples.is_empty(), "task {} has no rows", task.name);
            for m in measures(task, &samples)? {
                out.push((format!("{}/{}", task.name, m.about.key), m.whole()));
            }
        }
        Ok(out)
    }
}
