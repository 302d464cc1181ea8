//! A model's numbers on tasks.
use std::path::Path;

use super::Model;
use crate::{
    error::Result,
    eval::{
        measure::{Measure, of_folder},
        run::{Job, evaluate_loaded},
    },
    recipe::eval::EvalSettings,
};

/// One metric of one task.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The task.
    pub task: String,
    /// As results.json has it (`bleu`, `exact_match` ...).
    pub metric: &'static str,
    /// Over all rows, in the metric's own unit (percentages from 0 to 100).
    pub value: f64,
    /// 95 % percentile interval over `bootstrap-samples` resamples of the rows; `None` where the metric has none.
    pub interval: Option<(f64, f64)>,
    /// Otherwise lower is.
    pub higher_is_better: bool,
    /// Rows.
    pub samples: usize,
    /// How it was computed, in sacreBLEU's manner.
    pub signature: String,
}

impl Model {
    /// Evaluates every task into the folder `out`, as `sdrrl eval` does: samples, scores and results.json in lm-eval's layout. Tasks that are finished there
    /// are not run again; an evaluation that was stopped goes on where it was.
    ///
    /// # Errors
    /// [`Setting`](crate::Error::Setting) and [`BadInput`](crate::Error::BadInput) (tasks and their files) before anything is computed,
    /// [`Locked`](crate::Error::Locked), [`Exists`](crate::Error::Exists), [`Interrupted`](crate::Error::Interrupted), [`CannotWrite`](crate::Error::CannotWrite).
    pub fn evaluate(&self, settings: &EvalSettings, out: &Path) -> Result<Vec<Measured>> {
        let placement = self.options.placement();
        let job = Job {
            model: &self.name,
            adapter: self.options.adapter.as_deref(),
            out,
            template: &self.options.template,
            system: self.options.system.as_deref(),
            placement,
            label: "eval",
        };
        evaluate_loaded(&job, settings, Some(&self.answerer))?;
        let mut all = vec![];
        for task in &settings.tasks {
            let (samples, measures) = of_folder(out, task, None, placement)?;
            let measured = |m: Measure| Measured {
                task: task.name.clone(),
                metric: m.about.key,
                value: m.whole(),
                interval: m.interval(settings.bootstrap_samples, settings.seed),
                higher_is_better: m.about.higher_is_better,
                samples: samples.len(),
                signature: m.signature.clone(),
            };
            all.extend(measures.into_iter().map(measured));
        }
        Ok(all)
    }
}
