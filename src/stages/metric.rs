//! `sdrrl metric`: scores of files by hand, as `sacrebleu` gives them: translations, summaries, MKQA predictions.
use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use serde_json::{Value, json};

use crate::{
    data::{language_id, text_file},
    metrics::{
        bootstrap,
        catalog::{self, MetricName},
        corpus::CorpusMetric,
        forms,
        metric::{MetricOptions, OpenMetric, Segment, value_of},
        mkqa,
        significance::{self, Outcome},
        tokenize::{BleuTokenizer, TercomOptions},
    },
    report::{
        out::{self, note, say},
        table::{Cell, Table, use_colour},
    },
};

/// What `--metrics` takes: the catalog's metrics of replies that need no model.
fn parser() -> impl TypedValueParser<Value = MetricName> {
    let values = catalog::of_replies().map(|m| m.about()).filter(|about| !about.needs.model).map(|about| {
        let value = PossibleValue::new(about.name).help(about.help);
        // Its name here before tasks and this command had one list.
        if about.name == "rouge-l" { value.alias("rouge") } else { value }
    });
    PossibleValuesParser::new(values.collect::<Vec<_>>()).try_map(|name| {
        let name = if name == "rouge" { "rouge-l" } else { name.as_str() };
        MetricName::find(name).with_context(|| format!("there is no metric {name}"))
    })
}

/// Arguments of `metric`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Reference: a text file, one segment per line (-: standard input)
    #[arg(long, short, required_unless_present = "mkqa", conflicts_with = "mkqa")]
    pub reference: Option<PathBuf>,
    /// MKQA's annotations (mkqa.jsonl.gz); the hypotheses are then predictions in MKQA's format (needs --language)
    #[arg(long, requires = "language")]
    pub mkqa: Option<PathBuf>,
    /// System outputs, one file per system (-: standard input); paired tests compare the others with the first
    #[arg(long, short = 'i', required = true, num_args = 1..)]
    pub hypothesis: Vec<PathBuf>,
    /// Metrics to compute
    #[arg(long, short, value_parser = parser(), value_delimiter = ',', default_value = "bleu,chrf")]
    pub metrics: Vec<MetricName>,
    /// Language of the reference and the hypotheses; it selects the tokenizers
    #[arg(long, short)]
    pub language: Option<String>,
    /// BLEU's tokenizer [default: by --language, else 13a]
    #[arg(long, value_enum)]
    pub tokenize: Option<BleuTokenizer>,
    /// Data for the tokenizer: a MeCab dictionary folder, a SentencePiece model for spBLEU, or a word list for ROUGE in Thai
    #[arg(long)]
    pub dictionary: Option<PathBuf>,
    /// TER: put spaces around punctuation
    #[arg(long)]
    pub ter_normalized: bool,
    /// TER: remove punctuation
    #[arg(long)]
    pub ter_no_punct: bool,
    /// TER: apply either of the two to Asian characters as well
    #[arg(long)]
    pub ter_asian_support: bool,
    /// TER: do not lowercase
    #[arg(long)]
    pub ter_case_sensitive: bool,
    /// ROUGE: stem words (Snowball)
    #[arg(long)]
    pub stem: bool,
    /// 95 % intervals by bootstrap resampling
    #[arg(long)]
    pub confidence: bool,
    /// Paired bootstrap resampling against the first system
    #[arg(long, conflicts_with = "paired_ar")]
    pub paired_bs: bool,
    /// Paired approximate randomisation against the first system
    #[arg(long)]
    pub paired_ar: bool,
    /// Resamples or trials [default: 1000; with --paired-ar 10000]
    #[arg(long)]
    pub samples: Option<usize>,
    /// Seed of the resamples and trials
    #[arg(long, default_value_t = 12345)]
    pub seed: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// One metric of all systems.
struct Measured {
    name: String,
    signature: String,
    systems: Vec<Outcome>,
}

/// Prints the scores.
pub fn run(args: &Args) -> Result<()> {
    if let Some(gold) = &args.mkqa {
        return mkqa_scores(args, gold);
    }
    ensure!(
        !(args.paired_bs || args.paired_ar) || args.hypothesis.len() > 1,
        "a paired test compares systems: give more than one file to --hypothesis"
    );
    let reference = args.reference.as_deref().context("--reference is missing")?;
    let from_input =
        args.hypothesis.iter().map(PathBuf::as_path).chain([reference]).filter(|p| p.as_os_str() == "-");
    ensure!(from_input.count() < 2, "standard input (-) can be read once: give the other as a file");
    let references = segments(reference)?;
    let mut systems = vec![];
    for path in &args.hypothesis {
        let lines = segments(path)?;
        ensure!(
            lines.len() == references.len(),
            "{} has {} lines, but {} has {}: they must be of the same segments, line by line",
            path.display(),
            lines.len(),
            reference.display(),
            references.len()
        );
        ensure!(
            lines.iter().any(|line| !line.trim().is_empty()),
            "{}: all its {} lines are empty",
            path.display(),
            lines.len()
        );
        let (own, theirs) = (path.display().to_string(), reference.display().to_string());
        if let Some(warning) = forms::differ((&own, &mut lines.iter()), (&theirs, &mut references.iter())) {
            note!("warning: {warning}");
        }
        systems.push(lines);
    }
    let measured: Vec<Measured> =
        args.metrics.iter().map(|m| measure(args, *m, &references, &systems)).collect::<Result<_>>()?;
    print(args, &measured);
    Ok(())
}

fn segments(path: &Path) -> Result<Vec<String>> {
    let lines = text_file::read_lines(path)?;
    ensure!(!lines.is_empty(), "{} is empty", path.display());
    Ok(lines)
}

/// What to say before the numbers: where BLEU's tokenizer finds no words in the language, given or recognised, and what the metric itself says.
fn warn(args: &Args, metric: &dyn OpenMetric, references: &[String]) {
    let by_language = || {
        let tokenizer = metric.sacrebleu()?.tokenizer()?;
        let sample: String = references.iter().take(50).map(|line| format!("{line}\n")).collect();
        tokenizer.kind().warning(&language_id::identify(&sample)?.code)
    };
    let own = metric.warning();
    let warning = if args.language.is_some() { own } else { own.or_else(by_language) };
    if let Some(warning) = warning {
        note!("warning: {warning}");
    }
}

fn measure(
    args: &Args,
    name: MetricName,
    references: &[String],
    systems: &[Vec<String>],
) -> Result<Measured> {
    let about = name.about();
    ensure!(!about.needs.language || args.language.is_some(), "{} needs --language", about.name);
    let metric = name.metric().open(&MetricOptions {
        language: args.language.as_deref(),
        dictionary: args.dictionary.as_deref(),
        tokenizer: args.tokenize,
        ter: TercomOptions {
            normalized: args.ter_normalized,
            no_punct: args.ter_no_punct,
            asian_support: args.ter_asian_support,
            case_sensitive: args.ter_case_sensitive,
        },
        stem: args.stem,
        ..Default::default()
    })?;
    warn(args, metric.as_ref(), references);
    match metric.sacrebleu() {
        Some(sacrebleu) => corpus(args, sacrebleu, references, systems),
        None => resampled(args, about.heading, metric.as_ref(), references, systems),
    }
}

/// A metric of sacrebleu.
fn corpus(
    args: &Args,
    metric: &CorpusMetric,
    references: &[String],
    systems: &[Vec<String>],
) -> Result<Measured> {
    let counts = systems.iter().map(|s| metric.counts(s, references)).collect::<Result<Vec<_>>>()?;
    let samples = args.samples.unwrap_or(if args.paired_ar { 10_000 } else { 1000 });
    let plain = metric.signature();
    let (systems, signature) = if args.paired_bs {
        let signature = significance::signature(&plain, "bs", samples, args.seed);
        (significance::paired_bootstrap(metric, &counts, samples, args.seed), signature)
    } else if args.paired_ar {
        let signature = significance::signature(&plain, "ar", samples, args.seed);
        (significance::paired_randomisation(metric, &counts, samples, args.seed), signature)
    } else if args.confidence {
        let of = |c| Outcome {
            score: metric.score(c),
            interval: significance::confidence(metric, c, samples, args.seed),
            p: None,
        };
        (counts.iter().map(of).collect(), significance::signature(&plain, "bs", samples, args.seed))
    } else {
        (counts.iter().map(|c| Outcome { score: metric.score(c), ..Default::default() }).collect(), plain)
    };
    Ok(Measured { name: metric.name(), signature, systems })
}

/// Any other metric; with a test, the bootstrap.
fn resampled(
    args: &Args,
    heading: &str,
    metric: &dyn OpenMetric,
    references: &[String],
    systems: &[Vec<String>],
) -> Result<Measured> {
    let samples = args.samples.unwrap_or(1000);
    let rows_of = |replies: &Vec<String>| {
        let pairs = replies.iter().zip(references);
        let segments: Vec<Segment> = pairs
            .map(|(reply, reference)| Segment {
                reply,
                references: std::slice::from_ref(reference),
                ..Default::default()
            })
            .collect();
        metric.rows(&segments)
    };
    let systems = systems.iter().map(rows_of).collect::<Result<Vec<_>>>()?;
    let tested = (args.paired_bs || args.paired_ar) && metric.resamples();
    let of = |(i, rows): (usize, &Vec<Vec<f64>>)| {
        let value = |rows: &[Vec<f64>], chosen: &[usize]| value_of(metric, chosen.iter().map(|&i| &rows[i]));
        let interval = ((tested || args.confidence) && metric.resamples())
            .then(|| interval(metric, rows, samples, args.seed))
            .flatten();
        let p = (tested && i > 0).then(|| {
            let both = |chosen: &[usize]| (value(&systems[0], chosen), value(rows, chosen));
            bootstrap::paired_by(rows.len(), samples, args.seed, both).p
        });
        Outcome { score: value_of(metric, rows.iter()), interval, p }
    };
    // Whichever test was asked for: here it is always the bootstrap.
    let signature = if tested || args.confidence {
        significance::signature(&metric.signature(), "bs", samples, args.seed)
    } else {
        metric.signature()
    };
    Ok(Measured { name: heading.into(), signature, systems: systems.iter().enumerate().map(of).collect() })
}

/// Middle and half the width of the 95 % percentile interval over resamples.
fn interval(metric: &dyn OpenMetric, rows: &[Vec<f64>], samples: usize, seed: u64) -> Option<(f64, f64)> {
    if let Some(scale) = metric.mean_of() {
        let values: Vec<f64> = rows.iter().filter_map(|r| r.first().copied()).collect();
        let (low, high) = bootstrap::bootstrap_interval(&values, samples, seed)?;
        return Some((0.5 * scale * (low + high), 0.5 * scale * (high - low)));
    }
    let of = |chosen: &[usize]| (0.0, value_of(metric, chosen.iter().map(|&i| &rows[i])));
    let found = bootstrap::paired_by(rows.len(), samples, seed, of);
    (rows.len() > 1 && samples > 0)
        .then_some((0.5 * (found.low + found.high), 0.5 * (found.high - found.low)))
}

fn print(args: &Args, measured: &[Measured]) {
    let name = |path: &PathBuf| path.display().to_string();
    if args.json {
        let of_system = |i: usize, path: &PathBuf| {
            let scores = measured.iter().map(|m| {
                let o = &m.systems[i];
                let (mean, ci) = (o.interval.map(|x| x.0), o.interval.map(|x| x.1));
                let record =
                    json!({"score": o.score, "p_value": o.p, "mean": mean, "ci": ci, "signature": m.signature});
                (m.name.clone(), record)
            });
            Value::Object([("system".into(), name(path).into())].into_iter().chain(scores).collect())
        };
        let all: Vec<Value> = args.hypothesis.iter().enumerate().map(|(i, p)| of_system(i, p)).collect();
        return say!("{:#}", Value::Array(all));
    }
    let header: Vec<&str> = ["system"].into_iter().chain(measured.iter().map(|m| m.name.as_str())).collect();
    let mut table = Table::new(&header);
    for (i, path) in args.hypothesis.iter().enumerate() {
        let cells = measured.iter().map(|m| match m.systems[i] {
            Outcome { score, interval: None, p: None } => Cell::Number(score, 2),
            other => Cell::Text(words(&other)),
        });
        table.push([Cell::Text(name(path))].into_iter().chain(cells).collect());
    }
    out::raw(format_args!("{}", table.to_text(use_colour())));
    say!();
    measured.iter().for_each(|m| say!("{:<12} {}", m.name, m.signature));
    if measured.iter().any(|m| m.systems.iter().any(|s| s.p.is_some())) {
        say!(
            "p: how probable so large a difference from {} is by luck (* below 0.05)",
            name(&args.hypothesis[0])
        );
    }
}

fn words(outcome: &Outcome) -> String {
    let mut out = format!("{:.2}", outcome.score);
    if let Some((mean, half)) = outcome.interval {
        let _ = write!(out, " ({mean:.2} ± {half:.2})");
    }
    if let Some(p) = outcome.p {
        let _ = write!(out, " p = {p:.4}{}", if p < 0.05 { "*" } else { "" });
    }
    out
}

fn mkqa_scores(args: &Args, gold: &Path) -> Result<()> {
    let language = args.language.as_deref().context("--mkqa needs --language")?;
    let golds = mkqa::read_gold(gold, language)?;
    let mut all = vec![];
    for path in &args.hypothesis {
        let predictions = mkqa::read_predictions(path)?;
        let scores =
            mkqa::evaluate(&golds, &predictions, language).with_context(|| format!("{}", path.display()))?;
        let Value::Object(scores) = serde_json::to_value(scores)? else { bail!("scores are no object") };
        all.push((path.display().to_string(), scores));
    }
    let signature = format!("mkqa|lang:{language}|n:{}|version:{}", golds.len(), env!("CARGO_PKG_VERSION"));
    if args.json {
        let of = |(system, mut scores): (String, serde_json::Map<String, Value>)| {
            scores.insert("signature".into(), signature.clone().into());
            json!({"system": system, "MKQA": scores})
        };
        say!("{:#}", Value::Array(all.into_iter().map(of).collect()));
        return Ok(());
    }
    let header: Vec<&str> = ["MKQA"].into_iter().chain(all.iter().map(|a| a.0.as_str())).collect();
    let mut table = Table::new(&header);
    let keys: Vec<String> = all.first().map(|a| a.1.keys().cloned().collect()).unwrap_or_default();
    for key in keys {
        let value = |a: &(String, serde_json::Map<String, Value>)| {
            a.1[&key].as_f64().map_or(Cell::Text("none".into()), |x| Cell::Number(x, 2))
        };
        table.push([Cell::Text(key.clone())].into_iter().chain(all.iter().map(value)).collect());
    }
    out::raw(format_args!("{}", table.to_text(use_colour())));
    say!("\n{signature}");
    Ok(())
}
