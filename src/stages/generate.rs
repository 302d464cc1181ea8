//! `sdrrl generate`: the frozen base model answers questions in the language it is strong in (SDRRL, step 1).
mod answers;
mod asked;
mod best;

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
};

use crate::error::Error;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::pipeline::{
    devices::Work,
    identity::{Identity, Inputs},
    interrupt::interrupted,
    manifest::{Counts, Manifest},
    placement::Placement,
    rows::{Part, REMOTE_ROW_FILES, ROW_FILES, apart},
    stage::{self, Made, Open, Others, Stage},
    work_dir::Room,
};
use crate::{
    data::{
        alarms::Alarms,
        conversation::Prompt,
        files::{FileContext, write_atomic},
        json::read_text,
        language_id, questions,
        record::Row,
        standard_input,
        tally::OnBadRow,
    },
    infer::answerer::{AnswerOptions, Answerer},
    models::{transformer::weights::Transformer, weights::resolve},
    recipe::generate::{GenerateEngine, GenerateSettings},
    report::{
        out::{self, note, say},
        progress::Progress,
    },
    stages::chat::stream,
};

pub use answers::check_samples;
use answers::{answer_all, answer_rows, chunk_rows, load};
pub use asked::check;

/// Arguments of `generate`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Model: a Hugging Face directory, a .gguf file, or a name in the local Hugging Face cache (engine `local`)
    #[arg(long, required_unless_present_any = ["endpoint", "remote_model", "engine"])]
    pub model: Option<String>,
    /// Adapter directory (PEFT), merged on load
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// Questions: JSONL files (Alpaca, messages, ShareGPT, question/answer)
    #[arg(long, required_unless_present = "prompt", num_args = 1..)]
    pub prompts: Vec<PathBuf>,
    /// A question; the answer is printed as it comes. - reads it from standard input (repeatable)
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["prompts", "out"])]
    pub prompt: Vec<String>,
    /// A .jsonl file for the answers, a directory for row shards with their manifest, or - for rows on standard output
    #[arg(long, required_unless_present = "prompt")]
    pub out: Option<PathBuf>,
    /// Language of the questions
    #[arg(long, default_value = "en")]
    pub source_language: String,
    /// Data types and device
    #[command(flatten)]
    pub placement: Placement,
    /// Work on one part of the shards, such as 3/8: one run per job-array task (directory output)
    #[arg(long, default_value = "1/1")]
    pub part: Part,
    /// Rows per shard (directory output)
    #[arg(long, default_value_t = 1000)]
    pub rows_per_shard: usize,
    /// How to answer
    #[command(flatten)]
    pub settings: GenerateSettings,
}

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    asked::check_args(args)?;
    let Some(out) = &args.out else { return print_answers(args) };
    if out == Path::new("-") {
        out::reserve_for_data();
    }
    let (rows, counts) = read_questions(&args.prompts, &args.source_language, &args.settings)?;
    language_id::warning(&args.source_language).iter().for_each(|w| note!("warning: {w}"));
    if out == Path::new("-") || out.extension().is_some_and(|e| e == "jsonl") {
        return run_to_file(args, out, rows);
    }
    stage::check_place::<Generate>(out)?;
    if let Some(model) = &args.model {
        Transformer::check_blocks(&resolve(model)?, args.placement)?;
    }
    let questions = out.join(Room::Questions.name());
    write_question_shards(&questions, &rows, counts, args.rows_per_shard)?;
    run_shards(args, &questions, out)
}

/// The answers to the questions of the command line, as they come.
fn print_answers(args: &Args) -> Result<()> {
    out::set_mode(out::Mode::PrintOnly);
    let options = AnswerOptions::from(&args.settings);
    let several = "--samples chooses among finished answers, and --prompt prints one as it comes: give --prompts with --out";
    ensure!(args.settings.samples == 1, Error::setting("samples", several));
    if args.settings.engine == GenerateEngine::Openai {
        return asked::print_answers(args);
    }
    let answerer = load(args, args.placement.device.first())?;
    for (i, question) in args.prompt.iter().enumerate() {
        let question = whole_question(question)?;
        let prompt = Prompt::new(None, question.trim(), "");
        let context = answerer.model.config.max_position_embeddings;
        let mut print = |piece: &str| out::text(format_args!("{piece}"));
        stream(&answerer, &prompt, &i.to_string(), &options, context, &mut print)?;
        ensure!(!interrupted(), Error::interrupted("interrupted"));
    }
    Ok(())
}

/// A question of the command line, or standard input's.
fn whole_question(question: &str) -> Result<String> {
    match question {
        "-" => Ok(read_text(&standard_input::resolve(Path::new("-"))?)?),
        question => Ok(question.to_string()),
    }
}

/// Reads question files; ids must be unique. Prints and counts what was left out of them.
pub fn read_questions(
    files: &[PathBuf],
    language: &str,
    settings: &GenerateSettings,
) -> Result<(Vec<Row>, Counts)> {
    let (mut rows, mut counts, limit) = (vec![], Counts::default(), settings.limit);
    for file in files {
        let context = || format!("read questions {}", file.display());
        let (sources, mut tally) =
            questions::read(file, language, settings.on_bad_row).with_context(context)?;
        for source in sources {
            let place = format!("{}:{}", file.display(), source.origin.line);
            match source.into_row() {
                Ok(row) => rows.push(row),
                Err(e) if settings.on_bad_row == OnBadRow::Skip => {
                    tally.kept -= 1;
                    tally.drop(&format!("{e:#}"), &place);
                }
                Err(e) => return Err(e.context(place)),
            }
        }
        if !tally.is_whole() {
            say!("questions: {}: {tally}", file.display());
        }
        counts.read += tally.read;
        counts = tally.reasons().fold(counts, |counts, (reason, n)| counts.dropping(reason, n));
    }
    ensure!(
        !rows.is_empty(),
        Error::bad_input(format!("{files:?}"), format!("there are no questions in {files:?}"))
    );
    if limit > 0 {
        counts = counts.dropping("beyond the limit", rows.len().saturating_sub(limit));
        rows.truncate(limit);
    }
    let mut seen = std::collections::HashSet::new();
    for row in &rows {
        let place = row.origin.as_ref().map(|o| format!("{}:{}", o.file, o.line)).unwrap_or_default();
        let message = || format!("{place}: the id `{}` occurred before; ids must be unique", row.id);
        ensure!(seen.insert(&row.id), Error::bad_input(&place, message()));
    }
    Ok((rows, counts))
}

/// Writes question shards unless the very same are there; `counts` says what was read and left out. Of several processes that want the same, one writes and the others wait.
pub fn write_question_shards(dir: &Path, rows: &[Row], counts: Counts, rows_per_shard: usize) -> Result<()> {
    stage::run(&mut Questions { dir, rows, counts, rows_per_shard }).map(drop)
}

struct Questions<'a> {
    dir: &'a Path,
    rows: &'a [Row],
    counts: Counts,
    rows_per_shard: usize,
}

impl Stage for Questions<'_> {
    const NAME: &'static str = "questions";
    const FILES: &'static [&'static str] = ROW_FILES;

    fn out(&self) -> &Path {
        self.dir
    }

    fn identity(&self) -> Result<Identity> {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for row in self.rows {
            hash.update(serde_json::to_string(row)?.as_bytes());
            hash.update(b"\n");
        }
        let hash = format!("{:032x}", hash.digest128());
        Identity::of(&json!({"questions": hash, "rows-per-shard": self.rows_per_shard}))
    }

    fn inputs(&self) -> Result<Inputs> {
        Ok(Inputs::new())
    }

    fn others(&self) -> Others {
        Others::Await
    }

    fn quiet(&self) -> bool {
        true
    }

    fn run(&mut self, open: &mut Open) -> Result<Made> {
        let n = open.write_rows(self.rows, self.rows_per_shard)?;
        let counts = Counts { written: n, ..self.counts.clone() };
        Ok(Made::new(json!({ "rows": n }))?.counting(counts))
    }
}

/// Answers the rows of `questions` into shards in `out`.
pub fn run_shards(args: &Args, questions: &Path, out: &Path) -> Result<()> {
    stage::run(&mut Generate { args, questions, out }).map(drop)
}

struct Generate<'a> {
    args: &'a Args,
    questions: &'a Path,
    out: &'a Path,
}

impl Stage for Generate<'_> {
    const NAME: &'static str = "generate";
    const FILES: &'static [&'static str] = REMOTE_ROW_FILES;

    fn out(&self) -> &Path {
        self.out
    }

    fn part(&self) -> Part {
        self.args.part
    }

    fn check_folder(&self, _: &Manifest) -> Result<()> {
        apart(self.questions, self.out)
    }

    fn identity(&self) -> Result<Identity> {
        asked::check_args(self.args)?;
        Identity::of(&self.args.settings)
    }

    fn placement(&self) -> Option<Placement> {
        (self.args.settings.engine == GenerateEngine::Local).then_some(self.args.placement)
    }

    fn inputs(&self) -> Result<Inputs> {
        let inputs = Inputs::new().file("rows", self.questions);
        let Some(model) = &self.args.model else { return Ok(inputs) };
        let inputs = inputs.model("model", &resolve(model)?)?.template(&self.args.settings.template);
        match &self.args.adapter {
            Some(adapter) => inputs.model("adapter", adapter),
            None => Ok(inputs),
        }
    }

    fn run(&mut self, open: &mut Open) -> Result<Made> {
        let args = self.args;
        if args.settings.engine == GenerateEngine::Openai {
            return asked::run(args, self.questions, open);
        }
        let alarms = Mutex::new(Alarms::default());
        let count = |rows: Vec<Row>| {
            let mut alarms = alarms.lock().unwrap_or_else(|e| e.into_inner());
            rows.iter().filter_map(|r| r.answer.as_ref()).for_each(|a| alarms.count(&a.alarms));
            Ok(rows)
        };
        let rows = (self.questions, chunk_rows(&args.settings));
        let work = Work {
            load: &|device| load(args, device),
            compute: &|answerer: &mut Answerer, rows| answer_rows(answerer, rows, args),
            end: &|_| Ok(()),
        };
        let (summary, _) = open.map_on(rows, args.placement.device, &Ok, &work, &count);
        let (summary, alarms) = (summary?, alarms.into_inner().unwrap_or_else(|e| e.into_inner()));
        summary.made(Self::NAME, &alarms.to_string())
    }
}

/// An error unless nothing is at `out`, or a file of answers that this command wrote: each line is a row with an answer's ids.
fn check_replaced(out: &Path) -> Result<()> {
    let about = match out.symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        about => about.reading(out)?,
    };
    let is_answer = |text: String| serde_json::from_str(&text).is_ok_and(|row: Row| row.answer.is_some());
    let read = || {
        questions::container::for_each(out, &mut |place, object| {
            ensure!(is_answer(Value::Object(object?).to_string()), "{place} is no answer");
            Ok(())
        })
    };
    if about.is_file() && (about.len() == 0 || read().is_ok()) {
        return Ok(());
    }
    let out_name = out.display();
    let message =
        format!("{out_name} is there and generate did not write it: choose another --out, or move it away");
    bail!(Error::exists(out, message))
}

fn run_to_file(args: &Args, out: &Path, rows: Vec<Row>) -> Result<()> {
    let printed = out == Path::new("-");
    for prompts in args.prompts.iter().filter(|_| !printed) {
        apart(prompts, out)?;
    }
    if !printed {
        check_replaced(out)?;
    }
    let stopped = || {
        Error::interrupted(format!(
            "interrupted; {} holds the answers so far, and the same command begins anew (--out FOLDER goes on)",
            out.display()
        ))
    };
    let (count, mut progress) = (rows.len(), Progress::new("generate", rows.len()));
    let (mut text, mut alarms) = (String::new(), Alarms::default());
    let took = answer_all(args, &rows, &stopped, &mut |answered| {
        progress.advance(answered.len());
        for row in answered {
            row.answer.iter().for_each(|a| alarms.count(&a.alarms));
            text.push_str(&serde_json::to_string(&row)?);
            text.push('\n');
        }
        if printed {
            out::data(format_args!("{text}"));
            text.clear();
            return Ok(());
        }
        if let Some(dir) = out.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        // After each chunk, so that an interrupted run leaves what it has.
        write_atomic(out, text.as_bytes())
    })?;
    progress.finish();
    let place = if printed { "standard output".into() } else { out.display().to_string() };
    say!("{count} answers in {place}; {alarms}{took}");
    Ok(())
}
