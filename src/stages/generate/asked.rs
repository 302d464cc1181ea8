//! Engine `openai`: a model behind an endpoint answers. Rows are asked ahead of the one that is written next, so that all connections are busy, and each is
//! written as soon as it and those before it are answered.
use std::path::Path;

use anyhow::{Result, ensure};

use super::{Args, Generate, alarms, answers, best, whole_question};
use crate::{
    data::{
        conversation::Prompt,
        random::RowRandom,
        record::{Answer, Row},
        tally::OnBadRow,
    },
    error::Error,
    pipeline::{
        devices::Computing,
        overlap::{Parts, Shared},
        stage::{Made, Open, Stage},
        work_dir::REMOTE,
    },
    recipe::generate::{GenerateEngine, GenerateSettings},
    remote::{self, Remote, Sampling, Ticket},
    report::out,
};

/// Tokens of an answer where neither settings nor a generation_config.json say how many.
const TOKENS: usize = 256;

/// What is wrong with the settings of a remote engine; nothing is contacted.
///
/// # Errors
/// [`Error::Setting`].
pub fn check(s: &GenerateSettings) -> Result<()> {
    if s.engine == GenerateEngine::Local {
        return remote::refuse_settings(&s.remote);
    }
    let local = [
        ("min-new-tokens", s.min_new_tokens.is_some()),
        ("repetition-penalty", s.repetition_penalty.is_some()),
        ("no-repeat-ngram-size", s.no_repeat_ngram_size.is_some()),
    ];
    for (key, given) in local {
        let message = format!(
            "{key} goes with engine `local`: servers have other names for it, which extra-body can give"
        );
        ensure!(!given, Error::setting(key, message));
    }
    best::check(s, s.temperature.unwrap_or(0.0))?;
    remote::check(&s.remote)
}

/// The same, with what stands beside the settings.
pub(super) fn check_args(args: &Args) -> Result<()> {
    let local = args.settings.engine == GenerateEngine::Local;
    let both =
        "a model of this program was given, and engine `openai` has its own (remote-model): leave one out";
    ensure!(local || (args.model.is_none() && args.adapter.is_none()), Error::setting("model", both));
    let none = "engine `local` needs --model: endpoint goes with --engine openai";
    ensure!(!local || args.model.is_some(), Error::setting("model", none));
    args.placement.stored_if(local, "a model behind an endpoint")?;
    check(&args.settings)
}

/// A row, and its samples to come.
type Asked = (Row, Vec<Ticket>);

/// Answers the rows of `questions`.
pub(super) fn run(args: &Args, questions: &Path, open: &mut Open) -> Result<Made> {
    let (s, record) = (&args.settings.remote, open.path(REMOTE));
    let remote = Shared::new(|| Remote::connect(s, Some(&record)));
    let parts = Parts {
        prepare: &|rows: Vec<Row>| {
            let remote = remote.get()?;
            Ok(rows.into_iter().map(|row| ask(&remote, row, args)).collect::<Vec<Asked>>())
        },
        compute: Computing::Here(&mut |asked: Vec<Asked>| {
            asked.into_iter().map(|asked| answered(asked, args)).collect::<Result<Vec<Row>>>()
        }),
        finish: &Ok,
        ahead: Remote::ahead(s),
    };
    let mapped = open.map_parts(questions, 1, parts);
    // What was used is written down whatever became of it.
    let used = remote.made().map(|remote| remote.total());
    let summary = mapped?;
    summary.made_remotely(Generate::NAME, used.transpose()?, &alarms(open.dir(), &summary)?)
}

/// Sends a row's question, once for each sample.
pub(super) fn ask(remote: &Remote, row: Row, args: &Args) -> Asked {
    let s = &args.settings;
    let prompt = Prompt { system: s.system.as_deref(), ..row.prompt() };
    let turns = prompt.turns();
    let temperature = s.temperature.unwrap_or(0.0);
    let one = |sample: usize| {
        // Below 2^31, which every server takes.
        let draw =
            || RowRandom::new(s.seed, Generate::NAME, &best::sample_id(&row.id, sample)).next_u64() >> 33;
        let sampling = Sampling {
            max_new_tokens: s.max_new_tokens.unwrap_or(TOKENS),
            temperature,
            top_p: s.top_p,
            top_k: s.top_k,
            min_p: s.min_p,
            seed: (temperature > 0.0).then(draw),
        };
        remote.ask(row.place(), &turns, &sampling)
    };
    let tickets = (0..s.samples.max(1)).map(one).collect();
    (row, tickets)
}

/// Waits for a row's samples. The server has no ids for their tokens, so that training encodes their text.
pub(super) fn answered((mut row, tickets): Asked, args: &Args) -> Result<Row> {
    let s = &args.settings;
    let mut drawn = vec![];
    for ticket in &tickets {
        match ticket.wait() {
            Ok(remote::Answer { text, finish, model, tokens, .. }) => {
                drawn.push(Answer { text, finish, model, tokens, ..Answer::default() });
            }
            Err(e) if e.alone && s.on_bad_row == OnBadRow::Skip => {
                let model = s.remote.remote_model.as_deref().unwrap_or_default();
                answers::leave_out(&mut row, model, &e.error);
                return Ok(row);
            }
            Err(e) if e.alone => return Err(e.error.context(answers::SKIP)),
            Err(e) => return Err(e.error),
        }
    }
    answers::choose(&mut row, drawn, s);
    Ok(row)
}

/// The answers to the questions of the command line.
pub(super) fn print_answers(args: &Args) -> Result<()> {
    let remote = Remote::connect(&args.settings.remote, None)?;
    for (i, question) in args.prompt.iter().enumerate() {
        let instruction = whole_question(question)?.trim().to_string();
        let row = Row { id: (i + 1).to_string(), instruction, ..Row::default() };
        let row = answered(ask(&remote, row, args), args)?;
        out::text(format_args!("{}\n", row.answer.unwrap_or_default().text));
    }
    Ok(())
}
