//! `sdrrl score`: a quality score for each translated sentence, without a reference (SDRRL, step 3).
use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    placement::Placement,
    rows::{RowArgs, dictionary_files, path_for, say, with_languages},
    translate::{sides, translated_sides},
};
use crate::{
    data::{
        alarms::has_content,
        dictionary::Dictionary,
        line_process::LineProcess,
        record::{Row, Scores},
        sentences::sentences,
    },
    models::weights::resolve,
    qe::{
        Scorer,
        builtin::BuiltinScorer,
        cometkiwi::{CometKiwi, Files},
        command::CommandScorer,
        file::FileScorer,
        similarity::Similarity,
    },
    recipe::score::{Aggregate, ScoreEngine, ScoreSettings},
    report::progress::Progress,
};

/// Arguments of `score`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Rows
    #[command(flatten)]
    pub rows: RowArgs,
    /// How the weights of a model are held and where it computes
    #[command(flatten)]
    pub placement: Placement,
    /// How
    #[command(flatten)]
    pub settings: ScoreSettings,
}

/// Rows that are scored together; engines that batch by tokens take more, so that a batch holds sentences of like length.
const CHUNK: usize = 64;
/// The hub's name of the published model.
const COMETKIWI: &str = "Unbabel/wmt22-cometkiwi-da";

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    let (source, targets) = args.rows.languages()?;
    let s = &args.settings;
    let mut inputs: Vec<(String, PathBuf)> = vec![];
    match s.engine {
        ScoreEngine::Command => {}
        ScoreEngine::Builtin | ScoreEngine::File => {
            for target in &targets {
                let path = path_for(&s.file, "score.file", source, target)?;
                inputs.extend(dictionary_files(&format!("file-{target}"), &path));
            }
        }
        ScoreEngine::Cometkiwi => {
            let files = Files::find(s.model.as_deref().unwrap_or(COMETKIWI), s.encoder.as_deref())?;
            inputs.push(("model".into(), files.dir));
            inputs.push(("encoder".into(), files.tokenizer));
        }
        ScoreEngine::Similarity => inputs.push(("model".into(), similarity_model(s)?)),
    }
    // A model of all languages is loaded once and scores all of them.
    let one = matches!(s.engine, ScoreEngine::Cometkiwi | ScoreEngine::Similarity);
    let chunk = if one { 4 * CHUNK } else { CHUNK };
    let mut settings = serde_json::to_value(s)?;
    if one {
        settings["placement"] = args.placement.to_string().into();
    }
    let mut scorers: Vec<Box<dyn Scorer>> = vec![];
    let mut progress = Progress::new("score", crate::data::row_shard::RowSet::open(&args.rows.input)?.len());
    let summary = args.rows.map("score", &settings, inputs, chunk, &mut |mut rows| {
        if scorers.is_empty() {
            let loaded = if one { &targets[..1] } else { &targets };
            scorers = loaded.iter().map(|t| scorer(args, source, t)).collect::<Result<_>>()?;
        }
        for (i, target) in targets.iter().enumerate() {
            let scorer = &mut scorers[if one { 0 } else { i }];
            score_rows(scorer.as_mut(), &mut rows, target, s.aggregate)?;
        }
        progress.advance(rows.len());
        Ok(rows)
    })?;
    progress.finish();
    let cut: usize = scorers.iter().map(|s| s.cut()).sum();
    let detail =
        if cut > 0 { format!("{cut} texts longer than the scorer reads were cut") } else { String::new() };
    say("score", &summary, &detail);
    Ok(())
}

fn similarity_model(s: &ScoreSettings) -> Result<PathBuf> {
    let model = s.model.as_ref();
    resolve(model.context(
        "engine `similarity` needs score.model: an XLM-R sentence encoder's directory or hub name",
    )?)
}

fn scorer(args: &Args, source: &str, target: &str) -> Result<Box<dyn Scorer>> {
    let s = &args.settings;
    let Placement { dtype, device } = args.placement;
    if s.engine == ScoreEngine::Cometkiwi {
        let files = Files::find(s.model.as_deref().unwrap_or(COMETKIWI), s.encoder.as_deref())?;
        return Ok(Box::new(CometKiwi::load(&files, dtype, &device.open()?, s.batch_tokens)?));
    }
    if s.engine == ScoreEngine::Similarity {
        let model = similarity_model(s)?;
        return Ok(Box::new(Similarity::load(&model, &s.prefix, dtype, &device.open()?, s.batch_tokens)?));
    }
    if s.engine == ScoreEngine::Command {
        let command = s.command.as_ref().context("engine `command` needs score.command")?;
        ensure!(
            s.timeout > 0.0 && s.timeout.is_finite(),
            "score.timeout is {}: seconds above 0 were expected",
            s.timeout
        );
        let timeout = Duration::from_secs_f64(s.timeout.min(1e6));
        let process = LineProcess::new(&with_languages(command, source, target), s.protocol, timeout);
        return Ok(Box::new(CommandScorer::new(process)));
    }
    let path = path_for(&s.file, "score.file", source, target)?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(match s.engine {
        ScoreEngine::File => Box::new(FileScorer::load(&path)?),
        _ => Box::new(BuiltinScorer::new(Dictionary::load(&path, s.format)?, &name)),
    })
}

/// Scores every translated side of every row. Sentence by sentence where both languages have as many sentences; else the side as a whole.
fn score_rows(scorer: &mut dyn Scorer, rows: &mut [Row], target: &str, aggregate: Aggregate) -> Result<()> {
    let mut pairs: Vec<(String, String)> = vec![];
    let mut owners: Vec<(usize, &'static str)> = vec![];
    for (i, row) in rows.iter().enumerate() {
        let t = row.translations.get(target).with_context(|| {
            format!("row {} has no translation into {target}: run `translate` for it first", row.id)
        })?;
        for ((side, text), translation) in sides(row).into_iter().zip(translated_sides(t)) {
            if !has_content(text) || translation.is_empty() {
                continue;
            }
            let (a, b) = (sentences(text), sentences(translation));
            let parts: Vec<(&str, &str)> = if a.len() == b.len() && !a.is_empty() {
                a.into_iter().zip(b).collect()
            } else {
                vec![(text, translation)]
            };
            for (a, b) in parts {
                pairs.push((a.to_string(), b.to_string()));
                owners.push((i, side));
            }
        }
    }
    let values = scorer.score(&pairs)?;
    ensure!(
        values.len() == pairs.len(),
        "{} gave {} scores for {} pairs",
        scorer.name(),
        values.len(),
        pairs.len()
    );
    let mut found: Vec<Scores> =
        rows.iter().map(|_| Scores { engine: scorer.name(), ..Default::default() }).collect();
    for ((row, side), value) in owners.into_iter().zip(values) {
        // Six decimals are more than any scorer means, and keep the rows readable.
        found[row].sentences.entry(side.into()).or_default().push((value * 1e6).round() / 1e6);
    }
    for (row, mut scores) in rows.iter_mut().zip(found) {
        for (side, values) in &scores.sentences {
            let value = match aggregate {
                Aggregate::Mean => values.iter().sum::<f64>() / values.len() as f64,
                Aggregate::Min => values.iter().copied().fold(f64::INFINITY, f64::min),
            };
            scores.sides.insert(side.clone(), value);
        }
        row.scores.insert(target.to_string(), scores);
    }
    Ok(())
}
