//! Evaluating a model on tasks.
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

/// The value of one metric on one task.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The task's name.
    pub task: String,
    /// The metric's key in results.json (`bleu`, `exact_match` ...).
    pub metric: &'static str,
    /// Over all rows, in the metric's own unit (percentages from 0 to 100).
    pub value: f64,
    /// 95 % percentile interval over `bootstrap-samples` resamples of the rows; `None` where the metric has none.
    pub interval: Option<(f64, f64)>,
    /// Whether a higher value is better.
    pub higher_is_better: bool,
    /// Number of rows.
    pub samples: usize,
    /// How it was computed, as a signature in the style of sacreBLEU.
    pub signature: String,
}

impl Model {
    /// Evaluates every task and writes to the folder `out`, as `sdrrl eval` does: samples, scores, and results.json in lm-eval's layout. Tasks already finished
    /// there are not run again; an interrupted evaluation resumes where it stopped.
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
