//! What can be wrong with a recipe, found before its first stage runs: everything that headers, names and a few rows tell. Nothing is computed or written.
mod room;
mod tasks;

pub(super) use room::training as training_memory;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    data::{
        alarms::{ALARMS, has_content},
        conversation::Prompt,
        dictionary::Dictionary,
        languages,
        record::Row,
        template::{ChatTemplate, TrainOn},
        tokenizer::Tokenizer,
    },
    error::Error,
    models::{
        m2m100::config::M2m100Config,
        transformer::{
            config::Config, experts::NUMBERED, ids::FUSED, lora::all_linears, weights::Transformer,
        },
        weights::{WeightSource, resolve},
    },
    pipeline::{placement::Placement, rows::path_for},
    qe::{cometkiwi, similarity},
    recipe::{
        Recipe,
        assemble::{AssembleSettings, PairType, Variant},
        generate::GenerateEngine,
        score::{ScoreEngine, ScoreSettings},
        train::{Method, TrainSettings},
        translate::{TranslateEngine, TranslateSettings},
    },
    report::out::note,
    stages::{assemble, generate, score, train, translate},
};

/// Rows that a template is tried on.
const TRIED: usize = 3;
/// A file up to this size is read whole; of a longer one the beginning and the name must do.
const READ: u64 = 64 << 20;

/// All that is wrong, each thing in a line of its own.
///
/// # Errors
/// [`Error::Setting`], [`Error::BadInput`], [`Error::NotFound`] ... of the only mistake; of several the first one's kind is lost, and the message has all.
pub(super) fn recipe(r: &Recipe, placement: Placement) -> Result<()> {
    let asks = [
        r.generate.engine == GenerateEngine::Openai,
        r.translate.engine == TranslateEngine::Openai,
        r.score.engine == ScoreEngine::Openai,
    ];
    if !r.remote.is_unset() && asks == [false; 3] {
        note!("warning: [remote] is set, and no stage has engine = \"openai\"");
    }
    let mut wrong = mistakes(r, placement);
    match wrong.len() {
        0 => Ok(()),
        1 => Err(wrong.remove(0)),
        n => {
            let lines: Vec<String> = wrong.iter().map(|e| format!("\n  {e:#}")).collect();
            bail!("{n} mistakes:{}", lines.concat())
        }
    }
}

/// The same as a list, each once.
pub(super) fn mistakes(r: &Recipe, placement: Placement) -> Vec<anyhow::Error> {
    let mut wrong = Mistakes::default();
    wrong.take("source-language", languages::require(&r.source_language));
    for target in &r.target_languages {
        wrong.take("target-languages", languages::require(target));
        let same = languages::same_language(target, &r.source_language);
        let message = || format!("target-languages: {target} is the source language");
        wrong.take("", if same { Err(Error::setting("target-languages", message()).into()) } else { Ok(()) });
    }
    if placement.device.is_cuda() {
        let there = placement.device.check_there();
        wrong.take("device", there.and_then(|()| placement.device.first().open()));
    }
    wrong.take("train", train::check_devices(placement));
    for path in &r.questions {
        wrong.take("questions", exists("questions", path));
    }
    let asked = r.questions.iter().all(|path| path.exists());
    wrong.take("train", r.train.check());
    wrong.take("train", r.check_alignment());
    wrong.take("pack", r.pack.check(r.train.objective.rows()));
    if let Some(model) = wrong.take("model", model(r)) {
        wrong.take("base-dtype", blocks(r, placement));
        wrong.take("memory", room::memory(r, placement));
        wrong.take("train", room::answers(r, &model));
        let aligned = r.train.aligning().map(|a| a.layer_of(model.num_hidden_layers));
        wrong.take("train", aligned.transpose());
        if asked {
            wrong.take("template", templates(r, &model));
        }
    }
    if r.examples.is_none() {
        stages(r, asked, &mut wrong);
    }
    if !r.eval.tasks.is_empty() {
        tasks::check(&r.eval, &mut wrong);
    }
    wrong.take("work", room::disk(r));
    wrong.end()
}

/// The stages from generation to the training examples.
fn stages(r: &Recipe, asked: bool, wrong: &mut Mistakes) {
    wrong.take("generate", generate::check(&r.generate));
    if r.generate.samples > 1 && r.generate.engine == GenerateEngine::Local {
        wrong.take("generate", generate::check_samples(&r.model, &r.generate));
    }
    wrong.take("translate", translate::check(&r.translate));
    wrong.take("score", score::check(&r.score));
    for target in &r.target_languages {
        let pair = (r.source_language.as_str(), target.as_str());
        wrong.take("translate", translation(&r.translate, pair));
        wrong.take("score", scoring(&r.score, pair));
        wrong.take("code-switch", code_switch(r, pair));
        wrong.take("parallel", parallel(r, pair));
    }
    wrong.take("filter", filter(r));
    for variant in &r.variants {
        let settings = AssembleSettings { variant: *variant, ..r.assemble.clone() };
        wrong.take("assemble", assemble::check(&settings));
    }
    if asked {
        wrong.take("variants", gold(r));
    }
}

#[derive(Default)]
struct Mistakes(Vec<anyhow::Error>);

impl Mistakes {
    fn take<T>(&mut self, section: &str, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(e) if section.is_empty() || format!("{e:#}").starts_with(section) => {
                self.0.push(e);
                None
            }
            Err(e) => {
                self.0.push(e.context(section.to_string()));
                None
            }
        }
    }

    fn end(mut self) -> Vec<anyhow::Error> {
        let mut seen = HashSet::new();
        self.0.retain(|e| seen.insert(format!("{e:#}")));
        self.0
    }
}

/// The model's configuration; its tensors' names and those of an adapter are checked.
fn model(r: &Recipe) -> Result<Config> {
    train::check_headers(&r.model, None, &r.train)?;
    let path = resolve(&r.model)?;
    if r.train.method == Method::Scratch {
        return Config::from_dir(&path);
    }
    let (config, _) = WeightSource::open(&path)?;
    check_targets(&r.train)?;
    Ok(config)
}

/// The model has what `base-dtype` and `activations` ask for.
fn blocks(r: &Recipe, placement: Placement) -> Result<()> {
    placement.stored_if(r.train.method == Method::Lora, "training of all weights")?;
    Transformer::check_blocks(&resolve(&r.model)?, placement)
}

fn check_targets(s: &TrainSettings) -> Result<()> {
    let mut known = all_linears();
    known.extend(FUSED.iter().map(|fused| fused.module().to_string()));
    known.extend(NUMBERED.map(String::from));
    let named =
        |t: &str| t.eq_ignore_ascii_case("all-linear") || known.iter().any(|k| t.ends_with(k.as_str()));
    if let Some(name) = s.lora_targets.iter().find(|t| s.method == Method::Lora && !named(t)) {
        let message =
            format!("train.lora-targets: `{name}` is no module of this model; known are {}", known.join(" "));
        bail!(Error::setting("train.lora-targets", message));
    }
    Ok(())
}

pub(super) fn is_short(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.len() <= READ)
}

fn exists(key: &str, path: &Path) -> Result<()> {
    let missing = || {
        format!(
            "{key}: {} is not there: give a path relative to the recipe or to the current folder",
            path.display()
        )
    };
    ensure!(path.exists(), Error::not_found(path, missing()));
    Ok(())
}

/// The questions as rows where they are few, else one that is made up.
fn some_rows(r: &Recipe) -> Result<Vec<Row>> {
    if r.questions.is_empty() || !r.questions.iter().all(|path| is_short(path)) {
        return Ok(vec![Row { id: "1".into(), instruction: "What is it?".into(), ..Row::default() }]);
    }
    let (rows, _) = generate::read_questions(&r.questions, &r.source_language, &r.generate)?;
    Ok(rows.into_iter().take(TRIED).collect())
}

/// Variant `gold` needs an answer of the data set to every question.
fn gold(r: &Recipe) -> Result<()> {
    if !r.variants.contains(&Variant::Gold) || !r.questions.iter().all(|path| is_short(path)) {
        return Ok(());
    }
    let (rows, _) = generate::read_questions(&r.questions, &r.source_language, &r.generate)?;
    let without = rows.iter().find(|row| !has_content(&row.output));
    without.map_or(Ok(()), |row| {
        let place = row.place();
        let message =
            format!("variants: gold learns the data set's answers, and {place} has none (`output`)");
        bail!(Error::bad_input(place, message))
    })
}

/// Both templates render what the run will give them.
fn templates(r: &Recipe, config: &Config) -> Result<()> {
    if let Some(examples) = &r.examples {
        exists("examples", examples)?;
    }
    let rows = some_rows(r)?;
    let tokenizer = Tokenizer::load(&resolve(&r.model)?)?;
    let ask = ChatTemplate::load(&r.generate.template, &tokenizer).context("generate.template")?;
    let learn = ChatTemplate::load(&r.pack.template, &tokenizer).context("pack.template")?;
    for row in &rows {
        let prompt = Prompt { system: r.generate.system.as_deref(), ..row.prompt() };
        let tokens = ask.encode_prompt(&tokenizer, &prompt);
        let tokens = tokens.with_context(|| format!("generate.template: row {}", row.id))?;
        if let Some(&token) = tokens.iter().find(|t| **t as usize >= config.vocab_size) {
            bail!(
                "the tokenizer has a token {token}, and the model {} of them: does it belong to the model?",
                config.vocab_size
            );
        }
        let prompt = Prompt { system: r.pack.system.as_deref(), ..row.prompt() };
        learn
            .encode(&tokenizer, &prompt, "An answer.", TrainOn::Last)
            .with_context(|| format!("pack.template: row {}", row.id))?;
    }
    Ok(())
}

/// A dictionary that is there and, if it is not long, can be read.
fn dictionary(
    path: &Option<PathBuf>,
    key: &str,
    format: crate::data::dictionary::DictionaryFormat,
    (source, target): (&str, &str),
) -> Result<()> {
    let path = path_for(path, key, source, target)?;
    exists(key, &path)?;
    if is_short(&path) {
        Dictionary::load(&path, format).with_context(|| key.to_string())?;
    }
    Ok(())
}

/// The program that a command line begins with.
fn program(command: &Option<String>, key: &str) -> Result<()> {
    let unset = || Error::setting(key, format!("{key} is not set: engine `command` needs it"));
    let command = command.as_ref().ok_or_else(unset)?;
    let plain = |word: &&str| !word.contains('=');
    let Some(word) = command.split_whitespace().find(plain) else {
        bail!(Error::setting(key, format!("{key} is empty: a program with its arguments was expected")))
    };
    // What a shell makes of anything else is its own business.
    if !word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c)) {
        return Ok(());
    }
    let builtin =
        ["cat", "cd", "echo", "eval", "exec", "printf", "read", "set", "test", "while", "for", "if", "true"];
    let found = match word.contains('/') {
        true => Path::new(word).exists(),
        false => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            builtin.contains(&word) || std::env::split_paths(&path).any(|dir| dir.join(word).exists())
        }
    };
    let message = || format!("{key}: the program `{word}` is not there: install it, or give its path");
    ensure!(found, Error::not_found(Path::new(word), message()));
    Ok(())
}

fn translation(s: &TranslateSettings, pair: (&str, &str)) -> Result<()> {
    match s.engine {
        TranslateEngine::Dictionary => dictionary(&s.file, "translate.file", s.format, pair),
        TranslateEngine::File => {
            exists("translate.file", &path_for(&s.file, "translate.file", pair.0, pair.1)?)
        }
        TranslateEngine::Command => program(&s.command, "translate.command"),
        TranslateEngine::Nllb => {
            let unset = "translate.translator is not set: engine `nllb` needs a directory or a name such as facebook/nllb-200-distilled-600M";
            let name =
                s.translator.as_deref().ok_or_else(|| Error::setting("translate.translator", unset))?;
            M2m100Config::from_dir(&resolve(name)?).context("translate.translator").map(drop)
        }
        TranslateEngine::Itself | TranslateEngine::Openai => Ok(()),
    }
}

fn scoring(s: &ScoreSettings, pair: (&str, &str)) -> Result<()> {
    match s.engine {
        ScoreEngine::Builtin => dictionary(&s.file, "score.file", s.format, pair),
        ScoreEngine::File => exists("score.file", &path_for(&s.file, "score.file", pair.0, pair.1)?),
        ScoreEngine::Command => program(&s.command, "score.command"),
        ScoreEngine::Cometkiwi => {
            let name = s.model.as_deref().unwrap_or(cometkiwi::PUBLISHED);
            cometkiwi::Files::find(name, s.encoder.as_deref()).context("score.model").map(drop)
        }
        ScoreEngine::Similarity => {
            let unset = "score.model is not set: engine `similarity` needs a sentence encoder's directory or hub name";
            let name = s.model.as_deref().ok_or_else(|| Error::setting("score.model", unset))?;
            similarity::SimilarityText::load(&resolve(name)?, &s.prefix).context("score.model").map(drop)
        }
        ScoreEngine::Openai => Ok(()),
    }
}

fn code_switch(r: &Recipe, pair: (&str, &str)) -> Result<()> {
    let s = &r.code_switch;
    use PairType::{SwitchedSource, SwitchedTarget, SwitchedTargetSource, SwitchedTargetTarget};
    let switched = [SwitchedSource, SwitchedTarget, SwitchedTargetSource, SwitchedTargetTarget];
    let back = r.assemble.pairs.iter().any(|p| switched[2..].contains(p));
    let paired = r.variants.contains(&Variant::Sdrrl) || r.variants.contains(&Variant::Gold);
    if paired && back && !s.both_sides {
        let message = "assemble.pairs has CT>T or CT>S, which need code-switch.both-sides = true";
        bail!(Error::setting("code-switch.both-sides", message));
    }
    dictionary(&s.dictionary, "code-switch.dictionary", s.format, pair)
}

fn parallel(r: &Recipe, (source, target): (&str, &str)) -> Result<()> {
    let s = &r.parallel;
    let message = || {
        format!(
            "parallel.min-words is {} and parallel.max-words {}: no sentence has both",
            s.min_words, s.max_words
        )
    };
    ensure!(s.min_words <= s.max_words, Error::setting("parallel.min-words", message()));
    for (key, path) in [("parallel.file", &s.file), ("parallel.target-file", &s.target_file)] {
        if path.is_some() {
            exists(key, &path_for(path, key, source, target)?)?;
        }
    }
    Ok(())
}

fn filter(r: &Recipe) -> Result<()> {
    if let Some(alarm) = r.filter.ignore_alarms.iter().find(|a| !ALARMS.contains(&a.as_str())) {
        let message = format!("filter.ignore-alarms: `{alarm}` is none of {}", ALARMS.join(", "));
        bail!(Error::setting("filter.ignore-alarms", message));
    }
    // All but `command` and `file`, whose scores may be anything, are shares.
    let share = !matches!(r.score.engine, ScoreEngine::Command | ScoreEngine::File);
    if let Some(tau) = r.filter.tau.filter(|tau| share && !(0.0..=1.0).contains(tau)) {
        let message = format!(
            "filter.tau is {tau}, and scores of engine `{:?}` are from 0 to 1: no row, or every row, would be kept",
            r.score.engine
        );
        bail!(Error::setting("filter.tau", message.to_lowercase()));
    }
    Ok(())
}
