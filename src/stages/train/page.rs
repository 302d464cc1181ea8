//! The page of a training: the curves that every page with a training has, and training.html in its own folder.
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

use super::{Args, rewards::Change, summary::next_commands};
use crate::{
    data::{files::FileContext, json::read_text},
    pipeline::{manifest::Manifest, provenance, work_dir::METRICS},
    recipe::source,
    report::{
        environment::peak_memory,
        html::{Block, Report, Section},
        plots::{Scale, Series, line_plot},
        progress::duration,
    },
    train::{log::times, trainer::TrainOutcome},
};

/// A training: its name and its folder.
pub type Named<'a> = (&'a str, PathBuf);

/// What the clock of a training says.
#[derive(Clone, Debug, Default)]
pub struct Timing {
    /// Steps that were timed.
    pub steps: usize,
    /// Tokens of them.
    pub tokens: f64,
    /// Seconds of them.
    pub seconds: f64,
    /// Minutes of training, tokens per second.
    rate: Vec<(f64, f64)>,
    /// Minutes of training, memory of the process in MiB.
    memory: Vec<(f64, f64)>,
}

impl Timing {
    /// Of the training in `dir`; nothing where it has no clock.
    pub fn read(dir: &Path) -> Timing {
        let steps: Vec<_> = times(dir).into_values().collect();
        let mut timing = Timing { steps: steps.len(), ..Timing::default() };
        // Single steps are as uneven as their documents.
        for few in steps.chunks(steps.len().div_ceil(60).max(1)) {
            let seconds: f64 = few.iter().map(|s| s.seconds).sum();
            let tokens: f64 = few.iter().map(|s| s.tokens).sum();
            timing.tokens += tokens;
            timing.seconds += seconds;
            let minutes = timing.seconds / 60.0;
            timing.rate.push((minutes, tokens / seconds.max(1e-9)));
            let memory = few.iter().filter_map(|s| s.memory).fold(f64::NAN, f64::max);
            timing.memory.push((minutes, memory / 1048576.0));
        }
        timing
    }

    /// Tokens per second; `None` where nothing was timed.
    pub fn rate(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.tokens / self.seconds)
    }

    /// Such as `120 steps in 1m05s, 2310 tokens/s`.
    pub fn in_words(&self) -> String {
        format!(
            "{} steps in {}, {:.0} tokens/s",
            self.steps,
            duration(self.seconds),
            self.rate().unwrap_or_default()
        )
    }
}

/// Losses, gradient norm, learning rate, speed and memory of trainings, a picture each where there is anything to draw.
///
/// # Errors
/// A training without readable metrics.
pub fn curves(runs: &[Named]) -> Result<Vec<Block>> {
    let of = |tag: &str| -> Result<Vec<Series>> {
        let series = |(name, dir): &Named| {
            Ok(Series { name: name.to_string(), points: points(&dir.join(METRICS), tag)? })
        };
        runs.iter().map(series).collect()
    };
    let timings: Vec<Timing> = runs.iter().map(|(_, dir)| Timing::read(dir)).collect();
    let timed = |points: fn(&Timing) -> &Vec<(f64, f64)>| -> Vec<Series> {
        let series =
            |((name, _), t): (&Named, &Timing)| Series { name: name.to_string(), points: points(t).clone() };
        runs.iter().zip(&timings).map(series).collect()
    };
    let (training, validation, source) = (of("train/loss")?, of("eval/loss")?, of("eval/source_loss")?);
    let margins = of("train/rewards/margins")?;
    // A loss of preferences is none per token.
    let unit = if margins.iter().any(|s| !s.points.is_empty()) { "loss" } else { "nats per token" };
    let several = if runs.len() > 1 {
        "Each variant learns from other texts: curves of different variants do not compare."
    } else {
        ""
    };
    let losses = [
        ("Training loss", "step", unit, Scale::of_losses(&training), training, several),
        ("Validation loss", "step", unit, Scale::of_losses(&validation), validation, "On held-out rows."),
        (
            "Source-language loss",
            "step",
            "nats per token",
            Scale::of_losses(&source),
            source,
            "The base model's own answers to held-out source questions, the same for each variant: a rise is forgetting.",
        ),
    ];
    let others = [
        ("Gradient norm", "step", "norm before clipping", Scale::Zero, of("train/grad_norm")?, ""),
        ("Learning rate", "step", "learning rate", Scale::Zero, of("train/learning_rate")?, ""),
        ("Speed", "minutes of training", "tokens per second", Scale::Zero, timed(|t| &t.rate), ""),
        ("Memory", "minutes of training", "MiB of the process", Scale::Zero, timed(|t| &t.memory), ""),
    ];
    let plots = losses.into_iter().chain(rewards(margins, &of)?).chain(aligned(&of)?).chain(others);
    let drawn = plots.filter(|plot| plot.4.iter().any(|s| s.points.iter().any(|p| p.1.is_finite())));
    Ok(drawn
        .map(|(title, x, y, scale, series, caption)| Block::Svg {
            svg: line_plot(title, x, y, scale, &series),
            caption: caption.into(),
        })
        .collect())
}

/// A picture: title, axes, scale, lines, caption.
type Plot<'a> = (&'a str, &'a str, &'a str, Scale, Vec<Series>, &'a str);

/// What trainings on preferences have beside the others; `of` gives the lines of a tag.
fn rewards(margins: Vec<Series>, of: &dyn Fn(&str) -> Result<Vec<Series>>) -> Result<[Plot<'static>; 3]> {
    let margin = "chosen less rejected";
    Ok([
        (
            "Reward margin",
            "step",
            margin,
            Scale::Range,
            margins,
            "How much more the model has come to prefer the chosen reply, in the rows of a step.",
        ),
        (
            "Reward margin, validation",
            "step",
            margin,
            Scale::Range,
            of("eval/rewards/margins")?,
            "The same of held-out rows.",
        ),
        (
            "Preferred as chosen, validation",
            "step",
            "share of pairs",
            Scale::Zero,
            of("eval/rewards/accuracies")?,
            "Held-out pairs whose chosen reply has the higher reward.",
        ),
    ])
}

/// What trainings that align sentences have beside the others.
fn aligned(of: &dyn Fn(&str) -> Result<Vec<Series>>) -> Result<[Plot<'static>; 2]> {
    Ok([
        (
            "Alignment loss",
            "step",
            "nats per pair",
            Scale::Zero,
            of("train/alignment_loss")?,
            "Of the parallel sentences of a step, behind a layer in the middle of the model.",
        ),
        (
            "Translations found",
            "step",
            "share of sentences",
            Scale::Zero,
            of("train/alignment_retrieval")?,
            "Sentences whose translation is the nearest of all translations of the step, by the same hidden states.",
        ),
    ])
}

/// Step and value of every line of a metrics file that has this value.
///
/// # Errors
/// The file cannot be read.
pub fn points(path: &Path, tag: &str) -> Result<Vec<(f64, f64)>> {
    let text = read_text(path).reading(path)?;
    let point = |line: &str| {
        let v: Value = serde_json::from_str(line).ok()?;
        Some((v["step"].as_f64()?, v[tag].as_f64()?))
    };
    Ok(text.lines().filter_map(point).collect())
}

/// training.html of a training that has just ended.
pub(super) fn page(args: &Args, shards: &Path, outcome: &TrainOutcome) -> Result<Report> {
    let row = |name: &str, value: String| (name.to_string(), value);
    let mut facts = provenance::facts(args.placement);
    facts.push(row("model", args.model.clone()));
    facts.push(row("result", args.out.display().to_string()));
    facts.push(row("speed", Timing::read(&args.out).in_words()));
    if let Some(bytes) = peak_memory() {
        facts.push(row("peak memory", format!("{:.0} MiB", bytes as f64 / 1048576.0)));
    }
    let mut losses = vec![];
    if let Some(before) = outcome.start {
        losses.push(row("validation loss before", format!("{before:.4}")));
    }
    match outcome.best {
        Some((loss, step)) => losses.push(row(
            "best validation loss",
            format!("{loss:.4}, after step {step} of {}: this is what was kept", outcome.steps),
        )),
        None => losses.push(row(
            "last training loss",
            format!("{:.4}, after step {}", outcome.train_loss, outcome.steps),
        )),
    }
    losses.extend(Change::of(&args.out, outcome)?.map(|change| row("preferences", change.to_string())));
    let mut result = vec![Block::Rows(losses)];
    result.extend(outcome.warning.iter().map(|w| Block::Paragraph(format!("Warning: {w}"))));
    result.push(Block::Paragraph("What to do next:".into()));
    result.push(Block::Code(next_commands(&args.model, &args.out).join("\n")));
    let mut sections = vec![
        Section { heading: "Result".into(), blocks: result },
        Section { heading: "Training".into(), blocks: curves(&[("training", args.out.clone())])? },
    ];
    if let Some(packed) = Manifest::load(shards)? {
        sections.push(Section { heading: "Data".into(), blocks: vec![Block::Rows(data(&packed))] });
    }
    let settings = source::text(&args.settings)?;
    sections.push(Section { heading: "Settings".into(), blocks: vec![Block::Code(settings)] });
    let subtitle = if outcome.best.is_some() { "trained, best state kept" } else { "trained" };
    Ok(Report { title: format!("sdrrl: {}", args.model), subtitle: subtitle.into(), facts, sections })
}

/// What was read, used and left out, as `pack` counted it.
fn data(packed: &Manifest) -> Vec<(String, String)> {
    let mut rows = vec![];
    if let Some(counts) = &packed.counts {
        rows.push(("rows read".into(), counts.read.to_string()));
        rows.push(("rows used".into(), counts.written.to_string()));
        rows.extend(counts.dropped.iter().map(|(why, n)| (format!("left out: {why}"), n.to_string())));
    }
    for part in ["train", "validation", "source"] {
        let summary = &packed.summary[part];
        if let (Some(documents), Some(tokens)) =
            (summary["documents"].as_u64(), summary["trained-tokens"].as_u64())
        {
            rows.push((
                format!("{part} documents"),
                format!("{documents}, with {tokens} tokens that are learned"),
            ));
        }
    }
    rows
}
