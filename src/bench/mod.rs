//! Measuring this program on the machine at hand: kernels, training, generation, translation, scoring, each beside ceilings of the same run.
//!
//! Rules (after NVIDIA's SOL-ExecBench, as far as they fit whole steps): warm-up runs that are not counted, then timed runs with a wait for the device behind
//! each; medians with the quartiles; results are checked before and after they are timed; the inputs are printed; ceilings are measured in the same run.
pub mod calibrate;
pub mod ceilings;
pub mod compare;
pub mod generate;
pub mod kernels;
pub mod models;
pub mod plan;
pub mod score;
pub mod train;
pub mod translate;

use std::time::Instant;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    device::Device,
    error::Error,
    pipeline::interrupt::interrupted,
    report::table::{Cell, Table},
};

/// How often something is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Runs {
    /// Runs before the first that is timed
    #[arg(long, default_value_t = 1)]
    pub warmup: usize,
    /// Runs that are timed
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub runs: u32,
}

/// A rate or a time, once a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Its unit, such as `tokens/s`.
    pub unit: String,
    /// False for times.
    pub higher_is_better: bool,
    /// One value a run.
    pub values: Vec<f64>,
    /// The ceiling that the median is held against, and the share of it that is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of_ceiling: Option<(String, f64)>,
}

impl Row {
    /// A rate: `work` (in the unit) over each of `seconds`.
    pub fn rate(name: impl Into<String>, unit: &str, work: f64, seconds: &[f64]) -> Row {
        let values = seconds.iter().map(|s| work / s.max(1e-12)).collect();
        Row { name: name.into(), unit: unit.into(), higher_is_better: true, values, of_ceiling: None }
    }

    /// Milliseconds.
    pub fn time(name: impl Into<String>, seconds: &[f64]) -> Row {
        let values = seconds.iter().map(|s| s * 1e3).collect();
        Row { name: name.into(), unit: "ms".into(), higher_is_better: false, values, of_ceiling: None }
    }

    /// Held against a ceiling of the same unit.
    pub fn against(mut self, ceiling: &Row) -> Row {
        self.of_ceiling = Some((ceiling.name.clone(), self.median() / ceiling.median()));
        self
    }

    /// The middle value.
    pub fn median(&self) -> f64 {
        quantile(&self.values, 0.5)
    }
}

/// The value below which a share `q` of them lies, between neighbours in proportion; NaN of none.
pub(crate) fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = q * sorted.len().saturating_sub(1) as f64;
    let (low, share) = (at as usize, at.fract());
    match (sorted.get(low), sorted.get(low + 1)) {
        (Some(a), Some(b)) => a + share * (b - a),
        (Some(a), None) => *a,
        _ => f64::NAN,
    }
}

/// What a bench found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Found {
    /// `train`, `generate` ...
    pub bench: String,
    /// What was run: two benches with equal ones can be compared.
    pub settings: Value,
    /// Date, program, machine.
    pub facts: Vec<(String, String)>,
    /// How work was counted.
    pub formulas: Vec<String>,
    /// What the machine can do at best, measured beside.
    pub ceilings: Vec<Row>,
    /// The figures.
    pub rows: Vec<Row>,
    /// Of the process, or of what tensors took on a GPU; MiB.
    pub peak_memory_mib: Option<f64>,
}

impl Found {
    /// As a table.
    pub fn table(&self) -> Table {
        let mut table = Table::new(&["", "median", "", "quartiles", "of the ceiling"]);
        for row in self.ceilings.iter().chain(&self.rows) {
            let decimals = decimals(row.median());
            let [low, high] = [0.25, 0.75].map(|q| quantile(&row.values, q));
            table.push(vec![
                Cell::Text(row.name.clone()),
                Cell::Number(row.median(), decimals),
                Cell::Text(row.unit.clone()),
                Cell::Text(format!("{low:.decimals$} .. {high:.decimals$}")),
                row.of_ceiling
                    .as_ref()
                    .map_or(Cell::Empty, |(of, share)| Cell::Text(format!("{:.0} % of {of}", 100.0 * share))),
            ]);
        }
        table
    }
}

/// Decimals that leave about four digits.
fn decimals(x: f64) -> usize {
    match x.abs() {
        x if x >= 1000.0 => 0,
        x if x >= 10.0 => 1,
        x if x >= 1.0 => 2,
        _ => 3,
    }
}

/// Seconds of each timed run of `f`; the device has finished its work at the end of each.
///
/// # Errors
/// Those of `f`; Ctrl-C between two runs.
pub fn timed(device: &Device, runs: Runs, mut f: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let mut once = || -> Result<f64> {
        ensure!(!interrupted(), Error::interrupted("stopped: nothing was written"));
        let began = Instant::now();
        f()?;
        wait(device)?;
        Ok(began.elapsed().as_secs_f64())
    };
    for _ in 0..runs.warmup {
        once()?;
    }
    (0..runs.runs).map(|_| once()).collect()
}

/// Until the device has done all that it was asked for.
pub(crate) fn wait(device: &Device) -> Result<()> {
    device.gpu().map_or(Ok(()), |gpu| gpu.synchronize())
}

/// The most that tensors took of a GPU, or that this process took; MiB.
pub(crate) fn peak_mib(device: &Device) -> Option<f64> {
    let bytes = match device.gpu() {
        Some(gpu) => Some(gpu.peak_bytes() as u64),
        None => crate::report::environment::peak_memory(),
    };
    bytes.map(|b| b as f64 / 1048576.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_between_neighbours() {
        assert_eq!([0.0, 0.25, 0.5, 1.0].map(|q| quantile(&[4.0, 1.0, 2.0], q)), [1.0, 1.5, 2.0, 4.0]);
        assert_eq!(quantile(&[3.0], 0.75), 3.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn rows_are_work_over_time() {
        let row = Row::rate("r", "GB/s", 6.0, &[2.0, 3.0, 1.0]);
        assert_eq!((row.values.clone(), row.median()), (vec![3.0, 2.0, 6.0], 3.0));
        let ceiling = Row::rate("copy", "GB/s", 12.0, &[2.0]);
        assert_eq!(row.against(&ceiling).of_ceiling, Some(("copy".into(), 0.5)));
        assert_eq!(Row::time("t", &[0.5]).values, [500.0]);
    }
}
