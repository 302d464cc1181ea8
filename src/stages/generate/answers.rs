//! Rows with the model's answers in them.
use std::path::Path;

use anyhow::{Context, Result};

use super::{Args, best};
use crate::{
    data::{
        alarms::{self, answer_alarms},
        conversation::Prompt,
        record::{Answer, Row},
        tally::OnBadRow,
    },
    infer::{answerer::Answerer, generation_config::GenerationConfig},
    models::weights::resolve,
    recipe::generate::GenerateSettings,
    report::out::note,
};

pub(super) fn load(args: &Args) -> Result<Answerer> {
    let answerer =
        Answerer::load(&args.model, args.adapter.as_deref(), args.placement, &args.settings.template)?;
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
    let name = Path::new(&args.model).file_name().map(|n| n.to_string_lossy().into_owned());
    let model = name.unwrap_or_else(|| args.model.clone());
    let options = (&args.settings).into();
    // A row that the model cannot take is marked, so that the others go on.
    let mut asked = vec![];
    for (i, row) in rows.iter_mut().enumerate() {
        match answerer.check(&row.prompt(), &options).with_context(|| row.place()) {
            Ok(()) => asked.push(i),
            Err(e) if args.settings.on_bad_row == OnBadRow::Skip => {
                note!("generate: row {} is left out: {e:#}", row.id);
                let alarms = vec![alarms::UNANSWERABLE.into()];
                row.answer = Some(Answer {
                    model: model.clone(),
                    finish: "skipped".into(),
                    alarms,
                    ..Default::default()
                });
            }
            Err(e) => return Err(e.context("--on-bad-row skip leaves such rows out")),
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
        let row = &mut rows[i];
        let prompt = Prompt { system: args.settings.system.as_deref(), ..row.prompt() };
        let drawn = replies.by_ref().take(samples).map(|reply| {
            let (finish, share) = (reply.finish.name(), args.settings.copied_share);
            let alarms = answer_alarms(&prompt, &reply.text, finish, &row.language, share);
            Answer {
                text: reply.text,
                model: model.clone(),
                finish: finish.into(),
                tokens: reply.ids.len(),
                ids: reply.ids,
                alarms,
                choice: None,
            }
        });
        let drawn = drawn.collect();
        row.answer = best::of(drawn, args.settings.best);
    }
    Ok(rows)
}
