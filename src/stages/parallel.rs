//! `sdrrl parallel`: a small parallel corpus for each target language (SDRRL, step 6).
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::pipeline::manifest::Manifest;
use crate::pipeline::rows::path_for;
use crate::{
    data::{
        language_id,
        parallel::{Selection, read},
        row_shard::write_rows,
    },
    recipe::parallel::ParallelSettings,
};

/// Arguments of `parallel`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Folder to write the pairs to
    #[arg(long)]
    pub out: PathBuf,
    /// Language of the source side
    #[arg(long, default_value = "en")]
    pub source_language: String,
    /// Languages of the target side
    #[arg(long, value_delimiter = ',', required = true)]
    pub target_languages: Vec<String>,
    /// How
    #[command(flatten)]
    pub settings: ParallelSettings,
}

/// Runs the stage.
pub fn run(args: &Args) -> Result<()> {
    let s = &args.settings;
    let source = language_id::code(&args.source_language)?;
    ensure!(s.min_words <= s.max_words, "parallel.min-words is above parallel.max-words");
    let selection =
        Selection { limit: s.limit, min_words: s.min_words, max_words: s.max_words, seed: s.seed };
    let mut corpora = vec![];
    for target in &args.target_languages {
        let target = language_id::code(target)?;
        let file = path_for(&s.file, "parallel.file", &source, &target)?;
        let other = match &s.target_file {
            Some(_) => Some(path_for(&s.target_file, "parallel.target-file", &source, &target)?),
            None => None,
        };
        corpora.push((target, file, other));
    }
    let mut inputs: Vec<(String, &Path)> = vec![];
    for (target, file, other) in &corpora {
        inputs.push((format!("{target}-source"), file));
        inputs.extend(other.iter().map(|o| (format!("{target}-target"), o.as_path())));
    }
    let inputs: Vec<(&str, &Path)> = inputs.iter().map(|(n, p)| (n.as_str(), *p)).collect();
    let mut settings = serde_json::to_value(s)?;
    settings["languages"] = json!([source, args.target_languages]);
    let manifest = Manifest::expected("parallel", &inputs, &settings)?;
    if manifest.is_done(&args.out)? {
        println!("parallel: unchanged, skipped");
        return Ok(());
    }
    let mut all = vec![];
    let mut summary = serde_json::Map::new();
    for (target, file, other) in &corpora {
        let (pairs, c) = read(file, other.as_deref(), (&source, target), &selection)
            .with_context(|| format!("parallel corpus {source}-{target}"))?;
        ensure!(!pairs.is_empty(), "{}: no usable pair among {} lines", file.display(), c.lines);
        println!(
            "parallel: {source}-{target}: {} of {} lines used; {} empty or repeated, {} too short or long, {} with an alarm",
            c.kept, c.lines, c.duplicates, c.length, c.alarms
        );
        summary.insert(target.to_string(), json!({"lines": c.lines, "duplicates": c.duplicates, "length": c.length, "alarms": c.alarms, "kept": c.kept}));
        all.extend(pairs);
    }
    manifest.begin(&args.out)?;
    write_rows(&args.out, &all, 10_000)?;
    manifest.finish(&args.out, json!(summary))
}
