//! `sdrrl assemble`: rows and parallel pairs become training examples (SDRRL, step 6); also the paper's two baselines.
mod thin;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail, ensure};
use serde_json::json;

use crate::pipeline::{
    identity::{Identity, Inputs},
    manifest::{Counts, Manifest},
    rows::{ROW_FILES, apart, open_rows},
    stage::{self, Made, Open, Stage},
};
use thin::Thinning;

use crate::{
    data::{
        alarms::has_content,
        languages,
        random::RowRandom,
        record::{CodeSwitched, Example, ParallelPair, Row},
    },
    error::Error,
    mt::self_translate::translation_prompt,
    recipe::assemble::{AssembleSettings, PairType, Variant},
    report::out::say,
};

/// Arguments of `assemble`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Rows written by `code-switch` or `filter`
    #[arg(long)]
    pub input: PathBuf,
    /// Folder written by `parallel`; without it there are no parallel sentences
    #[arg(long)]
    pub parallel: Option<PathBuf>,
    /// Folder to write the examples to
    #[arg(long)]
    pub out: PathBuf,
    /// Language of the questions
    #[arg(long, default_value = "en")]
    pub source_language: String,
    /// Languages to teach
    #[arg(long, value_delimiter = ',', required = true)]
    pub target_languages: Vec<String>,
    /// How
    #[command(flatten)]
    pub settings: AssembleSettings,
}

/// What is wrong with settings, as far as they tell by themselves.
///
/// # Errors
/// [`Error::Setting`]: prompts without a text, caps and shares that mean nothing; a share of held-out rows that leaves none.
pub fn check(s: &AssembleSettings) -> Result<()> {
    ensure!(
        (0.0..1.0).contains(&s.validation),
        "assemble.validation is {}: a share below 1 was expected",
        s.validation
    );
    ensure!(
        !s.translation_prompts.is_empty() && s.translation_prompts.iter().all(|p| p.contains("{text}")),
        "assemble.translation-prompts: every prompt needs {{text}}"
    );
    Thinning::of(s).map(drop)
}

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    let s = &args.settings;
    check(s)?;
    let thinning = Thinning::of(s)?;
    let source = languages::code(&args.source_language)?;
    let targets: Vec<String> =
        args.target_languages.iter().map(|l| languages::code(l)).collect::<Result<_>>()?;
    let whole = matches!(s.variant, Variant::Sdrrl | Variant::Gold);
    let takes_parallel = s.use_parallel && (whole || s.parallel_in_baselines);
    let parallel = args.parallel.as_deref().filter(|_| takes_parallel);
    stage::run(&mut Assemble { args, source, targets, parallel, thinning }).map(drop)
}

struct Assemble<'a> {
    args: &'a Args,
    source: String,
    targets: Vec<String>,
    parallel: Option<&'a Path>,
    thinning: Thinning,
}

impl Stage for Assemble<'_> {
    const NAME: &'static str = "assemble";
    const FILES: &'static [&'static str] = ROW_FILES;

    fn label(&self) -> String {
        format!("assemble {}", self.args.settings.variant.name())
    }

    fn out(&self) -> &Path {
        &self.args.out
    }

    fn check_folder(&self, _: &Manifest) -> Result<()> {
        apart(&self.args.input, self.out())
    }

    fn identity(&self) -> Result<Identity> {
        Identity::of(&self.args.settings)?.with("languages", json!([self.source, self.targets]))
    }

    fn inputs(&self) -> Result<Inputs> {
        Ok(Inputs::new().file("rows", &self.args.input).maybe("parallel", self.parallel))
    }

    fn run(&mut self, open: &mut Open) -> Result<Made> {
        let s = &self.args.settings;
        let (mut examples, mut guards, [mut rows, mut silent, mut untranslated]) = (vec![], vec![], [0; 3]);
        self.check_gold()?;
        self.say_left_out();
        for row in open_rows(&self.args.input)?.iter() {
            let row = row?;
            let before = examples.len();
            untranslated += from_row(&row, &self.targets, s, &mut examples)?;
            rows += 1;
            silent += usize::from(examples.len() == before);
            guards.extend(guard(&row, s));
        }
        if let Some(dir) = self.parallel {
            for pair in open_rows(dir)?.iter() {
                from_pair(&pair?, s, &mut examples);
                rows += 1;
            }
        }
        ensure!(
            !examples.is_empty(),
            "{}: no example is left: {}",
            self.label(),
            match s.variant {
                Variant::Sdrrl | Variant::Gold => "lower filter.tau, or look at the verdicts' reasons",
                _ => "the data set has no answers (`output`) of its own",
            }
        );
        let left_out = self.thinning.thin(&mut examples)?;
        let counts = count(&examples);
        let listed: Vec<String> = counts.iter().map(|(k, n)| format!("{k} {n}")).collect();
        say!(
            "{}: {} examples: {}; {silent} of {rows} rows gave none",
            self.label(),
            examples.len(),
            listed.join(", ")
        );
        if untranslated > 0 {
            say!(
                "{}: {untranslated} examples left out: earlier turns of their conversations are not translated",
                self.label()
            );
        }
        left_out.iter().for_each(|(reason, n)| say!("{}: {n} examples left out: {reason}", self.label()));
        examples.append(&mut guards);
        open.write_rows(&examples, 10_000)?;
        let count = counts.values().sum::<usize>();
        let reason = match s.variant {
            Variant::Sdrrl => "no translation kept, or an alarm in the answer",
            Variant::Sft => "no output in the data set",
            Variant::Gold => "no translation kept",
            Variant::TranslateThenSft => "no output in the data set, or its translation was not kept",
        };
        let rows = Counts { read: rows, written: rows - silent, ..Counts::default() };
        let mut summary = json!({"examples": count, "pairs": counts, "untranslated-turns": untranslated});
        if !left_out.is_empty() {
            summary["left-out"] = json!(left_out);
        }
        Ok(Made::new(summary)?.counting(rows.dropping(reason, silent)))
    }
}

impl Assemble<'_> {
    /// Parallel sentences that are there, and that a baseline does not take.
    fn say_left_out(&self) {
        if self.args.settings.use_parallel && self.parallel.is_none() && self.args.parallel.is_some() {
            say!("{}: without the parallel sentences (parallel-in-baselines takes them)", self.label());
        }
    }

    /// Variant `gold` compares answers, so that every question needs one.
    fn check_gold(&self) -> Result<()> {
        if self.args.settings.variant != Variant::Gold {
            return Ok(());
        }
        let (mut missing, mut first) = (0, None);
        for row in open_rows(&self.args.input)?.iter() {
            let row: Row = row?;
            if !has_content(&row.output) {
                missing += 1;
                first.get_or_insert_with(|| row.place());
            }
        }
        let first = first.unwrap_or_default();
        let message = || {
            format!(
                "variant gold: {missing} rows have no answer (`output`) of the data set, {first} first: leave them out of the questions, or the variant"
            )
        };
        ensure!(missing == 0, Error::bad_input(&first, message()));
        Ok(())
    }
}

fn count(examples: &[Example]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for e in examples {
        let key = if e.split == "validation" { "validation".to_string() } else { e.pair.clone() };
        *counts.entry(key).or_default() += 1;
    }
    counts
}

/// By source row, so that no sibling of a held-out row is trained on; the same rows in every variant.
fn split(row: &str, s: &AssembleSettings) -> String {
    let held_out = RowRandom::new(s.seed, "split", row).uniform() < s.validation;
    if held_out { "validation".into() } else { "train".into() }
}

/// A held-out question with the model's own answer, whatever the variant trains on: its loss says whether the source language is kept.
fn guard(row: &Row, s: &AssembleSettings) -> Option<Example> {
    let answer = row.answer.as_ref().filter(|a| a.alarms.is_empty() && has_content(&a.text))?;
    (split(&row.id, s) == "validation" && has_content(&row.instruction)).then(|| Example {
        id: format!("{}/guard/{}", row.id, row.language),
        row: row.id.clone(),
        pair: PairType::SourceSource.name().into(),
        split: "source".into(),
        question_language: row.language.clone(),
        answer_language: row.language.clone(),
        turns: row.turns.clone(),
        instruction: row.instruction.clone(),
        input: row.input.clone(),
        output: answer.text.clone(),
        output_ids: answer.ids.clone(),
        gold: false,
        weight: 1.0,
    })
}

/// One side of an example.
struct Side<'a> {
    language: &'a str,
    instruction: &'a str,
    input: &'a str,
}

/// The examples of a row; how many were left out because what stands before their question is not translated.
fn from_row(row: &Row, targets: &[String], s: &AssembleSettings, out: &mut Vec<Example>) -> Result<usize> {
    let source = Side { language: &row.language, instruction: &row.instruction, input: &row.input };
    let answer = row.answer.as_ref();
    let gold = s.variant == Variant::Gold;
    let own = if gold { row.output.as_str() } else { answer.map_or("", |a| a.text.as_str()) };
    let own_ids = answer.filter(|_| !gold).map_or(vec![], |a| a.ids.clone());
    let mut untranslated = 0;
    let mut push = |pair: &str, target: &str, question: &Side, language: &str, answer: &str| {
        if !has_content(question.instruction) || !has_content(answer) {
            return;
        }
        if !row.turns.is_empty() && question.language != row.language {
            untranslated += 1;
            return;
        }
        let crossing = s.answer_in && question.language != language;
        let ask = format!(" Answer in {}.", languages::name(language));
        // The request stands at the very end of the question.
        let (mut instruction, mut input) = (question.instruction.to_string(), question.input.to_string());
        if crossing {
            if input.is_empty() { instruction.push_str(&ask) } else { input.push_str(&ask) }
        }
        out.push(Example {
            id: format!("{}/{pair}/{target}", row.id),
            row: row.id.clone(),
            pair: pair.into(),
            split: split(&row.id, s),
            question_language: question.language.into(),
            answer_language: language.into(),
            turns: row.turns.clone(),
            instruction,
            input,
            output: answer.into(),
            output_ids: if answer == own { own_ids.clone() } else { vec![] },
            gold,
            weight: 1.0,
        });
    };
    if s.variant == Variant::Sft {
        push("sft", &row.language, &source, &row.language, &row.output);
        return Ok(0);
    }
    let sound = gold || answer.is_some_and(|a| a.alarms.is_empty());
    if s.variant != Variant::TranslateThenSft && sound && s.pairs.contains(&PairType::SourceSource) {
        push("S>S", &row.language, &source, &row.language, own);
    }
    for target in targets {
        let (Some(t), Some(verdict)) = (row.translations.get(target), row.verdicts.get(target)) else {
            bail!("row {} has no verdict for {target}: run `filter` for it first", row.id)
        };
        let translated = Side { language: target, instruction: &t.instruction, input: &t.input };
        if s.variant == Variant::TranslateThenSft {
            if verdict.keep_output {
                push("translate-then-sft", target, &translated, target, &t.output);
            }
            continue;
        }
        let (keep, translation) =
            if gold { (verdict.keep_output, &t.output) } else { (verdict.keep, &t.answer) };
        if !keep {
            continue;
        }
        let mixed = row.code_switched.get(target);
        for pair in s.pairs.iter().filter(|p| **p != PairType::SourceSource) {
            let question = match pair {
                PairType::SourceSource | PairType::SourceTarget => Some(&source),
                PairType::TargetTarget | PairType::TargetSource => Some(&translated),
                _ => None,
            };
            let switched = mixed.and_then(|m| switched_side(*pair, m, &source, &translated));
            let Some(question) = question.or(switched.as_ref()) else { continue };
            let to_target = pair.name().ends_with(">T");
            let (language, text) = if to_target {
                (target.as_str(), translation.as_str())
            } else {
                (row.language.as_str(), own)
            };
            push(pair.name(), target, question, language, text);
        }
    }
    Ok(untranslated)
}

/// The code-switched question of a pair type, if it differs from the question that it was made from.
fn switched_side<'a>(
    pair: PairType,
    m: &'a CodeSwitched,
    source: &Side<'a>,
    translated: &Side<'a>,
) -> Option<Side<'a>> {
    let (instruction, input, from) = match pair {
        PairType::SwitchedSource | PairType::SwitchedTarget => (&m.instruction, &m.input, source),
        _ => (&m.translated_instruction, &m.translated_input, translated),
    };
    let changed =
        !instruction.is_empty() && (instruction.as_str(), input.as_str()) != (from.instruction, from.input);
    changed.then_some(Side { language: from.language, instruction, input })
}

/// A parallel pair as two translation instructions.
fn from_pair(pair: &ParallelPair, s: &AssembleSettings, out: &mut Vec<Example>) {
    let directions = [
        (&pair.source_language, &pair.target_language, &pair.source, &pair.target),
        (&pair.target_language, &pair.source_language, &pair.target, &pair.source),
    ];
    for (from, to, text, translation) in directions {
        let mut random = RowRandom::new(s.seed, "translation-prompt", &format!("{}\t{from}", pair.id));
        let prompt = &s.translation_prompts[random.below(s.translation_prompts.len())];
        out.push(Example {
            id: format!("{}/{from}-{to}", pair.id),
            row: pair.id.clone(),
            pair: "parallel".into(),
            split: split(&pair.id, s),
            question_language: from.clone(),
            answer_language: to.clone(),
            instruction: translation_prompt(prompt, from, to, text),
            turns: vec![],
            input: String::new(),
            output: translation.clone(),
            output_ids: vec![],
            gold: false,
            weight: s.parallel_weight,
        });
    }
}
