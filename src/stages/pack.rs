//! `sdrrl pack`: examples become token shards, rendered with the model's chat template.
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use serde_json::json;

use crate::pipeline::manifest::Manifest;
use crate::{
    data::{
        questions,
        record::Example,
        row_shard::{RowSet, RowShard},
        template::ChatTemplate,
        token_shard::{self, Document},
        tokenizer::Tokenizer,
    },
    models::weights::resolve,
    recipe::pack::PackSettings,
};

/// Arguments of `pack`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Model whose tokenizer and chat template are used
    #[arg(long)]
    pub model: String,
    /// Examples: a directory written by `assemble`, or a JSONL file of questions with answers
    #[arg(long)]
    pub examples: PathBuf,
    /// Directory for train.tokens and validation.tokens
    #[arg(long)]
    pub out: PathBuf,
    /// How
    #[command(flatten)]
    pub settings: PackSettings,
}

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    let model = resolve(&args.model)?;
    let tokenizer_file = if model.is_dir() { model.join("tokenizer.json") } else { model.clone() };
    let inputs: [(&str, &Path); 2] = [("examples", &args.examples), ("tokenizer", &tokenizer_file)];
    let manifest = Manifest::expected("pack", &inputs, &args.settings)?;
    if manifest.is_done(&args.out)? {
        println!("pack: unchanged, skipped");
        return Ok(());
    }
    std::fs::create_dir_all(&args.out).with_context(|| format!("create {}", args.out.display()))?;
    let tokenizer = Tokenizer::load(&model)?;
    let template = ChatTemplate::load(&args.settings.template, &tokenizer)?;
    let examples = read_examples(&args.examples)?;
    let encoded: Vec<Option<Document>> = examples
        .par_iter()
        .map(|e| {
            encode(e, &tokenizer, &template, &args.settings).with_context(|| format!("example {}", e.id))
        })
        .collect::<Result<_>>()?;
    let mut summary = serde_json::Map::new();
    for split in ["train", "validation", "source"] {
        let pairs = || examples.iter().zip(&encoded).filter(|(e, _)| e.split == split);
        let documents: Vec<Document> = pairs().filter_map(|(_, d)| d.clone()).collect();
        if split == "source" && documents.is_empty() {
            continue;
        }
        let mut by_pair: BTreeMap<&str, usize> = BTreeMap::new();
        pairs().filter(|(_, d)| d.is_some()).for_each(|(e, _)| *by_pair.entry(&e.pair).or_default() += 1);
        let tokens: usize = documents.iter().map(|d| d.tokens.len()).sum();
        let trained: usize = documents.iter().flat_map(|d| &d.weights).filter(|w| **w != 0.0).count();
        let dropped = pairs().filter(|(_, d)| d.is_none()).count();
        token_shard::write(&args.out.join(format!("{split}.tokens")), &documents)?;
        println!(
            "pack: {split}: {} documents, {tokens} tokens, {trained} of them trained, {dropped} too long",
            documents.len()
        );
        summary.insert(split.into(), json!({"documents": documents.len(), "tokens": tokens, "trained-tokens": trained, "dropped": dropped, "pairs": by_pair}));
    }
    ensure!(
        summary["train"]["documents"] != json!(0),
        "no training document is left in {}",
        args.examples.display()
    );
    manifest.finish(&args.out, json!(summary))
}

/// Examples of a directory, or of a JSONL file of questions with answers (all for training).
fn read_examples(path: &Path) -> Result<Vec<Example>> {
    if path.is_dir() {
        return RowSet::open(path)?.iter().collect();
    }
    let first: serde_json::Map<String, serde_json::Value> = {
        let shard = RowShard::open(path)?;
        ensure!(!shard.is_empty(), "{} holds no rows", path.display());
        shard.get(0)?
    };
    if first.contains_key("pair") && first.contains_key("split") {
        let shard = RowShard::open(path)?;
        return (0..shard.len()).map(|i| shard.get(i)).collect();
    }
    let rows = questions::read(path, "")?;
    let example = |row: crate::data::record::Row| Example {
        id: row.id.clone(),
        row: row.id,
        pair: "file".into(),
        split: "train".into(),
        question_language: row.language.clone(),
        answer_language: row.language,
        instruction: row.instruction,
        input: row.input,
        output: row.output,
        weight: 1.0,
    };
    Ok(rows.into_iter().map(example).collect())
}

fn encode(
    e: &Example,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    settings: &PackSettings,
) -> Result<Option<Document>> {
    let encoded = template.encode_example(
        tokenizer,
        settings.system.as_deref(),
        &e.instruction,
        &e.input,
        &e.output,
    )?;
    let mut tokens = encoded.tokens;
    let from = if settings.train_on_prompt { 1 } else { encoded.answer_start };
    let mut weights: Vec<f32> = (0..tokens.len()).map(|i| if i >= from { e.weight } else { 0.0 }).collect();
    if tokens.len() > settings.max_length {
        if !settings.truncate || encoded.answer_start >= settings.max_length {
            return Ok(None);
        }
        tokens.truncate(settings.max_length);
        weights.truncate(settings.max_length);
    }
    Ok(Some(Document { tokens, weights, note: format!("{} {}", e.id, e.pair) }))
}
