//! `sdrrl filter`: which translations are good enough to learn from (SDRRL, step 4). Reads the scores and alarms that are there; re-cutting
//! for another tau computes nothing anew.
use crate::error::Error;
use anyhow::{Context, Result, ensure};

use crate::pipeline::{
    identity::Identity,
    rows::{RowArgs, RowStage},
    stage::{self, Made, Open},
};
use crate::{
    data::{
        alarms::{ALARMS, has_content},
        record::{Row, Verdict},
    },
    recipe::filter::FilterSettings,
};

/// Arguments of `filter`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Rows
    #[command(flatten)]
    pub rows: RowArgs,
    /// How
    #[command(flatten)]
    pub settings: FilterSettings,
}

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    check(&args.settings)?;
    stage::run(&mut Filter { args }).map(drop)
}

struct Filter<'a> {
    args: &'a Args,
}

impl RowStage for Filter<'_> {
    const NAME: &'static str = "filter";

    fn rows(&self) -> &RowArgs {
        &self.args.rows
    }

    fn identity(&self) -> Result<Identity> {
        self.args.rows.identity(&self.args.settings)
    }

    fn run(&mut self, open: &mut Open) -> Result<Made> {
        let s = &self.args.settings;
        let (_, targets) = self.args.rows.languages()?;
        let (mut kept, mut all) = (0, 0);
        let mut taus = std::collections::BTreeSet::new();
        let summary = open.map_rows(&self.args.rows.input, 4096, &mut |mut rows: Vec<Row>| {
            for row in &mut rows {
                for target in &targets {
                    let verdict = judge(row, target, s)?;
                    all += 1;
                    let engine = row.scores.get(target).map_or("", |scores| &scores.engine);
                    taus.insert(s.tau_for(engine).to_string());
                    kept += usize::from(verdict.keep);
                    row.verdicts.insert(target.to_string(), verdict);
                }
            }
            Ok(rows)
        })?;
        let share = 100.0 * kept as f64 / f64::max(1.0, all as f64);
        let at: Vec<String> = taus.into_iter().collect();
        let detail = format!("{kept} of {all} translations kept ({share:.1} %) at tau {}", at.join(" and "));
        summary.made(Self::NAME, &detail)
    }
}

/// Refuses settings that mean nothing.
pub(super) fn check(s: &FilterSettings) -> Result<()> {
    let tau = s.tau.unwrap_or_default();
    let message = || format!("filter.tau is {tau}: a finite number was expected");
    ensure!(tau.is_finite(), Error::setting("filter.tau", message()));
    for alarm in &s.ignore_alarms {
        ensure!(
            ALARMS.contains(&alarm.as_str()),
            "filter.ignore-alarms: `{alarm}` is none of {}",
            ALARMS.join(", ")
        );
    }
    Ok(())
}

/// Whether the row may be used in `target`, and why not.
pub(super) fn judge(row: &Row, target: &str, s: &FilterSettings) -> Result<Verdict> {
    let t = row
        .translations
        .get(target)
        .with_context(|| format!("row {} has no translation into {target}: run `translate` first", row.id))?;
    let scores = row
        .scores
        .get(target)
        .with_context(|| format!("row {} has no scores for {target}: run `score` first", row.id))?;
    let tau = s.tau_for(&scores.engine);
    let counts = |alarm: &&String| !s.ignore_alarms.contains(*alarm);
    let side = |name: &str, text: &str, translated: &str| -> Vec<String> {
        let mut reasons = vec![];
        if !has_content(text) {
            return reasons;
        }
        if translated.is_empty() {
            reasons.push(format!("{name} is not translated"));
        }
        for alarm in t.alarms.get(name).into_iter().flatten().filter(counts) {
            reasons.push(format!("alarm {name} {alarm}"));
        }
        match scores.sides.get(name) {
            Some(score) if *score < tau => reasons.push(format!("score {name} {score:.3} < {tau}")),
            Some(_) => {}
            None => reasons.push(format!("{name} has no score")),
        }
        reasons
    };
    let mut question = side("instruction", &row.instruction, &t.instruction);
    question.extend(side("input", &row.input, &t.input));
    let mut answer = match &row.answer {
        Some(a) => a.alarms.iter().filter(counts).map(|x| format!("alarm generated {x}")).collect(),
        None => vec!["no generated answer".to_string()],
    };
    answer.extend(side("answer", row.answer.as_ref().map_or("", |a| &a.text), &t.answer));
    let mut output = side("output", &row.output, &t.output);
    if !has_content(&row.output) {
        output.push("no output in the data set".into());
    }
    let (keep, keep_output) =
        (question.is_empty() && answer.is_empty(), question.is_empty() && output.is_empty());
    let reasons = if keep { vec![] } else { question.into_iter().chain(answer).collect() };
    Ok(Verdict { keep, keep_output, reasons })
}
