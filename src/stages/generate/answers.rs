//! Rows with the model's answers in them.
use std::path::Path;

use anyhow::{Context, Result};

use super::{Args, asked, best};
use crate::{
    data::{
        alarms::{self, answer_alarms},
        conversation::Prompt,
        record::{Answer, Row},
        tally::OnBadRow,
    },
    device::DeviceChoice,
    error::Error,
    infer::{answerer::Answerer, generation_config::GenerationConfig},
    models::weights::resolve,
    pipeline::{
        devices::{Computing, Job, Work, on_devices},
        interrupt::interrupted,
        placement::Placement,
    },
    recipe::generate::{GenerateEngine, GenerateSettings},
    remote::Remote,
    report::out::note,
};

/// Answers the questions of a file, some at a time; `sink` is told of them in their order, and `stopped` is the error after a signal. Returns what it took, where
/// somebody counts that.
pub(super) fn answer_all(
    args: &Args,
    rows: &[Row],
    stopped: &dyn Fn() -> Error,
    sink: &mut dyn FnMut(Vec<Row>) -> Result<()>,
) -> Result<String> {
    let remote = match args.settings.engine {
        GenerateEngine::Local => None,
        GenerateEngine::Openai => Some(Remote::connect(&args.settings.remote, None)?),
    };
    let chunk = match remote {
        None => chunk_rows(&args.settings),
        Some(_) => 2 * Remote::ahead(&args.settings.remote),
    };
    let job = |(i, rows): (usize, &[Row])| Job {
        rows: i * chunk..i * chunk + rows.len(),
        about: (),
        job: if interrupted() { Err(stopped().into()) } else { Ok(rows.to_vec()) },
    };
    let mut jobs = rows.chunks(chunk).enumerate().map(job);
    // Rows in folders are resumed, and say so; a file is begun anew.
    let mut sink = |_, (), answered: Result<Vec<Row>>| {
        sink(if interrupted() { answered.map_err(|_| stopped())? } else { answered? })
    };
    let Some(remote) = remote else {
        let work = Work {
            load: &|device| load(args, device),
            compute: &|answerer: &mut Answerer, rows| answer_rows(answerer, rows, args),
            end: &|_| Ok(()),
        };
        let (done, _) = on_devices(args.placement.device, &work, |mut c| c.each(&mut jobs, &mut sink));
        return done.map(|()| String::new());
    };
    let mut ask = |rows: Vec<Row>| {
        let asked: Vec<_> = rows.into_iter().map(|row| asked::ask(&remote, row, args)).collect();
        asked.into_iter().map(|asked| asked::answered(asked, args)).collect()
    };
    Computing::Here(&mut ask).each(&mut jobs, &mut sink)?;
    Ok(format!("; {}", remote.total()?.0))
}

fn model_of(args: &Args) -> Result<&str> {
    args.model.as_deref().context("engine `local` needs --model")
}

pub(super) fn load(args: &Args, device: DeviceChoice) -> Result<Answerer> {
    let placement = Placement { device, ..args.placement };
    let answerer =
        Answerer::load(model_of(args)?, args.adapter.as_deref(), placement, &args.settings.template)?;
    let options = (&args.settings).into();
    answerer.check_settings(&options)?;
    best::check(&args.settings, answerer.sampling(&options).temperature)?;
    Ok(answerer)
}

/// Rows that are asked between two writes: a few batches of samples.
pub(super) fn chunk_rows(s: &GenerateSettings) -> usize {
    (s.batch_rows.max(1) * 4).div_ceil(s.samples.max(1))
}

/// What is wrong with `samples`, as far as settings and the model's generation_config.json tell.
///
/// # Errors
/// [`Error::Setting`](crate::Error::Setting): several samples of a model that answers greedily; a generation_config.json that cannot be read.
pub fn check_samples(model: &str, settings: &GenerateSettings) -> Result<()> {
    let own = GenerationConfig::from_model(&resolve(model)?)?;
    let temperature = settings.temperature.or(own.temperature).unwrap_or(0.0);
    best::check(settings, temperature)
}

pub(super) fn answer_rows(answerer: &Answerer, mut rows: Vec<Row>, args: &Args) -> Result<Vec<Row>> {
    let path = model_of(args)?;
    let name = Path::new(path).file_name().map(|n| n.to_string_lossy().into_owned());
    let model = name.unwrap_or_else(|| path.to_string());
    let options = (&args.settings).into();
    // A row that the model cannot take is marked, so that the others go on.
    let mut asked = vec![];
    for (i, row) in rows.iter_mut().enumerate() {
        match answerer.check(&row.prompt(), &options).with_context(|| row.place()) {
            Ok(()) => asked.push(i),
            Err(e) if args.settings.on_bad_row == OnBadRow::Skip => {
                leave_out(row, &model, &e);
            }
            Err(e) => return Err(e.context(SKIP)),
        }
    }
    let samples = args.settings.samples.max(1);
    let ids: Vec<String> = asked
        .iter()
        .flat_map(|&i| (0..samples).map(|n| best::sample_id(&rows[i].id, n)).collect::<Vec<_>>())
        .collect();
    let questions: Vec<_> =
        ids.iter().enumerate().map(|(k, id)| (id.as_str(), rows[asked[k / samples]].prompt())).collect();
    let mut replies = answerer.answer(&questions, &options, &mut |_| {})?.into_iter();
    for i in asked {
        let drawn = replies.by_ref().take(samples).map(|reply| Answer {
            text: reply.text,
            model: model.clone(),
            finish: reply.finish.name().into(),
            tokens: reply.ids.len(),
            ids: reply.ids,
            ..Answer::default()
        });
        choose(&mut rows[i], drawn.collect(), &args.settings);
    }
    Ok(rows)
}

/// What to do about a row that cannot be asked.
pub(super) const SKIP: &str = "--on-bad-row skip leaves such rows out";

/// Marks a row that `model` cannot be asked, so that the others go on.
pub(super) fn leave_out(row: &mut Row, model: &str, why: &anyhow::Error) {
    note!("generate: row {} is left out: {why:#}", row.id);
    let alarms = vec![alarms::UNANSWERABLE.into()];
    row.answer = Some(Answer { model: model.into(), finish: "skipped".into(), alarms, ..Answer::default() });
}

/// Gives each sample its alarms, and the row the best of them.
pub(super) fn choose(row: &mut Row, mut drawn: Vec<Answer>, s: &GenerateSettings) {
    let prompt = Prompt { system: s.system.as_deref(), ..row.prompt() };
    for answer in &mut drawn {
        // Whatever a server calls another end (`content_filter`), the answer is not whole.
        let finish = if answer.finish == "stop" { "stop" } else { "length" };
        answer.alarms = answer_alarms(&prompt, &answer.text, finish, &row.language, s.copied_share);
    }
    row.answer = best::of(drawn, s.best);
}
