//! What a run's files say to people: the final table, the conclusions and report.html. Called by `run`; reads the work folder only.
use std::path::Path;

use crate::data::files::FileContext;
use anyhow::Result;
use serde_json::Value;

use crate::eval::{
    alignment,
    compare::{Comparison, delta},
    samples::read_samples,
    tasks::alignment::looked,
};
use crate::pipeline::{
    manifest::Manifest,
    work_dir::{Room, WorkDir, metrics_of},
};
use crate::{
    data::languages::{name, same_language},
    data::{record::Row, row_shard::RowSet},
    metrics::metric::Unit,
    recipe::{Recipe, eval::TaskKind, source},
    report::{
        html::{Block, Report, Section},
        plots::{Series, bars, histogram, line_plot},
        table::{Cell, Table},
    },
};

/// The results of each variant.
type Results<'a> = [(&'a str, Vec<Comparison>)];

/// One row a metric: before, and each variant with its difference.
pub fn table(all: &Results) -> Table {
    let mut header = vec!["task", "language", "metric", "before"];
    header.extend(all.iter().flat_map(|(variant, _)| [*variant, "difference (95 %)"]));
    let mut table = Table::new(&header);
    let Some((_, first)) = all.first() else { return table };
    for (i, c) in first.iter().enumerate() {
        let mut row = vec![
            Cell::Text(c.task.clone()),
            Cell::Text(c.language.clone()),
            Cell::Text(c.metric.clone()),
            Cell::Number(c.before, c.decimals),
        ];
        for (_, comparisons) in all {
            row.extend(
                comparisons.get(i).into_iter().flat_map(|c| [Cell::Number(c.after, c.decimals), delta(c)]),
            );
        }
        table.push(row);
    }
    table
}

/// A line for each variant: what happened to the target languages, and whether the source language was kept.
pub fn conclusions(recipe: &Recipe, all: &Results) -> Vec<String> {
    let source = name(&recipe.source_language);
    all.iter()
        .map(|(variant, comparisons)| {
            // Without an interval nothing is said.
            let of = |is_source: bool| {
                comparisons.iter().filter(move |c| {
                    same_language(&c.language, &recipe.source_language) == is_source && !c.paired.low.is_nan()
                })
            };
            // An interval beyond zero on the good or on the bad side.
            let better =
                |c: &&Comparison| if c.higher_is_better { c.paired.low > 0.0 } else { c.paired.high < 0.0 };
            let worse =
                |c: &&Comparison| if c.higher_is_better { c.paired.high < 0.0 } else { c.paired.low > 0.0 };
            let n = of(false).count();
            let (up, down) = (of(false).filter(better).count(), of(false).filter(worse).count());
            let lost: Vec<String> =
                of(true).filter(worse).map(|c| format!("{} {}", c.task, c.metric)).collect();
            let kept = match (of(true).count(), lost.is_empty()) {
                (0, _) => format!("{source} was not evaluated"),
                (_, true) => format!("{source} kept: yes"),
                (_, false) => format!("{source} kept: no (significantly worse: {})", lost.join(", ")),
            };
            format!(
                "{variant}: of {n} target-language metrics {up} significantly better, {down} worse; {kept}"
            )
        })
        .collect()
}

/// The whole report.
pub fn build(recipe: &Recipe, all: &Results) -> Result<Report> {
    let targets: Vec<&str> = recipe.target_languages.iter().map(|l| name(l)).collect();
    let mut sections = vec![Section { heading: "Result".into(), blocks: result(recipe, all) }];
    sections.push(Section { heading: "Data".into(), blocks: data(recipe)? });
    sections.push(Section { heading: "Training".into(), blocks: training(recipe)? });
    if recipe.eval.tasks.iter().any(|t| t.kind() == TaskKind::Alignment) {
        sections.push(Section { heading: "Alignment of hidden states".into(), blocks: alignment(recipe)? });
    }
    sections.push(Section { heading: "Replies before and after".into(), blocks: replies(recipe)? });
    let settings = source::text(recipe)?;
    sections.push(Section { heading: "All settings".into(), blocks: vec![Block::Code(settings)] });
    Ok(Report {
        title: format!("sdrrl: {}", recipe.name),
        subtitle: format!(
            "{} learns {} from {}",
            recipe.model,
            targets.join(", "),
            name(&recipe.source_language)
        ),
        sections,
    })
}

fn result(recipe: &Recipe, all: &Results) -> Vec<Block> {
    let mut blocks = vec![Block::Table(table(all))];
    blocks.extend(conclusions(recipe, all).into_iter().map(Block::Paragraph));
    let Some((_, first)) = all.first() else { return blocks };
    // One picture a unit: percentages and scores up to 100 together, the rest apart.
    // Fractions stay below 1, where bars of up to 100 hide them.
    let small = |c: &Comparison| c.unit == Unit::Fraction;
    let percent: Vec<usize> =
        (0..first.len()).filter(|&i| first[i].higher_is_better && !small(&first[i])).collect();
    let any = |i: usize| first[i].before != 0.0 || all.iter().any(|(_, c)| c[i].after != 0.0);
    let other: Vec<usize> = (0..first.len()).filter(|&i| !first[i].higher_is_better && any(i)).collect();
    for (title, indices) in [("Higher is better", percent), ("Lower is better", other)] {
        if indices.is_empty() {
            continue;
        }
        let groups: Vec<String> =
            indices.iter().map(|&i| format!("{} {}", first[i].task, first[i].name)).collect();
        let mut series =
            vec![("before".to_string(), indices.iter().map(|&i| first[i].before).collect::<Vec<f64>>())];
        let mut errors = vec![vec![]];
        for (variant, c) in all {
            series.push((variant.to_string(), indices.iter().map(|&i| c[i].after).collect()));
            errors.push(
                indices
                    .iter()
                    .map(|&i| (c[i].before + c[i].paired.low, c[i].before + c[i].paired.high))
                    .collect(),
            );
        }
        blocks.push(Block::Svg {
            svg: bars(title, "value", &groups, &series, Some(&errors)),
            caption: "Whiskers: before plus the 95 % interval of the paired difference.".into(),
        });
    }
    blocks
}

fn data(recipe: &Recipe) -> Result<Vec<Block>> {
    let set = RowSet::open(&WorkDir::new(&recipe.work).room(Room::CodeSwitch))?;
    let rows: Vec<Row> = set.iter().collect::<Result<_>>()?;
    let mut blocks = vec![];
    let alarmed = rows.iter().filter(|r| r.answer.as_ref().is_some_and(|a| !a.alarms.is_empty())).count();
    let mut facts =
        vec![("questions".to_string(), format!("{} ({alarmed} answers with an alarm)", rows.len()))];
    let (mut scores, mut retained) = (vec![], vec![]);
    for target in &recipe.target_languages {
        let kept = rows.iter().filter(|r| r.verdicts.get(target).is_some_and(|v| v.keep)).count();
        facts.push((name(target).to_string(), format!("{kept} of {} translations kept", rows.len())));
        let worst: Vec<f64> = rows.iter().filter_map(|r| worst_side(r, target)).collect();
        let sound = |r: &&Row| {
            r.verdicts
                .get(target)
                .is_some_and(|v| v.keep || v.reasons.iter().all(|x| x.starts_with("score ")))
        };
        let passing: Vec<f64> = rows.iter().filter(sound).filter_map(|r| worst_side(r, target)).collect();
        let share = |tau: f64| {
            100.0 * passing.iter().filter(|x| **x >= tau).count() as f64 / rows.len().max(1) as f64
        };
        retained.push(Series {
            name: name(target).into(),
            points: (0..=100).map(|i| i as f64 / 100.0).map(|tau| (tau, share(tau))).collect(),
        });
        scores.push((name(target).to_string(), worst));
    }
    blocks.push(Block::Rows(facts));
    let engine = rows.iter().flat_map(|r| r.scores.values()).next().map_or("", |scores| &scores.engine);
    let tau = recipe.filter.tau_for(engine);
    blocks.push(Block::Svg {
        svg: histogram(
            "Scores of translated rows",
            "score of the row's worst side",
            &scores,
            Some((tau, format!("tau = {tau}"))),
        ),
        caption: "Rows left of the line are not learned from.".into(),
    });
    blocks.push(Block::Svg {
        svg: line_plot("What another threshold would keep", "tau", "rows kept (%)", &retained),
        caption: "Rows with an alarm are out at any tau.".into(),
    });
    blocks.push(Block::Table(examples(&rows, recipe)));
    Ok(blocks)
}

/// What decides against tau: the lowest score of question and answer.
fn worst_side(row: &Row, target: &str) -> Option<f64> {
    let sides = &row.scores.get(target)?.sides;
    ["instruction", "input", "answer"]
        .iter()
        .filter_map(|side| sides.get(*side))
        .copied()
        .min_by(f64::total_cmp)
}

/// A few rows, kept and dropped.
fn examples(rows: &[Row], recipe: &Recipe) -> Table {
    let mut table = Table::new(&["question", "own answer", "translation", "code-switched", "verdict"]);
    let Some(target) = recipe.target_languages.first() else { return table };
    let keep = |r: &&Row| r.verdicts.get(target).is_some_and(|v| v.keep);
    let (kept, dropped): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(keep);
    for row in kept.into_iter().take(5).chain(dropped.into_iter().take(5)) {
        let t = row.translations.get(target);
        let verdict = row.verdicts.get(target);
        let text = |s: &str| Cell::Text(short(s, 160));
        table.push(vec![
            text(&format!("{} {}", row.instruction, row.input)),
            text(row.answer.as_ref().map_or("", |a| &a.text)),
            text(&t.map_or(String::new(), |t| format!("{} {} → {}", t.instruction, t.input, t.answer))),
            text(row.code_switched.get(target).map_or("", |c| &c.instruction)),
            text(
                &verdict.map_or(String::new(), |v| if v.keep { "kept".into() } else { v.reasons.join("; ") }),
            ),
        ]);
    }
    table
}

fn short(text: &str, length: usize) -> String {
    let text = text.trim();
    if text.chars().count() <= length {
        text.into()
    } else {
        text.chars().take(length - 1).chain(['…']).collect()
    }
}

fn training(recipe: &Recipe) -> Result<Vec<Block>> {
    let work = WorkDir::new(&recipe.work);
    let (mut train, mut validation, mut source) = (vec![], vec![], vec![]);
    let mut table = Table::new(&["variant", "documents", "trained tokens", "steps", "best validation loss"]);
    for variant in &recipe.variants {
        let name = variant.name();
        let curves = metrics_of(&work.room(Room::Train(Some(name))));
        let points = |tag: &str| -> Result<Vec<(f64, f64)>> { metric(&curves, tag) };
        train.push(Series { name: name.into(), points: points("train/loss")? });
        validation.push(Series { name: name.into(), points: points("eval/loss")? });
        source.push(Series { name: name.into(), points: points("eval/source_loss")? });
        let summary = |room: Room| -> Result<Value> {
            Ok(Manifest::load(&work.room(room))?.map_or(Value::Null, |m| m.summary))
        };
        let (packed, trained) = (summary(Room::Pack(Some(name)))?, summary(Room::Train(Some(name)))?);
        let number = |v: &Value, decimals| v.as_f64().map_or(Cell::Empty, |x| Cell::Number(x, decimals));
        table.push(vec![
            Cell::Text(name.into()),
            number(&packed["train"]["documents"], 0),
            number(&packed["train"]["trained-tokens"], 0),
            number(&trained["steps"], 0),
            number(&trained["best"]["loss"], 4),
        ]);
    }
    Ok(vec![
        Block::Table(table),
        Block::Svg {
            svg: line_plot("Training loss", "step", "nats per token", &train),
            caption: "Each variant learns from other texts: curves of different variants do not compare."
                .into(),
        },
        Block::Svg {
            svg: line_plot("Validation loss", "step", "nats per token", &validation),
            caption: "On held-out source rows.".into(),
        },
        Block::Svg {
            svg: line_plot("Source-language loss", "step", "nats per token", &source),
            caption: "The base model's own answers to held-out source questions, the same for each variant: a rise is forgetting.".into(),
        },
    ])
}

pub(super) fn metric(path: &Path, tag: &str) -> Result<Vec<(f64, f64)>> {
    let text = crate::data::json::read_text(path).reading(path)?;
    let point = |line: &str| {
        let v: Value = serde_json::from_str(line).ok()?;
        Some((v["step"].as_f64()?, v[tag].as_f64()?))
    };
    Ok(text.lines().filter_map(point).collect())
}

/// Of each alignment task: the plane before and after, and every number over the layers.
fn alignment(recipe: &Recipe) -> Result<Vec<Block>> {
    let work = WorkDir::new(&recipe.work);
    let mut blocks = vec![];
    for task in recipe.eval.tasks.iter().filter(|t| t.kind() == TaskKind::Alignment) {
        let of = |title: &str, room: Room| looked(title, task, &read_samples(&work.room(room), task)?);
        let mut all = vec![of("before", Room::EvalBase)?];
        for v in &recipe.variants {
            all.push(of(&format!("after {}", v.name()), Room::Eval(Some(v.name())))?);
        }
        let languages = (name(&task.source_language), name(&task.language));
        let (pooling, projection) = (task.pooling.unwrap_or_default(), task.projection.unwrap_or_default());
        blocks.push(Block::Paragraph(format!("{} ({} and {})", task.name, languages.0, languages.1)));
        blocks.extend(alignment::planes(&all, languages, pooling, projection));
        blocks.extend(alignment::layer_curves(&all, languages, pooling));
    }
    Ok(blocks)
}

fn replies(recipe: &Recipe) -> Result<Vec<Block>> {
    let work = WorkDir::new(&recipe.work);
    let mut blocks = vec![];
    for task in recipe.eval.tasks.iter().filter(|t| t.max_new_tokens > 0) {
        let before = read_samples(&work.room(Room::EvalBase), task)?;
        if before.iter().all(|s| s.response.is_empty() || !s.log_likelihoods.is_empty()) {
            continue;
        }
        let mut header = vec!["prompt", "expected", "before"];
        header.extend(recipe.variants.iter().map(|v| v.name()));
        let mut table = Table::new(&header);
        let after: Vec<_> = recipe
            .variants
            .iter()
            .map(|v| read_samples(&work.room(Room::Eval(Some(v.name()))), task))
            .collect::<Result<_>>()?;
        for (i, sample) in before.iter().enumerate().take(6) {
            let text = |s: &str| Cell::Text(short(s, 200));
            let mut row = vec![
                text(&sample.prompt),
                text(sample.targets.first().map_or("", String::as_str)),
                text(&sample.response),
            ];
            row.extend(after.iter().map(|a| text(a.get(i).map_or("", |s| &s.response))));
            table.push(row);
        }
        blocks.push(Block::Paragraph(format!("{} ({})", task.name, name(&task.language))));
        blocks.push(Block::Table(table));
    }
    Ok(blocks)
}
