//! `sdrrl translate`: questions and answers into each target language (SDRRL, step 2).
mod asked;
mod texts;

use std::{path::Path, rc::Rc, time::Duration};

use anyhow::{Context, Result};
use rayon::prelude::*;

use crate::infer::answerer::{AnswerOptions, Answerer};
use crate::pipeline::{
    devices::Work,
    identity::{Identity, Inputs},
    overlap::Shared,
    placement::Placement,
    rows::{REMOTE_ROW_FILES, RowArgs, RowStage, dictionary_files, named_file, path_for, with_languages},
    stage::{self, Made, Open},
};
use crate::{
    data::{
        conversation::Prompt,
        dictionary::Dictionary,
        line_process::LineProcess,
        record::{Row, Translation},
    },
    device::DeviceChoice,
    models::{
        m2m100::{BeamParams, GenerateOptions},
        weights::resolve,
    },
    mt::{
        Translator,
        command::CommandTranslator,
        dictionary::DictionaryTranslator,
        file::FileTranslator,
        nllb::{Happened, Nllb, NllbText, NllbTranslator, SentencePart},
        segment::sentences_of,
        self_translate::SelfTranslator,
    },
    recipe::translate::{TranslateEngine, TranslateSettings},
};

pub use asked::check;
use texts::{from_file, with_translations};
pub use texts::{sides, translated_sides};

/// Arguments of `translate`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Rows
    #[command(flatten)]
    pub rows: RowArgs,
    /// Model of engine `self`
    #[arg(long)]
    pub model: Option<String>,
    /// Data types and device
    #[command(flatten)]
    pub placement: Placement,
    /// How
    #[command(flatten)]
    pub settings: TranslateSettings,
}

/// Rows that are translated together: enough sentences to keep another program busy.
const CHUNK: usize = 64;

/// Who translates in one direction.
enum Engine {
    Sentences(Box<dyn Translator>),
    Nllb(NllbTranslator),
    Rows(FileTranslator),
}

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    args.rows.warn_of_languages()?;
    stage::run(&mut Translate { args }).map(drop)
}

struct Translate<'a> {
    args: &'a Args,
}

impl Translate<'_> {
    /// The other engines compute nothing on a device.
    fn computes(&self) -> bool {
        matches!(self.args.settings.engine, TranslateEngine::Nllb | TranslateEngine::Itself)
    }
}

impl RowStage for Translate<'_> {
    const NAME: &'static str = "translate";
    const FILES: &'static [&'static str] = REMOTE_ROW_FILES;

    fn rows(&self) -> &RowArgs {
        &self.args.rows
    }

    fn identity(&self) -> Result<Identity> {
        let identity = self.args.rows.identity(&self.args.settings)?;
        self.args.placement.stored_if(self.args.settings.engine == TranslateEngine::Itself, "this engine")?;
        let s = &self.args.settings;
        check(s)?;
        identity.version_of(s.version_command.as_deref(), &s.command_env)
    }

    fn placement(&self) -> Option<Placement> {
        self.computes().then_some(self.args.placement)
    }

    fn inputs(&self) -> Result<Inputs> {
        let (source, targets) = self.args.rows.languages()?;
        inputs(self.args, &source, &targets)
    }

    fn run(&mut self, open: &mut Open) -> Result<Made> {
        let args = self.args;
        let (source, targets) = args.rows.languages()?;
        if args.settings.engine == TranslateEngine::Openai {
            return asked::run(args, &source, &targets, open);
        }
        // Whatever an engine needs is loaded once, and only if there is something to translate.
        let text = Shared::new(|| NllbText::load(&resolve(translator(&args.settings)?)?));
        let is_nllb = args.settings.engine == TranslateEngine::Nllb;
        let work = Work {
            load: &|device| Loaded::new(args, device, &source, &targets, &text),
            compute: &|loaded: &mut Loaded, prepared: Prepared| {
                let made =
                    (0..targets.len()).map(|i| loaded.translate(i, &prepared)).collect::<Result<_>>()?;
                Ok((prepared.rows, made))
            },
            end: &|mut loaded: Loaded| {
                loaded.finish()?;
                Ok(loaded.nllb.map(|nllb| nllb.happened()).unwrap_or_default())
            },
        };
        let (mapped, ends) = open.map_on(
            (&args.rows.input, CHUNK),
            RowStage::placement(self).map_or(DeviceChoice::Cpu, |p| p.device),
            &|rows| prepare(rows, if is_nllb { Some(&text) } else { None }, &source),
            &work,
            &|(rows, made): (Vec<Row>, Vec<TranslatedBy>)| with_translations(rows, made, &source, &targets),
        );
        let ends = match ends {
            Ok(ends) => ends,
            Err(e) => {
                open.discard_rows(&args.rows.input)?;
                return Err(e.context("no translation of this run is kept"));
            }
        };
        mapped?.made(Self::NAME, &ends.into_iter().sum::<Happened>().to_string())
    }
}

/// The files that decide what an engine says.
fn inputs(args: &Args, source: &str, targets: &[String]) -> Result<Inputs> {
    let s = &args.settings;
    let mut inputs = args.rows.inputs();
    match s.engine {
        TranslateEngine::Dictionary => {
            for target in targets {
                let path = path_for(&s.file, "translate.file (the phrase table)", source, target)?;
                inputs = inputs.files(dictionary_files("phrase table", &path, target));
            }
        }
        TranslateEngine::File => {
            for target in targets {
                let path = path_for(&s.file, "translate.file (the translated rows)", source, target)?;
                inputs = inputs.file(&named_file("translations", &path, target), &path);
            }
        }
        TranslateEngine::Itself => {
            let model = args.model.as_ref().context("engine `self` needs --model")?;
            inputs = inputs.model("model", &resolve(model)?)?.template(&s.template);
        }
        TranslateEngine::Openai => {}
        TranslateEngine::Nllb => inputs = inputs.model("translator", &resolve(translator(s)?)?)?,
        TranslateEngine::Command => {
            for (target, command) in targets.iter().zip(s.command.iter().cycle()) {
                inputs = inputs.command("the command", &with_languages(command, source, target));
            }
        }
    }
    Ok(inputs)
}

/// Rows on their way to the engines.
struct Prepared {
    rows: Vec<Row>,
    /// Of all rows' sides.
    sentences: Vec<String>,
    /// Of each sentence, for engine `nllb`: they are the same for all targets.
    pieces: Vec<Vec<SentencePart>>,
}

fn prepare(rows: Vec<Row>, text: Option<&Shared<NllbText>>, source: &str) -> Result<Prepared> {
    let of_row = |row: &Row| sentences_of(&sides(row).map(|(_, text)| text), source);
    let by_row: Vec<Vec<String>> = rows.iter().map(of_row).collect();
    let mut pieces = vec![];
    if let Some(text) = text {
        let text = text.get()?;
        let language = text.language(source)?;
        let sentences: Vec<(&Row, &String)> =
            rows.iter().zip(&by_row).flat_map(|(row, s)| s.iter().map(move |s| (row, s))).collect();
        let one = |(row, sentence): &(&Row, &String)| {
            text.pieces(sentence, language).with_context(|| format!("row {}: {sentence:?}", row.id))
        };
        pieces = sentences.par_iter().map(one).collect::<Result<_>>()?;
    }
    let sentences = by_row.into_iter().flatten().collect();
    Ok(Prepared { rows, sentences, pieces })
}

/// What an engine made of a chunk in one language.
enum TranslatedBy {
    Rows(Vec<Translation>),
    Sentences { translated: Vec<String>, scores: Vec<f64>, engine: String },
}

/// The engines of all target languages.
struct Loaded<'a> {
    args: &'a Args,
    source: &'a str,
    targets: &'a [String],
    /// Engine `self`.
    answerer: Option<Answerer>,
    engines: Vec<Engine>,
    nllb: Option<Rc<Nllb>>,
}

impl<'a> Loaded<'a> {
    fn new(
        args: &'a Args,
        device: DeviceChoice,
        source: &'a str,
        targets: &'a [String],
        text: &Shared<NllbText>,
    ) -> Result<Loaded<'a>> {
        let (s, at) = (&args.settings, Placement { device, ..args.placement });
        let mut loaded = Loaded { args, source, targets, answerer: None, engines: vec![], nllb: None };
        if s.engine == TranslateEngine::Itself {
            let model = args.model.as_deref().unwrap_or_default();
            loaded.answerer = Some(Answerer::load(model, None, at, &s.template)?);
        } else if s.engine == TranslateEngine::Nllb {
            let dir = resolve(translator(s)?)?;
            let nllb = Nllb::with_text(&dir, text.get()?, at.dtype, &at.device.open()?)?;
            let engine = |target: &String| nllb_engine(&nllb, s, &dir, source, target);
            loaded.engines = targets.iter().map(engine).collect::<Result<_>>()?;
            loaded.nllb = Some(nllb);
        } else {
            loaded.engines = targets.iter().map(|t| engine(s, source, t)).collect::<Result<_>>()?;
        }
        Ok(loaded)
    }

    /// After the last chunk.
    fn finish(&mut self) -> Result<()> {
        self.engines.iter_mut().try_for_each(|engine| match engine {
            Engine::Sentences(translator) => translator.finish(),
            Engine::Nllb(_) | Engine::Rows(_) => Ok(()),
        })
    }

    /// A chunk into target language `i`.
    fn translate(&mut self, i: usize, prepared: &Prepared) -> Result<TranslatedBy> {
        let Prepared { rows, sentences, pieces } = prepared;
        let made = |translator: &dyn Translator, translated: Vec<String>| TranslatedBy::Sentences {
            translated,
            scores: translator.scores().to_vec(),
            engine: translator.name(),
        };
        if let Some(answerer) = &self.answerer {
            let mut own = itself(answerer, self.args, self.source, &self.targets[i]);
            let translated = own.translate(sentences)?;
            return Ok(made(&own, translated));
        }
        Ok(match &mut self.engines[i] {
            Engine::Sentences(translator) => {
                let translated = translator.translate(sentences)?;
                made(translator.as_ref(), translated)
            }
            Engine::Nllb(translator) => {
                let translated = translator.translate_pieces(sentences, pieces)?;
                made(translator, translated)
            }
            Engine::Rows(file) => {
                TranslatedBy::Rows(rows.iter().map(|r| from_file(file, r)).collect::<Result<_>>()?)
            }
        })
    }
}

fn engine(s: &TranslateSettings, source: &str, target: &str) -> Result<Engine> {
    Ok(match s.engine {
        TranslateEngine::File => {
            Engine::Rows(FileTranslator::load(&path_for(&s.file, "translate.file", source, target)?)?)
        }
        TranslateEngine::Command => {
            let command = s.command.as_ref().context("engine `command` needs translate.command")?;
            let timeout = Duration::from_secs_f64(s.timeout);
            let process = LineProcess::new(&with_languages(command, source, target), s.protocol, timeout)
                .with_environment(&s.command_env);
            Engine::Sentences(Box::new(CommandTranslator::new(process, s.unknown_mark)))
        }
        _ => {
            let path = path_for(&s.file, "translate.file", source, target)?;
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let table = Dictionary::load(&path, s.format)?;
            Engine::Sentences(Box::new(DictionaryTranslator::new(table, &name, target)))
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
) -> Result<Engine> {
    let file = BeamParams::from_dir(dir)?;
    let params = BeamParams {
        num_beams: s.num_beams.unwrap_or(file.num_beams),
        length_penalty: s.length_penalty.unwrap_or(file.length_penalty),
        early_stopping: s.early_stopping.unwrap_or(file.early_stopping),
        no_repeat_ngram_size: s.no_repeat_ngram_size.unwrap_or(file.no_repeat_ngram_size),
        max_length: s.max_length.unwrap_or(file.max_length),
        forced_eos: file.forced_eos,
    };
    let options = GenerateOptions { batch_rows: s.batch_rows, batch_tokens: s.batch_tokens };
    Ok(Engine::Nllb(NllbTranslator::new(nllb, source, target, params, options)?))
}

fn itself<'a>(answerer: &'a Answerer, args: &Args, source: &str, target: &str) -> SelfTranslator<'a> {
    let options = AnswerOptions {
        max_new_tokens: Some(args.settings.max_new_tokens),
        temperature: Some(0.0),
        ..Default::default()
    };
    let ask = move |prompts: &[String]| -> Result<Vec<String>> {
        let questions: Vec<_> = prompts.iter().map(|p| ("", Prompt::new(None, p, ""))).collect();
        Ok(answerer.answer(&questions, &options, &mut |_| {})?.into_iter().map(|a| a.text).collect())
    };
    let model = args.model.as_deref().unwrap_or_default();
    SelfTranslator::new(Box::new(ask), model, &args.settings.prompt, source, target)
}
