//! About how long each stage of a run will take, and the memory of its model, before it starts.
//!
//! Times come from this machine: from the same stage's earlier run in the work folder, or from rates measured now ([`calibrate`]), times what is counted
//! in the files: rows, tokens. What nobody can count yet is a range; what is not computed here is said not to be known.
mod facts;
mod stages;

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::{
    bench::calibrate,
    pipeline::{
        clock,
        manifest::Manifest,
        placement::Placement,
        plan::{Planned, Step},
    },
    recipe::Recipe,
    report::{
        out::{say, say_text},
        progress::span,
        table::{Cell, Table, use_colour},
    },
};
use facts::Facts;

/// How long something will take.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Time {
    /// It is done already.
    Unchanged,
    /// Text alone, no model: seconds at most where rows are no millions.
    Short,
    /// Seconds, at least and at most.
    About([f64; 2]),
    /// Why nobody knows.
    NotKnown(String),
}

/// A stage that is to come.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    /// How long.
    pub time: Time,
    /// What its model takes, bytes by purpose, where that can be measured.
    pub memory: Vec<(String, usize)>,
    /// What there is to do.
    pub work: String,
}

/// By how much a figure of an earlier run may be off.
const EARLIER: [f64; 2] = [0.7, 1.5];

impl Expected {
    fn of(time: Time, work: impl Into<String>) -> Expected {
        Expected { time, memory: vec![], work: work.into() }
    }

    /// Of rates that were measured now.
    fn about(low: f64, high: f64, work: impl Into<String>) -> Expected {
        Expected::of(Time::About([low * calibrate::OFF[0], high * calibrate::OFF[1]]), work)
    }

    fn bytes(&self) -> usize {
        self.memory.iter().map(|(_, bytes)| bytes).sum()
    }

    fn taking(self, memory: Vec<(String, usize)>) -> Expected {
        Expected { memory, ..self }
    }
}

/// What the stages of some recipes are expected to take, each folder once.
#[derive(Default)]
pub(super) struct Expectation {
    rows: Vec<(String, Expected)>,
    seen: HashSet<PathBuf>,
    rates: BTreeMap<String, Result<calibrate::Rates, String>>,
}

impl Expectation {
    /// Adds the planned stages of a recipe in the work folder `work`.
    ///
    /// # Errors
    /// Files that the check before would have refused.
    pub fn add(&mut self, recipe: &Recipe, placement: Placement, steps: &[Step], work: &Path) -> Result<()> {
        let new: Vec<&Step> = steps.iter().filter(|s| self.seen.insert(s.out.clone())).collect();
        if new.iter().all(|s| s.planned == Planned::Unchanged) {
            let done = |s: &&Step| (s.label.clone(), Expected::of(Time::Unchanged, ""));
            self.rows.extend(new.iter().map(done));
            return Ok(());
        }
        let facts = Facts::gather(recipe, placement, &mut self.rates)?;
        let mut before = stages::Before::default();
        for step in new {
            if let Some(variant) = step.label.strip_prefix("assemble ") {
                before.variant = recipe.variants.iter().find(|v| v.name() == variant).copied();
            }
            if step.label == "pack" {
                before.packed = (step.planned == Planned::Unchanged).then(|| step.out.clone());
            }
            let mut expected = match step.planned {
                Planned::Unchanged => Expected::of(Time::Unchanged, ""),
                _ => stages::expected(&facts, &step.label, &before)?,
            };
            if step.planned == Planned::GoesOn {
                expected.work += "; a part of it is done";
            }
            if let (Time::About(_) | Time::NotKnown(_), Some((seconds, rows))) =
                (&expected.time, earlier(step, work))
            {
                expected.time = Time::About(EARLIER.map(|x| x * seconds));
                expected.work += &format!("; an earlier run took {seconds:.0} s for {rows}");
            }
            self.rows.push((step.label.clone(), expected));
        }
        Ok(())
    }

    /// The whole table, and below it what the largest model's memory is for, and the sum of the times.
    pub fn print(&self) {
        let mut table = Table::new(&["stage", "time", "MiB", "what there is to do"]);
        for (label, e) in &self.rows {
            let memory = if e.memory.is_empty() { Cell::Empty } else { Cell::Number(mib(e.bytes()), 0) };
            let time = Cell::Text(in_words(&e.time));
            table.push(vec![Cell::Text(label.clone()), time, memory, Cell::Text(e.work.clone())]);
        }
        say_text!("{}", table.to_text(use_colour()));
        if let Some((label, e)) =
            self.rows.iter().filter(|(_, e)| !e.memory.is_empty()).max_by_key(|(_, e)| e.bytes())
        {
            let parts: Vec<String> =
                e.memory.iter().map(|(name, b)| format!("{name} {:.0}", mib(*b))).collect();
            say!("memory: up to {:.0} MiB, by {label}: {}", mib(e.bytes()), parts.join(", "));
        }
        say!("{}", self.total());
    }

    /// All of it in a line.
    pub fn total(&self) -> String {
        let (mut sum, mut not_known) = ([0.0; 2], vec![]);
        for (label, e) in &self.rows {
            match &e.time {
                Time::About(range) => (0..2).for_each(|i| sum[i] += range[i]),
                // A training of each variant has one name.
                Time::NotKnown(_) if !not_known.contains(&label.as_str()) => not_known.push(label.as_str()),
                Time::NotKnown(_) | Time::Unchanged | Time::Short => {}
            }
        }
        let rest = match not_known.len() {
            0 => String::new(),
            _ => format!(", and what {} will take, which is not known", not_known.join(", ")),
        };
        if self.rows.iter().all(|(_, e)| e.time == Time::Unchanged) {
            return "time: nothing is left to do".into();
        }
        format!("time: {} in all on this machine as it is now{rest}", span(sum))
    }
}

/// The seconds of the longest earlier run of a stage in `work`, and of how many rows it was; `None` where there was none, or one of other settings, which is other work.
fn earlier(step: &Step, work: &Path) -> Option<(f64, String)> {
    let Planned::Again(why) = &step.planned else { return None };
    // Other settings are other work; other inputs are about as much.
    if why.iter().any(|reason| reason.starts_with("settings") || reason.starts_with("stage")) {
        return None;
    }
    let rows = Manifest::load(&step.out).ok().flatten()?.counts?.read;
    let name = step.out.strip_prefix(work).unwrap_or(&step.out).to_string_lossy().into_owned();
    let seconds = clock::longest(work, &name)?;
    Some((seconds, format!("{rows} rows")))
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / 1048576.0
}

fn in_words(time: &Time) -> String {
    match time {
        Time::Unchanged => "unchanged".into(),
        Time::Short => "short: text only".into(),
        Time::About(range) => span(*range),
        Time::NotKnown(why) => format!("not known: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_run_counts_unless_its_settings_were_others() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("train");
        std::fs::create_dir(&out).unwrap();
        let manifest =
            Manifest { counts: Some(crate::pipeline::manifest::Counts::all(7)), ..Manifest::default() };
        std::fs::write(out.join("manifest.json"), serde_json::to_string(&manifest).unwrap()).unwrap();
        let times = "{\"stage\": \"train\", \"seconds\": 9.5}\n{\"stage\": \"train\", \"seconds\": 2.0}\n";
        std::fs::write(dir.path().join("timing.jsonl"), times).unwrap();
        let of = |planned| earlier(&Step { label: "train".into(), out: out.clone(), planned }, dir.path());
        let again = |why: &str| Planned::Again(vec!["the token shards changed".into(), why.into()]);
        assert_eq!(of(again("the model changed")), Some((9.5, "7 rows".into())));
        assert_eq!(of(again("settings.epochs: 3 -> 30")), None);
        assert_eq!(of(Planned::Made), None);
    }

    #[test]
    fn what_is_not_known_is_no_part_of_the_sum_and_is_said() {
        let row = |name: &str, time| (name.to_string(), Expected::of(time, ""));
        let mut all = Expectation {
            rows: vec![
                row("a", Time::About([2.0, 3.0])),
                row("b", Time::Short),
                row("c", Time::About([1.0, 4.0])),
            ],
            ..Expectation::default()
        };
        assert_eq!(all.total(), "time: about 3 to 7 s in all on this machine as it is now");
        all.rows.push(row("translate", Time::NotKnown("another program".into())));
        all.rows.push(row("translate", Time::NotKnown("another program".into())));
        assert!(
            all.total().ends_with(", and what translate will take, which is not known"),
            "{}",
            all.total()
        );
        all.rows = vec![row("a", Time::Unchanged)];
        assert_eq!(all.total(), "time: nothing is left to do");
    }
}
