//! Two evaluations of the same tasks, sample by sample: what changed, with paired-bootstrap intervals (Koehn 2004).
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{
    measure::{Measure, of_folder},
    sample::Sample,
};
use crate::{
    metrics::{
        bootstrap::{Paired, paired_over},
        metric::Unit,
    },
    pipeline::placement::Placement,
    recipe::eval::{EvalSettings, EvalTask},
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
    compare_runs(&[(before, after)], settings, placement)
}

/// The same of several runs with other seeds, each before and after: values are means over the runs, intervals over rows and runs
/// ([`paired_over`]).
///
/// # Errors
/// No runs; folders that were evaluated on other rows, or not at all.
pub fn compare_runs(
    runs: &[(&Path, &Path)],
    settings: &EvalSettings,
    placement: Placement,
) -> Result<Vec<Comparison>> {
    let mut out = vec![];
    for task in &settings.tasks {
        let all: Vec<Pair> = runs
            .iter()
            .map(|(before, after)| Pair::open(before, after, task, placement))
            .collect::<Result<_>>()?;
        let first = all.first().context("there is no run to compare")?;
        let same = all.iter().all(|pair| same_rows(&pair.old, &first.old));
        ensure!(same, "task {}: the runs were evaluated on other rows: run them again", task.name);
        for m in 0..first.old_measures.len().min(first.new_measures.len()) {
            let of = |pair: &Pair, rows: &[usize]| {
                (pair.old_measures[m].value(rows), pair.new_measures[m].value(rows))
            };
            let (a, n) = (&first.old_measures[m], first.old.len());
            let (samples, seed) = (resamples(a, settings), settings.seed);
            let mut paired = paired_over(n, all.len(), samples, seed, |run, rows| of(&all[run], rows));
            if !a.has_intervals() {
                (paired.low, paired.high, paired.p) = (f64::NAN, f64::NAN, f64::NAN);
            }
            let mean = |of: &dyn Fn(&Pair) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
            out.push(Comparison {
                task: task.name.clone(),
                language: task.language.clone(),
                metric: a.about.title(),
                name: a.about.key,
                unit: a.about.unit,
                higher_is_better: a.about.higher_is_better,
                decimals: a.about.decimals,
                before: mean(&|pair| pair.old_measures[m].whole()),
                after: mean(&|pair| pair.new_measures[m].whole()),
                paired,
            });
        }
    }
    Ok(out)
}

/// A task's samples and measures of two evaluations.
struct Pair {
    old: Vec<Sample>,
    old_measures: Vec<Measure>,
    new_measures: Vec<Measure>,
}

impl Pair {
    fn open(before: &Path, after: &Path, task: &EvalTask, placement: Placement) -> Result<Pair> {
        let (old, old_measures) = of_folder(before, task, None, placement)?;
        let (new, new_measures) = of_folder(after, task, None, placement)?;
        ensure!(
            same_rows(&old, &new),
            "task {}: {} and {} were evaluated on other rows: run both again",
            task.name,
            before.display(),
            after.display()
        );
        Ok(Pair { old, old_measures, new_measures })
    }
}

fn same_rows(old: &[Sample], new: &[Sample]) -> bool {
    old.len() == new.len() && old.iter().zip(new).all(|(a, b)| a.targets == b.targets && a.doc_id == b.doc_id)
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
