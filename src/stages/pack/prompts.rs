//! Examples of `assemble` become questions for an on-policy objective: each question in a target language (pair T>T) with a second prompt, which shows a teacher
//! the same question in the source language and the answer to it (pair S>S of the same row). For its off-policy form the answer of the T>T stands behind both.
use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::{Args, encode, languages, preferences::Encoder, read_all, within_embedding};
use crate::{
    data::{
        conversation::{Prompt, Role, Turn},
        languages as names,
        placeholders::filled,
        questions::preferences::{Rows, STUDENT, STUDENT_ANSWER, TEACHER, TEACHER_ANSWER},
        record::Example,
        template::TrainOn,
        token_shard::{self, Document},
    },
    error::Error,
    pipeline::{
        manifest::Counts,
        stage::{Made, Open},
        work_dir::TOKENS,
    },
    recipe::{assemble::PairType, pack::TURNS},
    report::out::say,
};

/// The two documents of a question.
type Unit = [Document; 2];

/// Why a row is not among the questions.
const OTHER: &str = "no question in a target language (pair T>T)";
const NO_SOURCE: &str = "no answer in the source language (pair S>S) to show";
const TOO_LONG: &str = "too long";

/// The questions of a split.
#[derive(Default)]
struct Part {
    units: Vec<Document>,
    kept: Vec<Example>,
    /// Questions whose row has no source answer, those that are too long, and other rows.
    without: usize,
    long: usize,
    others: usize,
}

impl Part {
    fn of(split: &str, examples: &[Example], encoder: &Encoder, args: &Args) -> Result<Part> {
        let own = || examples.iter().filter(|e| e.split == split);
        let of_pair = |pair: PairType| own().filter(move |e| e.pair == pair.name());
        let sources = sources(of_pair(PairType::SourceSource))?;
        let questions: Vec<&Example> = of_pair(PairType::TargetTarget).collect();
        let mut part = Part { others: own().count() - questions.len(), ..Part::default() };
        let shown = |e: &&&Example| sources.contains_key(e.row.as_str());
        let asked: Vec<&Example> = questions.iter().filter(shown).copied().collect();
        part.without = questions.len() - asked.len();
        let made: Vec<Result<Option<Unit>>> =
            asked.par_iter().map(|e| unit(e, sources[e.row.as_str()], encoder, args)).collect();
        for (e, made) in asked.into_iter().zip(made) {
            match made.with_context(|| format!("example {}", e.id))? {
                Some(unit) => {
                    part.units.extend(unit);
                    part.kept.push(e.clone());
                }
                None => part.long += 1,
            }
        }
        Ok(part)
    }

    fn about(&self) -> Value {
        let tokens: usize = self.units.iter().map(|d| d.tokens.len()).sum();
        let students = self.units.iter().step_by(2).flat_map(|d| &d.weights);
        let trained = students.filter(|w| **w != 0.0).count();
        let pairs = json!({PairType::TargetTarget.name(): self.kept.len()});
        json!({"documents": self.units.len(), "tokens": tokens, "trained-tokens": trained, "dropped": self.without + self.long, "pairs": pairs})
    }
}

/// Of each row what a teacher is shown; an answer without words shows nothing.
fn sources<'a>(shown: impl Iterator<Item = &'a Example>) -> Result<HashMap<&'a str, &'a Example>> {
    let mut sources: HashMap<&str, &Example> = HashMap::new();
    for e in shown.filter(|e| !e.output.trim().is_empty()) {
        let said = |e: &Example| (e.turns.clone(), e.instruction.clone(), e.input.clone(), e.output.clone());
        if let Some(other) = sources.insert(&e.row, e).filter(|other| said(other) != said(e)) {
            let both = format!("examples {} and {} of row {}", other.id, e.id, e.row);
            bail!("{both} differ, and a teacher is shown one S>S of a row: leave one out");
        }
    }
    Ok(sources)
}

/// The work of the stage.
pub(super) fn pack(args: &Args, encoder: &Encoder, open: &mut Open) -> Result<Made> {
    let (examples, tally) = read_all(args)?;
    let at = args.examples.display();
    let file =
        || format!("{at}: rows of questions come from a folder of `assemble`, with its pairs S>S and T>T");
    ensure!(examples.iter().all(|e| e.pair != "file"), Error::bad_input(&at, file()));
    let mut counts = Counts { read: tally.read, ..Counts::default() };
    let mut summary = serde_json::Map::new();
    for (split, path) in &TOKENS[..2] {
        let part = Part::of(split, &examples, encoder, args).with_context(|| at.to_string())?;
        let (kept, Part { without, long, others, .. }) = (part.kept.len(), &part);
        let left_out = format!("{without} with {NO_SOURCE}, {long} too long, {others} other rows");
        if *split == TOKENS[0].0 {
            let none = || format!("{at}: no question is left to train on: {left_out}");
            ensure!(kept > 0, Error::bad_input(&at, none()));
            summary.insert("languages".into(), json!(languages(part.kept.iter())));
        }
        token_shard::write(&open.path(path), &part.units)?;
        let about = part.about();
        say!(
            "pack: {split}: {kept} questions, {} tokens in their {}; left out: {left_out}",
            about["tokens"],
            if args.rows == Rows::Taught { "documents" } else { "prompts" }
        );
        summary.insert((*split).into(), about);
        counts.written += kept;
        counts = counts.dropping(OTHER, *others).dropping(NO_SOURCE, *without).dropping(TOO_LONG, *long);
    }
    let written = guards(args, &examples, encoder, open)?;
    counts.written += written;
    let guarded = examples.iter().filter(|e| e.split == TOKENS[2].0).count();
    summary.insert("rows".into(), tally.to_json());
    Ok(Made::new(summary)?.counting(counts.dropping(TOO_LONG, guarded - written)))
}

/// Writes the held-out source rows, which are answers as for every other objective; how many.
fn guards(args: &Args, examples: &[Example], encoder: &Encoder, open: &mut Open) -> Result<usize> {
    let (split, path) = TOKENS[2];
    let document = |e: &Example| {
        let document = encode(e, encoder.tokenizer, encoder.template, &args.settings)?;
        within_embedding(document, encoder.embedding, encoder.tokenizer)
    };
    let own = examples.iter().filter(|e| e.split == split);
    let made: Vec<Option<Document>> =
        own.map(|e| document(e).with_context(|| format!("example {}", e.id))).collect::<Result<_>>()?;
    let made: Vec<Document> = made.into_iter().flatten().collect();
    if !made.is_empty() {
        token_shard::write(&open.path(path), &made)?;
    }
    Ok(made.len())
}

/// The prompts of a question, with its answer where that is taught, unless one is too long.
fn unit(asked: &Example, source: &Example, encoder: &Encoder, args: &Args) -> Result<Option<Unit>> {
    let s = &args.settings;
    let student = Prompt {
        system: s.system.as_deref(),
        earlier: &asked.turns,
        instruction: &asked.instruction,
        input: &asked.input,
    };
    let (shown, text) = shown(asked, source, &s.teacher_prompt)?;
    let teacher = match &text {
        Some(text) => Prompt { earlier: &shown, instruction: text, input: "", ..student },
        None => Prompt { earlier: &shown, ..student },
    };
    let taught = args.rows == Rows::Taught;
    let marks = if taught { [STUDENT_ANSWER, TEACHER_ANSWER] } else { [STUDENT, TEACHER] };
    let answer = if taught { answer(&student, asked, encoder)? } else { vec![] };
    let document = |prompt: &Prompt, mark: &str| -> Result<Option<Document>> {
        let mut tokens = encoder.template.encode_prompt(encoder.tokenizer, prompt)?;
        ensure!(!tokens.is_empty(), "the template makes an empty prompt of the question");
        let mut weights = vec![0.0; tokens.len()];
        tokens.extend(&answer);
        weights.resize(tokens.len(), asked.weight);
        let made = Document { weights, tokens, note: format!("{} {mark}", asked.id) };
        let made = Some(made).filter(|d| d.tokens.len() <= s.max_length);
        within_embedding(made, encoder.embedding, encoder.tokenizer)
    };
    Ok(document(&student, marks[0])?.zip(document(&teacher, marks[1])?).map(|(a, b)| [a, b]))
}

/// The ids of the answer and its end token: the same behind either prompt.
fn answer(student: &Prompt, asked: &Example, encoder: &Encoder) -> Result<Vec<u32>> {
    let encoded = encoder.template.encode(encoder.tokenizer, student, &asked.output, TrainOn::Last)?;
    let encoded = encoded.without_tail();
    Ok(encoded.tokens[encoded.answer_start..].to_vec())
}

/// What stands before a teacher's question and, but where it is the student's own, its text.
fn shown(asked: &Example, source: &Example, prompt: &str) -> Result<(Vec<Turn>, Option<String>)> {
    let question = |e: &Example| Prompt::new(None, &e.instruction, &e.input).question();
    let mut turns = source.turns.clone();
    if prompt == TURNS {
        let answer = Turn { weight: 0.0, ..Turn::new(Role::Assistant, &source.output) };
        turns.extend([Turn::new(Role::User, &question(source)), answer]);
        return Ok((turns, None));
    }
    let text = filled(prompt, &|name| {
        Some(match name {
            "question" => question(asked),
            "source-question" => question(source),
            "source-answer" => source.output.clone(),
            "source" => names::name(&source.answer_language).to_string(),
            "target" => names::name(&asked.answer_language).to_string(),
            _ => return None,
        })
    });
    Ok((turns, Some(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(pair: &str, language: &str, instruction: &str, output: &str) -> Example {
        Example {
            pair: pair.into(),
            question_language: language.into(),
            answer_language: language.into(),
            instruction: instruction.into(),
            output: output.into(),
            ..Example::default()
        }
    }

    #[test]
    fn a_teacher_is_shown_the_source_question_and_its_answer() {
        let asked = Example { input: "Ana".into(), ..example("T>T", "es", "¿Quién es {source}?", "x") };
        let source = example("S>S", "en", "Who is she?", "She is {question}.");
        let prompt = "{question} | {source}: {source-question} = {source-answer} | {target} {other} {";
        let (turns, text) = shown(&asked, &source, prompt).unwrap();
        // Braces in rows are text.
        let want = "¿Quién es {source}?\nAna | English: Who is she? = She is {question}. | Spanish {other} {";
        assert_eq!((turns.len(), text.as_deref()), (0, Some(want)));
        let (turns, text) = shown(&asked, &source, TURNS).unwrap();
        let said: Vec<&str> = turns.iter().map(|t| t.content.as_str()).collect();
        assert_eq!((said, text), (vec!["Who is she?", "She is {question}."], None));
    }
}
