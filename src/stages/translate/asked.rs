//! Engine `openai`: a model behind an endpoint translates, sentence by sentence, as engine `self` does.
use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::{Args, Translate, TranslatedBy, sides, with_translations};
use crate::{
    data::{
        conversation::{Role, Turn},
        record::Row,
    },
    error::Error,
    mt::{
        segment::sentences_of,
        self_translate::{first_line, translation_prompt},
    },
    pipeline::{
        devices::Computing,
        overlap::{Parts, Shared},
        rows::RowStage,
        stage::{Made, Open},
        work_dir::REMOTE,
    },
    recipe::translate::{TranslateEngine, TranslateSettings},
    remote::{self, Remote, Sampling, Ticket},
};

/// What is wrong with the settings of the engines that ask a model; nothing is contacted.
///
/// # Errors
/// [`Error::Setting`].
pub fn check(s: &TranslateSettings) -> Result<()> {
    let message = "translate.prompt has no {text}: where the sentence is to stand";
    ensure!(s.prompt.contains("{text}"), Error::setting("translate.prompt", message));
    match s.engine {
        TranslateEngine::Openai => remote::check(&s.remote),
        _ => remote::refuse_settings(&s.remote),
    }
}

/// A row on its way: its sentences, and for each language the translations to come.
type Asked = (Vec<Row>, Vec<String>, Vec<Vec<Ticket>>);

/// Rows are asked about ahead of the one that is written next, so that all connections are busy, and each is written as soon as it and those before it are
/// translated.
pub(super) fn run(args: &Args, source: &str, targets: &[String], open: &mut Open) -> Result<Made> {
    let (s, record) = (&args.settings, open.path(REMOTE));
    let remote = Shared::new(|| Remote::connect(&s.remote, Some(&record)));
    // Answers that did not end by themselves, by how they ended.
    let mut ends = BTreeMap::<String, usize>::new();
    let parts = Parts {
        prepare: &|rows: Vec<Row>| {
            let remote = remote.get()?;
            let place = rows.iter().map(|row| format!("row {}", row.id)).collect::<Vec<_>>().join(", ");
            let texts: Vec<&str> = rows.iter().flat_map(sides).map(|(_, text)| text).collect();
            let sentences = sentences_of(&texts, source);
            let into = |target: &String| ask(&remote, s, &place, source, target, &sentences);
            let asked = targets.iter().map(into).collect();
            Ok((rows, sentences, asked))
        },
        compute: Computing::Here(&mut |(rows, sentences, asked): Asked| {
            let engine = remote.get()?.name();
            let mut wait = |ticket: &Ticket| {
                let answer = ticket.wait().map_err(|e| e.error)?;
                if answer.finish != "stop" {
                    *ends.entry(answer.finish).or_default() += 1;
                }
                Ok(answer.text)
            };
            let read = |tickets: &Vec<Ticket>| {
                let answers = tickets.iter().map(&mut wait).collect::<Result<Vec<String>>>()?;
                let translated = sentences.iter().zip(&answers).map(|(s, a)| first_line(s, a)).collect();
                Ok(TranslatedBy::Sentences { translated, scores: vec![], engine: engine.clone() })
            };
            let made = asked.iter().map(read).collect::<Result<Vec<_>>>()?;
            Ok((rows, made))
        }),
        finish: &|(rows, made): (Vec<Row>, Vec<TranslatedBy>)| with_translations(rows, made, source, targets),
        ahead: Remote::ahead(&s.remote),
    };
    let mapped = open.map_parts(&args.rows.input, 1, parts);
    // What was used is written down whatever became of it.
    let used = remote.made().map(|remote| remote.total());
    let summary = mapped?;
    let ends: Vec<String> = ends.iter().map(|(finish, n)| format!("{n} {finish:?}")).collect();
    let detail = match ends.is_empty() {
        true => String::new(),
        false => format!("answers that ended otherwise than by \"stop\": {}", ends.join(", ")),
    };
    summary.made_remotely(Translate::NAME, used.transpose()?, &detail)
}

/// The translations of sentences to come.
fn ask(
    remote: &Remote,
    s: &TranslateSettings,
    place: &str,
    source: &str,
    target: &str,
    sentences: &[String],
) -> Vec<Ticket> {
    let sampling = Sampling::greedy(s.max_new_tokens);
    let one = |sentence: &String| {
        let prompt = translation_prompt(&s.prompt, source, target, sentence);
        remote.ask(format!("{place}, into {target}"), &[Turn::new(Role::User, &prompt)], &sampling)
    };
    sentences.iter().map(one).collect()
}
