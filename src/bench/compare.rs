//! Two benches of the same thing: ratios of medians with intervals.
use anyhow::{Result, ensure};
use serde_json::Value;

use super::{Found, Row, quantile};
use crate::{
    data::random::RowRandom,
    error::Error,
    report::table::{Cell, Table},
};

const SAMPLES: usize = 2000;

/// New over old (times: old over new, so that above 1 is always faster) with its 95 % interval: percentiles over resamples of both sides' runs. The ends
/// are NaN where a side has a single run.
pub fn speed_up(new: &Row, old: &Row) -> (f64, f64, f64) {
    let ratio = |new: &[f64], old: &[f64]| quantile(new, 0.5) / quantile(old, 0.5);
    let turned = |x: f64| if new.higher_is_better { x } else { 1.0 / x };
    let whole = turned(ratio(&new.values, &old.values));
    if new.values.len() < 2 || old.values.len() < 2 {
        return (whole, f64::NAN, f64::NAN);
    }
    let mut random = RowRandom::new(1, "bench", &new.name);
    let mut draw =
        |values: &[f64]| -> Vec<f64> { values.iter().map(|_| values[random.below(values.len())]).collect() };
    let resampled: Vec<f64> =
        (0..SAMPLES).map(|_| turned(ratio(&draw(&new.values), &draw(&old.values)))).collect();
    (whole, quantile(&resampled, 0.025), quantile(&resampled, 0.975))
}

/// Whether `old` measured the same thing, asked before anything is measured.
///
/// # Errors
/// It did not: the settings that differ.
pub fn check(bench: &str, settings: &Value, old: &Found) -> Result<()> {
    let differ = || {
        format!(
            "--compare: the other file is of `bench {}` with {}; this is `bench {bench}` with {settings}: the same command is needed",
            old.bench, old.settings
        )
    };
    ensure!(bench == old.bench && *settings == old.settings, Error::setting("compare", differ()));
    Ok(())
}

/// A row for each that both have, and the names of those that only one has.
///
/// # Errors
/// As [`check`].
pub fn table(new: &Found, old: &Found) -> Result<(Table, Vec<String>)> {
    check(&new.bench, &new.settings, old)?;
    let mut table = Table::new(&["", "before", "now", "", "faster by % (95 %)"]);
    let percent = |ratio: f64| 100.0 * (ratio - 1.0);
    let same = |a: &Row, b: &Row| a.name == b.name && a.unit == b.unit;
    for row in new.ceilings.iter().chain(&new.rows) {
        let Some(before) = old.ceilings.iter().chain(&old.rows).find(|o| same(o, row)) else { continue };
        let (ratio, low, high) = speed_up(row, before);
        let decimals = super::decimals(row.median());
        table.push(vec![
            Cell::Text(row.name.clone()),
            Cell::Number(before.median(), decimals),
            Cell::Number(row.median(), decimals),
            Cell::Text(row.unit.clone()),
            // Coloured where the interval leaves 1 out.
            Cell::Delta {
                value: percent(ratio),
                low: percent(low),
                high: percent(high),
                decimals: 1,
                better_is_higher: true,
            },
        ]);
    }
    let missing = |from: &Found, other: &Found, which: &str| -> Vec<String> {
        let has = |r: &&Row| !other.rows.iter().any(|o| same(o, r));
        from.rows.iter().filter(has).map(|r| format!("{} ({}): only {which}", r.name, r.unit)).collect()
    };
    let mut alone = missing(new, old, "now");
    alone.extend(missing(old, new, "before"));
    Ok((table, alone))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(values: &[f64], rows: usize) -> Found {
        let row = Row {
            name: "step".into(),
            unit: "tokens/s".into(),
            higher_is_better: true,
            values: values.to_vec(),
            of_ceiling: None,
        };
        Found {
            bench: "train".into(),
            settings: json!({"rows": rows}),
            facts: vec![],
            formulas: vec![],
            ceilings: vec![],
            rows: vec![row],
            peak_memory_mib: None,
        }
    }

    #[test]
    fn an_interval_is_beside_one_only_where_runs_differ() {
        let (slow, fast) = (found(&[100.0, 101.0, 99.0, 100.0], 4), found(&[121.0, 119.0, 120.0, 120.0], 4));
        let (ratio, low, high) = speed_up(&fast.rows[0], &slow.rows[0]);
        assert!((ratio - 1.2).abs() < 1e-9 && low > 1.15 && high < 1.25, "{ratio} {low} {high}");
        let (_, low, high) = speed_up(&slow.rows[0], &slow.rows[0]);
        assert!(low <= 1.0 && high >= 1.0);
        // A time that falls is faster.
        let time = |ms: &[f64]| Row::time("t", &ms.iter().map(|x| x / 1e3).collect::<Vec<_>>());
        let (ratio, low, _) = speed_up(&time(&[5.0, 5.0]), &time(&[10.0, 10.0]));
        assert_eq!((ratio, low), (2.0, 2.0));
        let (_, low, high) = speed_up(&time(&[5.0]), &time(&[10.0, 10.0]));
        assert!(low.is_nan() && high.is_nan(), "one run has no interval");
    }

    #[test]
    fn other_settings_are_no_comparison() {
        let error = table(&found(&[1.0], 4), &found(&[1.0], 8)).unwrap_err().to_string();
        assert!(error.contains("\"rows\":8") && error.contains("the same command"), "{error}");
        let mut other = found(&[1.0], 4);
        other.rows[0].name = "another".into();
        let (table, alone) = table(&found(&[1.0], 4), &other).unwrap();
        assert!(table.rows.is_empty() && alone.len() == 2, "{alone:?}");
    }
}
