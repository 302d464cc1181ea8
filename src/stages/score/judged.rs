//! Engine `openai`: a model behind an endpoint judges. Rows are asked about ahead of the one that is written next, so that all connections are busy, and
//! each is written as soon as it and those before it are judged.
use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};

use super::{Args, Pairs, Score, Scored, with_scores};
use crate::{
    data::record::Row,
    pipeline::{
        devices::Computing,
        overlap::{Parts, Shared},
        rows::RowStage,
        stage::{Made, Open},
        work_dir::REMOTE,
    },
    qe::Scorer,
    recipe::score::{ScoreEngine, ScoreSettings},
    remote::{
        self, Remote, Ticket,
        judge::{self, Judge},
    },
};

/// What is wrong with the settings of a judge; nothing is contacted.
///
/// # Errors
/// [`Error::Setting`](crate::Error::Setting).
pub fn check(s: &ScoreSettings) -> Result<()> {
    match s.engine {
        ScoreEngine::Openai => judge::check(s),
        _ => remote::refuse_settings(&s.remote),
    }
}

/// A row on its way: the pairs of each language, and the judgements to come.
type Asked = (Vec<Row>, Vec<(Pairs, Vec<Ticket>)>);

pub(super) fn run(args: &Args, source: &str, targets: &[String], open: &mut Open) -> Result<Made> {
    let (s, record) = (&args.settings, open.path(REMOTE));
    let remote = Shared::new(|| Remote::connect(&s.remote, Some(&record)));
    let judges = Shared::new(|| {
        let judge = |target: &String| Ok(Judge::new(remote.get()?, s, source, target));
        targets.iter().map(judge).collect::<Result<Vec<Judge>>>()
    });
    let fresh = !has_rows(open.dir())?;
    let parts = Parts {
        prepare: &|rows: Vec<Row>| {
            let judges = judges.get()?;
            let ask = |(target, judge): (&String, &Judge)| {
                let pairs = Pairs::of(&rows, target, None)?;
                let place = |i: usize| format!("row {}, {}", rows[pairs.owners[i].0].id, pairs.owners[i].1);
                let tickets = judge.ask(&place, &pairs.pairs);
                Ok((pairs, tickets))
            };
            let asked = targets.iter().zip(judges.iter()).map(ask).collect::<Result<Vec<_>>>()?;
            Ok((rows, asked))
        },
        compute: Computing::Here(&mut |(rows, asked): Asked| {
            let judges = judges.get()?;
            let read = |((pairs, tickets), judge): ((Pairs, Vec<Ticket>), &Judge)| {
                Ok(Scored { values: judge.read(&tickets)?, owners: pairs.owners, engine: judge.name() })
            };
            let scored = asked.into_iter().zip(judges.iter()).map(read).collect::<Result<Vec<_>>>()?;
            Ok((rows, scored))
        }),
        finish: &|(rows, scored): (Vec<Row>, Vec<Scored>)| {
            Ok(with_scores(rows, scored, targets, s.aggregate))
        },
        ahead: Remote::ahead(&s.remote),
    };
    let mapped = open.map_parts(&args.rows.input, 1, parts);
    // What was used is written down whatever became of it.
    let used = remote.made().map(|remote: Arc<Remote>| remote.total());
    if fresh
        && let Some(judges) = judges.made()
        && let Err(e) = judges.iter().try_for_each(Judge::check)
    {
        open.discard_rows(&args.rows.input)?;
        return Err(e.context("no score of this run is kept"));
    }
    let summary = mapped?;
    let judges = judges.made();
    let reports = judges.iter().flat_map(|all| all.iter()).map(Judge::report).filter(|r| !r.is_empty());
    summary.made_remotely(Score::NAME, used.transpose()?, &reports.collect::<Vec<_>>().join("; "))
}

/// Whether an earlier run, or another part, has left rows.
fn has_rows(dir: &Path) -> Result<bool> {
    let mut entries = dir.read_dir().with_context(|| format!("list {}", dir.display()))?;
    Ok(entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("rows-"))))
}
