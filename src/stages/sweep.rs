//! `sdrrl sweep`: how much every threshold tau would keep, from the scores that are there; nothing is scored anew.
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::json;

use super::{
    filter::{self, judge},
    translate::translated_sides,
};
use crate::pipeline::{
    identity::{Identity, Inputs},
    manifest::{Counts, Manifest},
    rows::{Part, RowArgs, apart, open_rows},
    stage::{self, Made, Open, Stage},
};
use crate::{
    data::record::Row,
    recipe::filter::FilterSettings,
    report::{
        out::{self, say},
        table::{Cell, Table, use_colour},
    },
};

/// Arguments of `sweep`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Scored rows: the folder written by `score`
    #[arg(long)]
    pub input: PathBuf,
    /// Folder for sweep.json, sweep.tsv and, with --write-rows, one folder of filtered rows per tau
    #[arg(long)]
    pub out: PathBuf,
    /// Language of the questions
    #[arg(long, default_value = "en")]
    pub source_language: String,
    /// Target languages to count
    #[arg(long, value_delimiter = ',', required = true)]
    pub target_languages: Vec<String>,
    /// Thresholds: FROM..TO in steps of 0.05, FROM..TO:STEP, or a list such as 0.7,0.8
    #[arg(long, default_value = "0.6..0.95", allow_hyphen_values = true)]
    pub taus: String,
    /// Alarms to ignore: empty, truncated, loop, length-ratio, wrong-language, copied, mostly-copied, damaged
    #[arg(long, value_delimiter = ',')]
    pub ignore_alarms: Vec<String>,
    /// Write the rows as `filter` would, for each tau, into OUT/tau-TAU
    #[arg(long)]
    pub write_rows: bool,
}

/// Sides whose lengths are told.
const SIDES: [&str; 4] = ["instruction", "input", "answer", "output"];

/// The lengths of one side's translations among the kept rows, characters.
#[derive(Clone, Debug, Default)]
struct Lengths(BTreeMap<usize, usize>);

#[derive(Clone, Debug, Serialize)]
struct LengthStatistics {
    texts: usize,
    mean: f64,
    median: usize,
    longest: usize,
}

impl Lengths {
    fn add(&mut self, text: &str) {
        if !text.is_empty() {
            *self.0.entry(text.chars().count()).or_default() += 1;
        }
    }

    fn statistics(&self) -> LengthStatistics {
        let texts: usize = self.0.values().sum();
        let total: usize = self.0.iter().map(|(length, n)| length * n).sum();
        let mut seen = 0;
        // The lower median.
        let median = self.0.iter().find(|(_, n)| {
            seen += **n;
            2 * seen >= texts
        });
        LengthStatistics {
            texts,
            mean: total as f64 / texts.max(1) as f64,
            median: median.map_or(0, |m| *m.0),
            longest: self.0.keys().next_back().copied().unwrap_or(0),
        }
    }
}

/// One language at one tau.
#[derive(Clone, Debug, Default)]
struct Count {
    rows: usize,
    kept: usize,
    kept_output: usize,
    lengths: [Lengths; 4],
}

impl Count {
    fn add(&mut self, row: &Row, target: &str, settings: &FilterSettings) -> Result<()> {
        let verdict = judge(row, target, settings)?;
        self.rows += 1;
        self.kept += usize::from(verdict.keep);
        self.kept_output += usize::from(verdict.keep_output);
        if let (true, Some(t)) = (verdict.keep, row.translations.get(target)) {
            self.lengths.iter_mut().zip(translated_sides(t)).for_each(|(l, text)| l.add(text));
        }
        Ok(())
    }

    fn share(&self) -> f64 {
        self.kept as f64 / self.rows.max(1) as f64
    }
}

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    let taus = parse_taus(&args.taus)?;
    let rows_to = |out: PathBuf| RowArgs {
        input: args.input.clone(),
        out,
        part: Part::default(),
        source_language: args.source_language.clone(),
        target_languages: args.target_languages.clone(),
    };
    let (_, targets) = rows_to(args.out.clone()).languages()?;
    let settings = |tau: f64| FilterSettings { tau: Some(tau), ignore_alarms: args.ignore_alarms.clone() };
    taus.iter().try_for_each(|&tau| filter::check(&settings(tau)))?;
    stage::run(&mut Sweep { args, taus: &taus, targets: &targets, settings: &settings })?;
    if args.write_rows {
        for &tau in &taus {
            let rows = rows_to(args.out.join(format!("tau-{tau:.2}")));
            filter::run(&filter::Args { rows, settings: settings(tau) })?;
        }
    }
    Ok(())
}

struct Sweep<'a> {
    args: &'a Args,
    taus: &'a [f64],
    targets: &'a [String],
    settings: &'a dyn Fn(f64) -> FilterSettings,
}

impl Stage for Sweep<'_> {
    const NAME: &'static str = "sweep";
    const FILES: &'static [&'static str] = &["sweep.json", "sweep.tsv"];

    fn out(&self) -> &Path {
        &self.args.out
    }

    fn check_folder(&self, _: &Manifest) -> Result<()> {
        apart(&self.args.input, self.out())
    }

    fn identity(&self) -> Result<Identity> {
        let args = self.args;
        Identity::of(
            &json!({"taus": self.taus, "ignore-alarms": args.ignore_alarms, "target-languages": self.targets}),
        )
    }

    fn inputs(&self) -> Result<Inputs> {
        Ok(Inputs::new().file("rows", &self.args.input))
    }

    fn run(&mut self, open: &mut Open) -> Result<Made> {
        let mut counts = vec![vec![Count::default(); self.taus.len()]; self.targets.len()];
        let mut rows = 0;
        for row in open_rows(&self.args.input)?.iter::<Row>() {
            let row = row?;
            rows += 1;
            for (target, counts) in self.targets.iter().zip(&mut counts) {
                for (&tau, count) in self.taus.iter().zip(counts) {
                    count.add(&row, target, &(self.settings)(tau))?;
                }
            }
        }
        write(open, self.taus, self.targets, &counts)?;
        let summary = json!({"taus": self.taus.len(), "languages": self.targets.len()});
        Ok(Made::new(summary)?.counting(Counts::all(rows)))
    }
}

fn write(open: &Open, taus: &[f64], targets: &[String], counts: &[Vec<Count>]) -> Result<()> {
    let mut table = Table::new(&["language", "tau", "rows", "kept", "share %", "question", "answer"]);
    let mut tsv = String::from("language\ttau\trows\tkept\tshare\tkept_output");
    for side in SIDES {
        tsv += &format!("\t{side}_texts\t{side}_mean\t{side}_median\t{side}_longest");
    }
    tsv.push('\n');
    let mut all = vec![];
    for (target, counts) in targets.iter().zip(counts) {
        for (&tau, c) in taus.iter().zip(counts) {
            let sides: Vec<LengthStatistics> = c.lengths.iter().map(Lengths::statistics).collect();
            let number = |n: usize| Cell::Number(n as f64, 0);
            table.push(vec![
                Cell::Text(target.to_string()),
                Cell::Number(tau, 3),
                number(c.rows),
                number(c.kept),
                Cell::Number(100.0 * c.share(), 1),
                Cell::Number(sides[0].mean, 1),
                Cell::Number(sides[2].mean, 1),
            ]);
            tsv += &format!("{target}\t{tau}\t{}\t{}\t{:.6}\t{}", c.rows, c.kept, c.share(), c.kept_output);
            for s in &sides {
                tsv += &format!("\t{}\t{:.2}\t{}\t{}", s.texts, s.mean, s.median, s.longest);
            }
            tsv.push('\n');
            let sides: BTreeMap<&str, &LengthStatistics> = SIDES.into_iter().zip(&sides).collect();
            all.push(
                json!({"language": target, "tau": tau, "rows": c.rows, "kept": c.kept, "share": c.share(),
                "kept_output": c.kept_output, "characters": sides}),
            );
        }
    }
    open.write("sweep.json", format!("{:#}\n", json!({"results": all})).as_bytes())?;
    open.write("sweep.tsv", tsv.as_bytes())?;
    out::raw(format_args!("{}\n", table.to_text(use_colour())));
    say!("question, answer: mean characters of the kept translations; more in {}", open.dir().display());
    Ok(())
}

/// `0.6..0.95` (steps of 0.05, both ends), `0.6..0.95:0.01`, or `0.7,0.8`.
fn parse_taus(text: &str) -> Result<Vec<f64>> {
    let number = |s: &str| -> Result<f64> {
        let x: f64 = s.trim().parse().with_context(|| format!("--taus: {s:?} is no number"))?;
        ensure!(x.is_finite() && x.abs() < 1e6, "--taus: {s} is not a usable threshold");
        Ok(x)
    };
    let Some((from, rest)) = text.split_once("..") else {
        return text.split(',').map(number).collect();
    };
    let (to, step) = rest.split_once(':').unwrap_or((rest, "0.05"));
    let (from, to, step) = (number(from)?, number(to)?, number(step)?);
    ensure!(
        step > 0.0 && to >= from,
        "--taus {text}: FROM..TO:STEP with FROM <= TO and STEP > 0 was expected"
    );
    let steps = ((to - from) / step + 1e-6).floor();
    ensure!(steps <= 1000.0, "--taus {text} are {steps} thresholds: at most 1000 are taken");
    // Rounded, so that a threshold is what it reads as: 0.8, not 0.7999999.
    Ok((0..=steps as usize).map(|i| ((from + i as f64 * step) * 1e6).round() / 1e6).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taus_are_ranges_or_lists() {
        assert_eq!(parse_taus("0.6..0.95").unwrap(), [0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]);
        assert_eq!(parse_taus("0.1..0.3:0.1").unwrap(), [0.1, 0.2, 0.3]);
        assert_eq!(parse_taus("0.8, -1").unwrap(), [0.8, -1.0]);
        for bad in ["", "a", "0.9..0.1", "0..1:0", "0..1:-1", "0..1:1e-9", "nan", "0..inf"] {
            assert!(format!("{:#}", parse_taus(bad).unwrap_err()).contains("--taus"), "{bad}");
        }
    }

    #[test]
    fn lengths_are_summed_up() {
        let mut l = Lengths::default();
        ["", "ñandú", "a", "abc"].iter().for_each(|t| l.add(t));
        let s = l.statistics();
        assert_eq!((s.texts, s.mean, s.median, s.longest), (3, 3.0, 3, 5));
    }
}
