//! `sdrrl score`: a quality score for each translated sentence, without a reference (SDRRL, step 3).
mod judged;

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::error::Error;
use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use super::translate::{sides, translated_sides};
use crate::pipeline::{
    devices::Work,
    identity::{Identity, Inputs},
    overlap::Shared,
    placement::Placement,
    rows::{REMOTE_ROW_FILES, RowArgs, RowStage, dictionary_files, path_for, with_languages},
    stage::{self, Made, Open},
};
use crate::{
    data::{
        alarms::has_content,
        dictionary::Dictionary,
        line_process::LineProcess,
        record::{Row, Scores},
        sentences::sentences,
    },
    device::DeviceChoice,
    models::weights::resolve,
    qe::{
        EncodedPair, PairEncoder, Scorer,
        builtin::BuiltinScorer,
        cometkiwi::{CometKiwi, Files, KiwiText, PUBLISHED},
        command::CommandScorer,
        file::FileScorer,
        similarity::{Similarity, SimilarityText},
    },
    recipe::score::{Aggregate, ScoreEngine, ScoreSettings},
    remote::{Remote, judge::Judge},
};

pub use judged::check;

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

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    stage::run(&mut Score { args }).map(drop)
}

struct Score<'a> {
    args: &'a Args,
}

impl Score<'_> {
    /// A model of all languages is loaded once and scores all of them.
    fn is_model(&self) -> bool {
        matches!(self.args.settings.engine, ScoreEngine::Cometkiwi | ScoreEngine::Similarity)
    }
}

impl RowStage for Score<'_> {
    const NAME: &'static str = "score";
    const FILES: &'static [&'static str] = REMOTE_ROW_FILES;

    fn rows(&self) -> &RowArgs {
        &self.args.rows
    }

    fn identity(&self) -> Result<Identity> {
        let identity = self.args.rows.identity(&self.args.settings)?;
        let s = &self.args.settings;
        check(s)?;
        self.args.placement.stored_if(false, "a scorer")?;
        identity.version_of(s.version_command.as_deref(), &s.command_env)
    }

    fn placement(&self) -> Option<Placement> {
        self.is_model().then_some(self.args.placement)
    }

    fn inputs(&self) -> Result<Inputs> {
        let s = &self.args.settings;
        let (source, targets) = self.args.rows.languages()?;
        let mut inputs = self.args.rows.inputs();
        match s.engine {
            ScoreEngine::Command => {
                for (target, command) in targets.iter().zip(s.command.iter().cycle()) {
                    inputs = inputs.command("the command", &with_languages(command, &source, target));
                }
            }
            ScoreEngine::Builtin | ScoreEngine::File => {
                let what = if s.engine == ScoreEngine::File { "scores" } else { "dictionary" };
                for target in &targets {
                    let path = path_for(&s.file, "score.file", &source, target)?;
                    inputs = inputs.files(dictionary_files(what, &path, target));
                }
            }
            ScoreEngine::Cometkiwi => {
                let files = cometkiwi_files(s)?;
                inputs = inputs.file("model", &files.dir).tokenizer("encoder", &files.tokenizer)?;
            }
            ScoreEngine::Similarity => inputs = inputs.model("model", &similarity_model(s)?)?,
            ScoreEngine::Openai => {}
        }
        Ok(inputs)
    }

    fn run(&mut self, open: &mut Open) -> Result<Made> {
        let (args, s, one) = (self.args, &self.args.settings, self.is_model());
        let (source, targets) = args.rows.languages()?;
        if s.engine == ScoreEngine::Openai {
            return judged::run(args, &source, &targets, open);
        }
        let chunk = if one { 4 * CHUNK } else { CHUNK };
        let encoder = Shared::new(|| encoder(s));
        let work = Work {
            load: &|device| {
                let at = Placement { device, ..args.placement };
                let loaded = if one { &targets[..1] } else { &targets[..] };
                loaded.iter().map(|t| scorer(s, at, &source, t, &encoder)).collect::<Result<Vec<_>>>()
            },
            compute: &|scorers: &mut Vec<Box<dyn Scorer>>, (rows, pairs): (Vec<Row>, Vec<Pairs>)| {
                let scored =
                    |(i, pairs): (usize, Pairs)| pairs.score(scorers[if one { 0 } else { i }].as_mut());
                Ok((rows, pairs.into_iter().enumerate().map(scored).collect::<Result<Vec<_>>>()?))
            },
            end: &|mut scorers: Vec<Box<dyn Scorer>>| {
                scorers.iter_mut().try_for_each(|s| s.finish())?;
                Ok(scorers.iter().map(|s| s.cut()).sum::<usize>())
            },
        };
        let prepare = |rows: Vec<Row>| {
            let encoder = encoder.get()?;
            let encoder = encoder.as_ref().as_ref().map(Encoder::as_dyn);
            let pairs = targets.iter().map(|t| Pairs::of(&rows, t, encoder)).collect::<Result<Vec<_>>>()?;
            Ok((rows, pairs))
        };
        let device = RowStage::placement(self).map_or(DeviceChoice::Cpu, |p| p.device);
        let (mapped, ends) =
            open.map_on((&args.rows.input, chunk), device, &prepare, &work, &|(rows, scored)| {
                Ok(with_scores(rows, scored, &targets, s.aggregate))
            });
        let cut: usize = match ends {
            Ok(ends) => ends.into_iter().sum(),
            Err(e) => {
                open.discard_rows(&args.rows.input)?;
                return Err(e.context("no score of this run is kept"));
            }
        };
        let cut = (cut > 0).then(|| format!("{cut} texts longer than the scorer reads were cut"));
        mapped?.made(Self::NAME, &cut.unwrap_or_default())
    }
}

/// The part of an engine that tokenises.
enum Encoder {
    Cometkiwi(Arc<KiwiText>),
    Similarity(Arc<SimilarityText>),
}

impl Encoder {
    fn as_dyn(&self) -> &dyn PairEncoder {
        match self {
            Encoder::Cometkiwi(text) => text.as_ref(),
            Encoder::Similarity(text) => text.as_ref(),
        }
    }
}

fn encoder(s: &ScoreSettings) -> Result<Option<Encoder>> {
    Ok(match s.engine {
        ScoreEngine::Cometkiwi => Some(Encoder::Cometkiwi(Arc::new(KiwiText::load(&cometkiwi_files(s)?)?))),
        ScoreEngine::Similarity => {
            let text = SimilarityText::load(&similarity_model(s)?, &s.prefix)?;
            Some(Encoder::Similarity(Arc::new(text)))
        }
        _ => None,
    })
}

fn cometkiwi_files(s: &ScoreSettings) -> Result<Files> {
    Files::find(s.model.as_deref().unwrap_or(PUBLISHED), s.encoder.as_deref())
}

fn similarity_model(s: &ScoreSettings) -> Result<PathBuf> {
    let model = s.model.as_ref();
    let needed = "engine `similarity` needs score.model: an XLM-R sentence encoder's directory or hub name";
    resolve(model.ok_or_else(|| Error::setting("score.model", needed))?)
}

/// The scorer of translations from `source` into `target`, loaded.
///
/// # Errors
/// What the engine needs and has not; an endpoint that does not answer; a model, dictionary or file that is missing, damaged or of another kind; a device that is not there.
pub fn open_scorer(
    s: &ScoreSettings,
    placement: Placement,
    source: &str,
    target: &str,
) -> Result<Box<dyn Scorer>> {
    scorer(s, placement, source, target, &Shared::new(|| encoder(s)))
}

fn scorer(
    s: &ScoreSettings,
    placement: Placement,
    source: &str,
    target: &str,
    encoder: &Shared<Option<Encoder>>,
) -> Result<Box<dyn Scorer>> {
    let Placement { dtype, device, .. } = placement;
    match &*encoder.get()? {
        Some(Encoder::Cometkiwi(text)) => {
            let (files, device) = (cometkiwi_files(s)?, device.open()?);
            return Ok(Box::new(CometKiwi::with_text(&files, text.clone(), dtype, &device, s.batch_tokens)?));
        }
        Some(Encoder::Similarity(text)) => {
            let (dir, device) = (similarity_model(s)?, device.open()?);
            return Ok(Box::new(Similarity::with_text(&dir, text.clone(), dtype, &device, s.batch_tokens)?));
        }
        None => {}
    }
    if s.engine == ScoreEngine::Openai {
        let remote = Arc::new(Remote::connect(&s.remote, None)?);
        return Ok(Box::new(Judge::new(remote, s, source, target)));
    }
    if s.engine == ScoreEngine::Command {
        let command = s.command.as_ref();
        let needed = "engine `command` needs score.command";
        let command = command.ok_or_else(|| Error::setting("score.command", needed))?;
        let timeout = Duration::from_secs_f64(s.timeout);
        let process = LineProcess::new(&with_languages(command, source, target), s.protocol, timeout)
            .with_environment(&s.command_env);
        return Ok(Box::new(CommandScorer::new(process)));
    }
    let path = path_for(&s.file, "score.file", source, target)?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(match s.engine {
        ScoreEngine::File => Box::new(FileScorer::load(&path)?),
        _ => Box::new(BuiltinScorer::new(Dictionary::load(&path, s.format)?, &name)),
    })
}

/// The sentence pairs of a chunk in one language, each with the number of its row and its side.
struct Pairs {
    pairs: Vec<(String, String)>,
    owners: Vec<(usize, &'static str)>,
    /// Of each pair, where the engine has an encoder.
    encoded: Vec<EncodedPair>,
}

/// What became of [`Pairs`].
struct Scored {
    values: Vec<f64>,
    owners: Vec<(usize, &'static str)>,
    engine: String,
}

impl Pairs {
    /// Of every translated side of every row: sentence by sentence where both languages have as many sentences, else the side as a whole.
    fn of(rows: &[Row], target: &str, encoder: Option<&dyn PairEncoder>) -> Result<Pairs> {
        let (mut pairs, mut owners) = (vec![], vec![]);
        for (i, row) in rows.iter().enumerate() {
            let t = row.translations.get(target).with_context(|| {
                format!("row {} has no translation into {target}: run `translate` for it first", row.id)
            })?;
            for ((side, text), translation) in sides(row).into_iter().zip(translated_sides(t)) {
                if !has_content(text) || translation.is_empty() {
                    continue;
                }
                let (a, b) = (sentences(text, &row.language), sentences(translation, target));
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
        let mut encoded = vec![];
        if let Some(encoder) = encoder {
            let one = |((a, b), (row, side)): (&(String, String), &(usize, &str))| {
                encoder.encode(a, b).with_context(|| format!("row {}, {side}", rows[*row].id))
            };
            encoded = pairs.par_iter().zip(&owners).map(one).collect::<Result<_>>()?;
        }
        Ok(Pairs { pairs, owners, encoded })
    }

    fn score(self, scorer: &mut dyn Scorer) -> Result<Scored> {
        let (n, engine) = (self.pairs.len(), scorer.name());
        let values = scorer.score_encoded(&self.pairs, &self.encoded)?;
        ensure!(values.len() == n, "{engine} gave {} scores for {n} pairs", values.len());
        Ok(Scored { values, owners: self.owners, engine })
    }
}

/// The rows with their scores in all target languages.
fn with_scores(
    mut rows: Vec<Row>,
    scored: Vec<Scored>,
    targets: &[String],
    aggregate: Aggregate,
) -> Vec<Row> {
    for (target, scored) in targets.iter().zip(scored) {
        insert(&mut rows, scored, target, aggregate);
    }
    rows
}

/// Gives each row its scores.
fn insert(rows: &mut [Row], scored: Scored, target: &str, aggregate: Aggregate) {
    let Scored { values, owners, engine } = scored;
    let mut found: Vec<Scores> =
        rows.iter().map(|_| Scores { engine: engine.clone(), ..Default::default() }).collect();
    for ((row, side), value) in owners.into_iter().zip(values) {
        // Six decimals are more than any scorer means, and keep the rows readable.
        found[row].sentences.entry(side.into()).or_default().push((value * 1e6).round() / 1e6);
    }
    for (row, mut scores) in rows.iter_mut().zip(found) {
        // A judge's answer may hold no number: half a score is none.
        scores.sentences.retain(|_, values| values.iter().all(|value| !value.is_nan()));
        for (side, values) in &scores.sentences {
            let value = match aggregate {
                Aggregate::Mean => values.iter().sum::<f64>() / values.len() as f64,
                Aggregate::Min => values.iter().copied().fold(f64::INFINITY, f64::min),
            };
            scores.sides.insert(side.clone(), value);
        }
        row.scores.insert(target.to_string(), scores);
    }
}
