//! Two evaluations of the same tasks, sample by sample: what changed, with paired-bootstrap intervals (Koehn 2004).
use std::path::Path;

use anyhow::{Result, ensure};

use super::measure::{Measure, of_folder};
use crate::{
    metrics::{
        bootstrap::{Paired, paired_by},
        metric::Unit,
    },
    pipeline::placement::Placement,
    recipe::eval::EvalSettings,
    report::table::{Cell, Table},
};

/// One metric of one task, before and after.
pub struct Comparison {
    /// The task.
    pub task: String,
    /// Its language.
    pub language: String,
    /// The metric, for people.
    pub metric: String,
    /// Its name in results.json.
    pub name: &'static str,
    /// What its numbers are.
    pub unit: Unit,
    /// Otherwise lower is.
    pub higher_is_better: bool,
    /// For people.
    pub decimals: usize,
    /// The first model's value.
    pub before: f64,
    /// The second model's value.
    pub after: f64,
    /// Their difference; its interval is NaN where the metric has none.
    pub paired: Paired,
}

/// Compares every metric of every task. Scores that are not kept yet are computed, by models as `placement` says.
///
/// # Errors
/// Folders that were evaluated on other rows, or not at all.
pub fn compare(
    before: &Path,
    after: &Path,
    settings: &EvalSettings,
    placement: Placement,
) -> Result<Vec<Comparison>> {
    let mut out = vec![];
    for task in &settings.tasks {
        let (old, old_measures) = of_folder(before, task, None, placement)?;
        let (new, new_measures) = of_folder(after, task, None, placement)?;
        let same = old.len() == new.len()
            && old.iter().zip(&new).all(|(a, b)| a.targets == b.targets && a.doc_id == b.doc_id);
        ensure!(
            same,
            "task {}: {} and {} were evaluated on other rows: run both again",
            task.name,
            before.display(),
            after.display()
        );
        for (a, b) in old_measures.iter().zip(&new_measures) {
            let mut paired =
                paired_by(old.len(), resamples(a, settings), settings.seed, |i| (a.value(i), b.value(i)));
            if !a.has_intervals() {
                (paired.low, paired.high, paired.p) = (f64::NAN, f64::NAN, f64::NAN);
            }
            out.push(Comparison {
                task: task.name.clone(),
                language: task.language.clone(),
                metric: a.about.title(),
                name: a.about.key,
                unit: a.about.unit,
                higher_is_better: a.about.higher_is_better,
                decimals: a.about.decimals,
                before: a.whole(),
                after: b.whole(),
                paired,
            });
        }
    }
    Ok(out)
}

fn resamples(measure: &Measure, settings: &EvalSettings) -> usize {
    if measure.has_intervals() { settings.bootstrap_samples } else { 0 }
}

/// One row per metric.
pub fn table(all: &[Comparison]) -> Table {
    let mut table =
        Table::new(&["task", "language", "metric", "before", "after", "difference (95 % interval)"]);
    for c in all {
        table.push(vec![
            Cell::Text(c.task.clone()),
            Cell::Text(c.language.clone()),
            Cell::Text(c.metric.clone()),
            Cell::Number(c.before, c.decimals),
            Cell::Number(c.after, c.decimals),
            delta(c),
        ]);
    }
    table
}

/// The difference as a cell.
pub fn delta(c: &Comparison) -> Cell {
    Cell::Delta {
        value: c.paired.difference,
        decimals: c.decimals,
        low: c.paired.low,
        high: c.paired.high,
        better_is_higher: c.higher_is_better,
    }
}
