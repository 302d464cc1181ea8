//! `sdrrl generate`: the frozen base model answers questions in the language it is strong in (SDRRL, step 1).
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::pipeline::manifest::Manifest;
use crate::pipeline::placement::Placement;
use crate::pipeline::rows::{Part, RowsJob, map_rows, say};
use crate::{
    data::{
        alarms::{self, answer_alarms},
        files::write_atomic,
        questions,
        record::{Answer, Row},
        row_shard::{RowSet, write_rows},
        tally::OnBadRow,
    },
    infer::answerer::Answerer,
    models::weights::resolve,
    recipe::generate::GenerateSettings,
    report::progress::Progress,
};

/// Arguments of `generate`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Model: a Hugging Face directory, a .gguf file, or a name in the local Hugging Face cache
    #[arg(long)]
    pub model: String,
    /// Adapter directory (PEFT), merged on load
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// Questions: JSONL files (Alpaca, messages, ShareGPT, question/answer)
    #[arg(long, required = true, num_args = 1..)]
    pub prompts: Vec<PathBuf>,
    /// A .jsonl file for the answers, or a directory for row shards with their manifest
    #[arg(long)]
    pub out: PathBuf,
    /// Language of the questions
    #[arg(long, default_value = "en")]
    pub source_language: String,
    /// How the weights are held and where it computes
    #[command(flatten)]
    pub placement: Placement,
    /// A part of the shards, e.g. 3/8 (directory output)
    #[arg(long, default_value = "1/1")]
    pub part: Part,
    /// Rows of a shard (directory output)
    #[arg(long, default_value_t = 1000)]
    pub rows_per_shard: usize,
    /// How to answer
    #[command(flatten)]
    pub settings: GenerateSettings,
}

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    let rows = read_questions(&args.prompts, &args.source_language, &args.settings)?;
    if args.out.extension().is_some_and(|e| e == "jsonl") {
        return run_to_file(args, rows);
    }
    let questions = args.out.join("questions");
    write_question_shards(&questions, &rows, args.rows_per_shard)?;
    run_shards(args, &questions, &args.out)
}

/// Reads question files; ids must be unique. Prints what was left out of them.
pub fn read_questions(files: &[PathBuf], language: &str, settings: &GenerateSettings) -> Result<Vec<Row>> {
    let (mut rows, limit) = (vec![], settings.limit);
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
            println!("questions: {}: {tally}", file.display());
        }
    }
    ensure!(!rows.is_empty(), "there are no questions in {files:?}");
    if limit > 0 {
        rows.truncate(limit);
    }
    let mut seen = std::collections::HashSet::new();
    for row in &rows {
        let place = row.origin.as_ref().map(|o| format!("{}:{}", o.file, o.line)).unwrap_or_default();
        ensure!(seen.insert(&row.id), "{place}: the id `{}` occurred before; ids must be unique", row.id);
    }
    Ok(rows)
}

/// Writes question shards unless the very same are there.
pub fn write_question_shards(dir: &Path, rows: &[Row], rows_per_shard: usize) -> Result<()> {
    let text: String =
        rows.iter().map(|r| serde_json::to_string(r).map(|s| s + "\n")).collect::<Result<_, _>>()?;
    let settings = json!({"hash": format!("{:032x}", xxhash_rust::xxh3::xxh3_128(text.as_bytes())), "rows-per-shard": rows_per_shard});
    let manifest = Manifest::expected("questions", &[], &settings)?;
    if dir.exists() && manifest.is_done(dir)? {
        return Ok(());
    }
    write_rows(dir, rows, rows_per_shard)?;
    manifest.finish(dir, json!({"rows": rows.len()}))
}

/// Answers the rows of `questions` into shards in `out`.
pub fn run_shards(args: &Args, questions: &Path, out: &Path) -> Result<()> {
    let model_path = resolve(&args.model)?;
    let mut extra_inputs = vec![("model".to_string(), model_path)];
    extra_inputs.extend(args.adapter.iter().map(|a| ("adapter".to_string(), a.clone())));
    // What only decides how fast it goes is no setting of the result.
    let mut settings = serde_json::to_value(&args.settings)?;
    if let Some(map) = settings.as_object_mut() {
        map.remove("batch-rows");
        map.remove("batch-tokens");
        map.insert("dtype".into(), json!(args.placement.to_string()));
    }
    let job = RowsJob {
        stage: "generate",
        input: questions,
        out,
        part: args.part,
        settings,
        extra_inputs,
        quiet: false,
    };
    // Loaded only if there is anything to do.
    let mut answerer = None;
    let chunk = args.settings.batch_rows.max(1) * 4;
    let mut progress = Progress::new("generate", RowSet::open(questions)?.len());
    let mut alarms = 0;
    let summary = map_rows(&job, chunk, &mut |rows: Vec<Row>| {
        if answerer.is_none() {
            answerer = Some(Answerer::load(
                &args.model,
                args.adapter.as_deref(),
                args.placement,
                &args.settings.template,
            )?);
        }
        let Some(answerer) = &answerer else { return Ok(vec![]) };
        let rows = answer_rows(answerer, rows, args)?;
        alarms += rows.iter().filter(|r| r.answer.as_ref().is_some_and(|a| !a.alarms.is_empty())).count();
        progress.advance(rows.len());
        Ok(rows)
    })?;
    progress.finish();
    say("generate", &summary, &format!("{alarms} answers with an alarm"));
    Ok(())
}

fn answer_rows(answerer: &Answerer, mut rows: Vec<Row>, args: &Args) -> Result<Vec<Row>> {
    let name = Path::new(&args.model).file_name().map(|n| n.to_string_lossy().into_owned());
    let model = name.unwrap_or_else(|| args.model.clone());
    let options = (&args.settings).into();
    // A row that the model cannot take is marked, so that the others go on.
    let mut asked = vec![];
    for (i, row) in rows.iter_mut().enumerate() {
        match answerer.check(&row.prompt(), &options).with_context(|| row.place()) {
            Ok(()) => asked.push(i),
            Err(e) if args.settings.on_bad_row == OnBadRow::Skip => {
                eprintln!("generate: row {} is left out: {e:#}", row.id);
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
    let questions: Vec<_> = asked.iter().map(|&i| (rows[i].id.as_str(), rows[i].prompt())).collect();
    let replies = answerer.answer(&questions, &options, &mut |_| {})?;
    for (i, reply) in asked.into_iter().zip(replies) {
        let row = &mut rows[i];
        let alarms = answer_alarms(&row.instruction, &reply.text, reply.finish, &row.language);
        row.answer = Some(Answer {
            text: reply.text,
            model: model.clone(),
            finish: reply.finish.into(),
            tokens: reply.ids.len(),
            ids: reply.ids,
            alarms,
        });
    }
    Ok(rows)
}

fn run_to_file(args: &Args, rows: Vec<Row>) -> Result<()> {
    let answerer =
        Answerer::load(&args.model, args.adapter.as_deref(), args.placement, &args.settings.template)?;
    if let Some(dir) = args.out.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let mut progress = Progress::new("generate", rows.len());
    let mut text = String::new();
    for chunk in rows.chunks(args.settings.batch_rows.max(1) * 4) {
        ensure!(
            !crate::pipeline::interrupt::interrupted(),
            "interrupted; {} holds the answers so far",
            args.out.display()
        );
        for row in answer_rows(&answerer, chunk.to_vec(), args)? {
            text.push_str(&serde_json::to_string(&row)?);
            text.push('\n');
        }
        progress.advance(chunk.len());
        // After each chunk, so that an interrupted run leaves what it has.
        write_atomic(&args.out, text.as_bytes())?;
    }
    progress.finish();
    println!("{} answers in {}", rows.len(), args.out.display());
    Ok(())
}
