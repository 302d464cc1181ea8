//! `sdrrl parallel`: a small parallel corpus for each target language (SDRRL, step 6).
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::pipeline::{
    identity::{Identity, Inputs},
    manifest::Counts,
    rows::{ROW_FILES, named_file, path_for},
    stage::{self, Made, Open, Stage},
};
use crate::{
    data::{
        language_id, languages,
        parallel::{Selection, read},
    },
    recipe::parallel::ParallelSettings,
    report::out::{note, say},
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
    ensure!(s.min_words <= s.max_words, "parallel.min-words is above parallel.max-words");
    let source = languages::code(&args.source_language)?;
    let mut corpora = vec![];
    for target in &args.target_languages {
        let target = languages::code(target)?;
        let file = path_for(&s.file, "parallel.file", &source, &target)?;
        let other = match &s.target_file {
            Some(_) => Some(path_for(&s.target_file, "parallel.target-file", &source, &target)?),
            None => None,
        };
        corpora.push(Corpus { target, file, other });
    }
    let named = [source.as_str()].into_iter().chain(corpora.iter().map(|c| c.target.as_str()));
    named.filter_map(language_id::warning).for_each(|w| note!("warning: {w}"));
    stage::run(&mut Parallel { args, source, corpora }).map(drop)
}

/// Where the sentences of a target language are.
struct Corpus {
    target: String,
    file: PathBuf,
    other: Option<PathBuf>,
}

struct Parallel<'a> {
    args: &'a Args,
    source: String,
    corpora: Vec<Corpus>,
}

impl Stage for Parallel<'_> {
    const NAME: &'static str = "parallel";
    const FILES: &'static [&'static str] = ROW_FILES;

    fn out(&self) -> &Path {
        &self.args.out
    }

    fn identity(&self) -> Result<Identity> {
        Identity::of(&self.args.settings)?.with("languages", json!([self.source, self.args.target_languages]))
    }

    fn inputs(&self) -> Result<Inputs> {
        let mut inputs = Inputs::new();
        for c in &self.corpora {
            inputs = inputs.file(&named_file("parallel sentences", &c.file, &c.target), &c.file).maybe(
                &format!("the target side of the parallel sentences ({})", c.target),
                c.other.as_deref(),
            );
        }
        Ok(inputs)
    }

    fn run(&mut self, open: &mut Open) -> Result<Made> {
        let (s, source) = (&self.args.settings, &self.source);
        let selection =
            Selection { limit: s.limit, min_words: s.min_words, max_words: s.max_words, seed: s.seed };
        let mut all = vec![];
        let mut summary = serde_json::Map::new();
        let mut counts = Counts::default();
        for Corpus { target, file, other } in &self.corpora {
            let (pairs, c) = read(file, other.as_deref(), (source, target), &selection)
                .with_context(|| format!("parallel corpus {source}-{target}"))?;
            ensure!(!pairs.is_empty(), "{}: no usable pair among {} lines", file.display(), c.lines);
            say!(
                "parallel: {source}-{target}: {} of {} lines used; {} empty or repeated, {} too short or long, {} with an alarm",
                c.kept,
                c.lines,
                c.duplicates,
                c.length,
                c.alarms
            );
            if let Some(shift) = &c.shift {
                note!(
                    "warning: {source}-{target}: from about line {} on the two sides seem to be shifted: line n of {} agrees in length with line n{:+} of the other (correlation {:.2}, as they stand {:.2})",
                    shift.line,
                    file.display(),
                    shift.by,
                    shift.correlations.1,
                    shift.correlations.0
                );
            }
            summary.insert(target.to_string(), json!({"lines": c.lines, "duplicates": c.duplicates, "length": c.length, "alarms": c.alarms, "kept": c.kept, "shifted-from-line": c.shift.as_ref().map(|s| s.line)}));
            let usable = c.lines.saturating_sub(c.duplicates + c.length + c.alarms);
            counts.read += c.lines;
            counts.written += pairs.len();
            counts = counts
                .dropping("empty or repeated", c.duplicates)
                .dropping("too short or long", c.length)
                .dropping("with an alarm", c.alarms)
                .dropping("beyond the limit", usable.saturating_sub(c.kept));
            all.extend(pairs);
        }
        open.write_rows(&all, 10_000)?;
        Ok(Made::new(summary)?.counting(counts))
    }
}
