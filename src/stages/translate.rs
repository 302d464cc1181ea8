//! `sdrrl translate`: questions and answers into each target language (SDRRL, step 2).
use std::{
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{
    generate::Answerer,
    placement::Placement,
    rows::{RowArgs, dictionary_files, path_for, say, with_languages},
};
use crate::{
    data::{
        alarms::translation_alarms,
        dictionary::Dictionary,
        line_process::LineProcess,
        record::{Row, Translation},
    },
    models::{
        m2m100::{BeamParams, GenerateOptions},
        weights::resolve,
    },
    mt::{
        Translator,
        command::CommandTranslator,
        dictionary::DictionaryTranslator,
        file::FileTranslator,
        nllb::{Nllb, NllbTranslator},
        segment::translate_texts,
        self_translate::SelfTranslator,
    },
    recipe::{
        generate::GenerateSettings,
        translate::{TranslateEngine, TranslateSettings},
    },
    report::progress::Progress,
};

/// Arguments of `translate`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Rows
    #[command(flatten)]
    pub rows: RowArgs,
    /// Model of engine `self`
    #[arg(long)]
    pub model: Option<String>,
    /// How the weights are held and where it computes
    #[command(flatten)]
    pub placement: Placement,
    /// How
    #[command(flatten)]
    pub settings: TranslateSettings,
}

/// Rows that are translated together: enough sentences to keep another program busy.
const CHUNK: usize = 64;

/// Who translates in one direction.
enum Engine<'a> {
    Sentences(Box<dyn Translator + 'a>),
    Rows(FileTranslator),
}

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    let (source, targets) = args.rows.languages()?;
    let mut inputs: Vec<(String, PathBuf)> = vec![];
    for target in &targets {
        match args.settings.engine {
            TranslateEngine::Dictionary => {
                let path =
                    path_for(&args.settings.file, "translate.file (the phrase table)", source, target)?;
                inputs.extend(dictionary_files(&format!("phrases-{target}"), &path));
            }
            TranslateEngine::File => {
                let path =
                    path_for(&args.settings.file, "translate.file (the translated rows)", source, target)?;
                inputs.push((format!("translations-{target}"), path));
            }
            TranslateEngine::Itself => {
                let model = args.model.as_ref().context("engine `self` needs --model")?;
                inputs = vec![("model".into(), resolve(model)?)];
            }
            TranslateEngine::Nllb => {
                inputs = vec![("translator".into(), resolve(translator(&args.settings)?)?)]
            }
            TranslateEngine::Command => {}
        }
    }
    // Whatever an engine needs is loaded once, and only if there is something to translate.
    let mut answerer: Option<Answerer> = None;
    let mut engines: Vec<Engine> = vec![];
    let mut nllb: Option<Rc<Nllb>> = None;
    let total = crate::data::row_shard::RowSet::open(&args.rows.input)?.len();
    let mut progress = Progress::new("translate", total);
    let mut first = true;
    let summary = args.rows.map("translate", &args.settings, inputs, CHUNK, &mut |mut rows| {
        if std::mem::take(&mut first) {
            if args.settings.engine == TranslateEngine::Itself {
                let model = args.model.as_deref().unwrap_or_default();
                answerer = Some(Answerer::load(model, None, args.placement, &args.settings.template)?);
            } else if args.settings.engine == TranslateEngine::Nllb {
                let dir = resolve(translator(&args.settings)?)?;
                let loaded = Nllb::load(&dir, args.placement.dtype, &args.placement.device.open()?)?;
                let engine = |target: &&str| nllb_engine(&loaded, &args.settings, &dir, source, target);
                engines = targets.iter().map(engine).collect::<Result<_>>()?;
                nllb = Some(loaded);
            } else {
                engines = targets.iter().map(|t| engine(&args.settings, source, t)).collect::<Result<_>>()?;
            }
        }
        for (i, target) in targets.iter().enumerate() {
            match (&answerer, engines.get_mut(i)) {
                (Some(a), _) => {
                    let mut own = itself(a, args, source, target);
                    translate_rows(&mut own, &mut rows, source, target)?
                }
                (None, Some(engine)) => translate_rows(engine, &mut rows, source, target)?,
                (None, None) => {}
            }
        }
        progress.advance(rows.len());
        Ok(rows)
    })?;
    progress.finish();
    say("translate", &summary, &nllb.map_or(String::new(), |n| n.report()));
    Ok(())
}

fn engine(s: &TranslateSettings, source: &str, target: &str) -> Result<Engine<'static>> {
    Ok(match s.engine {
        TranslateEngine::File => {
            Engine::Rows(FileTranslator::load(&path_for(&s.file, "translate.file", source, target)?)?)
        }
        TranslateEngine::Command => {
            let command = s.command.as_ref().context("engine `command` needs translate.command")?;
            ensure!(
                s.timeout > 0.0 && s.timeout.is_finite(),
                "translate.timeout is {}: seconds above 0 were expected",
                s.timeout
            );
            let timeout = Duration::from_secs_f64(s.timeout.min(1e6));
            let process = LineProcess::new(&with_languages(command, source, target), s.protocol, timeout);
            Engine::Sentences(Box::new(CommandTranslator::new(process, s.unknown_mark)))
        }
        _ => {
            let path = path_for(&s.file, "translate.file", source, target)?;
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let table = Dictionary::load(&path, s.format)?;
            Engine::Sentences(Box::new(DictionaryTranslator::new(table, &name)))
        }
    })
}

fn translator(settings: &TranslateSettings) -> Result<&str> {
    settings.translator.as_deref().context(
        "engine `nllb` needs translate.translator: a directory or a name such as facebook/nllb-200-distilled-600M (licence CC-BY-NC-4.0)",
    )
}

fn nllb_engine(
    nllb: &Rc<Nllb>,
    s: &TranslateSettings,
    dir: &Path,
    source: &str,
    target: &str,
) -> Result<Engine<'static>> {
    let file = BeamParams::from_dir(dir)?;
    let params = BeamParams {
        num_beams: s.num_beams.unwrap_or(file.num_beams),
        length_penalty: s.length_penalty.unwrap_or(file.length_penalty),
        early_stopping: s.early_stopping.unwrap_or(file.early_stopping),
        no_repeat_ngram_size: s.no_repeat_ngram_size.unwrap_or(file.no_repeat_ngram_size),
        max_length: s.max_length.unwrap_or(file.max_length),
    };
    let options = GenerateOptions { batch_rows: s.batch_rows, batch_tokens: s.batch_tokens };
    Ok(Engine::Sentences(Box::new(NllbTranslator::new(nllb, source, target, params, options)?)))
}

fn itself<'a>(answerer: &'a Answerer, args: &'a Args, source: &str, target: &str) -> Engine<'a> {
    let settings = GenerateSettings {
        max_new_tokens: args.settings.max_new_tokens,
        temperature: Some(0.0),
        ..Default::default()
    };
    let ask = move |prompts: &[String]| -> Result<Vec<String>> {
        let questions: Vec<_> = prompts.iter().map(|p| ("", p.as_str(), "")).collect();
        Ok(answerer.answer(&questions, &settings, &mut |_| {})?.into_iter().map(|a| a.0).collect())
    };
    let model = args.model.as_deref().unwrap_or_default();
    Engine::Sentences(Box::new(SelfTranslator::new(Box::new(ask), model, source, target)))
}

fn translate_rows(engine: &mut Engine, rows: &mut [Row], source: &str, target: &str) -> Result<()> {
    let translated: Vec<Translation> = match engine {
        Engine::Rows(file) => rows
            .iter()
            .map(|row| {
                let t = file.get(&row.id)?;
                Ok(Translation {
                    instruction: t.instruction.clone(),
                    input: t.input.clone(),
                    answer: t.answer.clone(),
                    output: t.output.clone(),
                    engine: file.name().into(),
                    ..Default::default()
                })
            })
            .collect::<Result<_>>()?,
        Engine::Sentences(translator) => {
            let texts: Vec<&str> = rows.iter().flat_map(sides).map(|(_, text)| text).collect();
            let out = translate_texts(translator.as_mut(), &texts)?;
            let name = translator.name();
            out.chunks_exact(4)
                .map(|side| Translation {
                    instruction: side[0].text.clone(),
                    input: side[1].text.clone(),
                    answer: side[2].text.clone(),
                    output: side[3].text.clone(),
                    engine: name.clone(),
                    scores: ["instruction", "input", "answer", "output"]
                        .iter()
                        .zip(side)
                        .filter(|(_, text)| !text.scores.is_empty())
                        .map(|(name, text)| (name.to_string(), text.scores.clone()))
                        .collect(),
                    ..Default::default()
                })
                .collect()
        }
    };
    for (row, mut t) in rows.iter_mut().zip(translated) {
        for ((side, text), other) in sides(row).iter().zip([&t.instruction, &t.input, &t.answer, &t.output]) {
            let alarms = translation_alarms(text, other, source, target);
            if !alarms.is_empty() {
                t.alarms.insert(side.to_string(), alarms);
            }
        }
        row.translations.insert(target.to_string(), t);
    }
    Ok(())
}

/// The sides of a row that are translated and scored, by name.
pub fn sides(row: &Row) -> [(&'static str, &str); 4] {
    [
        ("instruction", &row.instruction),
        ("input", &row.input),
        ("answer", row.answer.as_ref().map_or("", |a| &a.text)),
        ("output", &row.output),
    ]
}

/// The translated sides, in the same order.
pub fn translated_sides(t: &Translation) -> [&str; 4] {
    [&t.instruction, &t.input, &t.answer, &t.output]
}
