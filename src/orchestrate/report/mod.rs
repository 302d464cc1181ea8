//! What a run's files say to people: the final table, the conclusions and report.html. Called by `run`; reads the work folder only.
mod data;
mod replies;

use anyhow::Result;
use serde_json::Value;

use super::recipe_stages;
use crate::{
    data::languages::{name, same_language},
    eval::{
        alignment,
        compare::{Comparison, delta},
        sample::read_samples,
        tasks::alignment::looked,
    },
    metrics::metric::Unit,
    pipeline::{
        clock,
        manifest::Manifest,
        provenance,
        work_dir::{Room, WorkDir, is_adapter},
    },
    recipe::{Recipe, eval::TaskKind, source},
    report::{
        html::{Block, Report, Section},
        plots::bars,
        progress::duration,
        table::{Cell, Table},
    },
    stages::train::{self, page},
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
    let work = WorkDir::new(&recipe.work);
    let targets: Vec<&str> = recipe.target_languages.iter().map(|l| name(l)).collect();
    let mut sections = vec![Section { heading: "Result".into(), blocks: result(recipe, all) }];
    sections.push(Section { heading: "Data".into(), blocks: data::blocks(recipe)? });
    sections.push(Section { heading: "Training".into(), blocks: training(recipe)? });
    if recipe.eval.tasks.iter().any(|t| t.kind() == TaskKind::Alignment) {
        sections.push(Section { heading: "Alignment of hidden states".into(), blocks: alignment(recipe)? });
    }
    sections.push(Section { heading: "Replies before and after".into(), blocks: replies::blocks(recipe)? });
    sections.push(Section { heading: "Time".into(), blocks: times(&work) });
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
        facts: facts(recipe, &work)?,
        sections,
    })
}

/// When, where and how the run was made.
fn facts(recipe: &Recipe, work: &WorkDir) -> Result<Vec<(String, String)>> {
    let mut facts = provenance::facts(recipe_stages::placement(recipe)?);
    let times = clock::read(work.root());
    if !times.is_empty() {
        facts.push(("time".into(), duration(times.iter().map(|t| t.seconds).sum())));
    }
    if let Some(peak) = times.iter().filter_map(|t| t.peak_memory).max() {
        facts.push(("peak memory".into(), format!("{} MiB", peak >> 20)));
    }
    for variant in &recipe.variants {
        let trained = work.room(Room::Train(Some(variant.name())));
        let what = if is_adapter(&trained) { "adapter" } else { "model" };
        facts.push((format!("{what} {}", variant.name()), trained.display().to_string()));
    }
    Ok(facts)
}

/// What every stage took.
fn times(work: &WorkDir) -> Vec<Block> {
    let times = clock::read(work.root());
    let all: f64 = times.iter().map(|t| t.seconds).sum();
    let mut table = Table::new(&["stage", "seconds", "share %", "peak memory MiB"]);
    for t in times {
        let memory = t.peak_memory.map_or(Cell::Empty, |bytes| Cell::Number((bytes >> 20) as f64, 0));
        let share = Cell::Number(100.0 * t.seconds / all.max(1e-9), 1);
        table.push(vec![Cell::Text(t.stage), Cell::Number(t.seconds, 1), share, memory]);
    }
    let note =
        "Stages that were made by `sdrrl run`; the memory is the most that the process had had by then.";
    vec![Block::Table(table), Block::Paragraph(note.into())]
}

fn result(recipe: &Recipe, all: &Results) -> Vec<Block> {
    let mut blocks = vec![Block::Table(table(all))];
    blocks.extend(conclusions(recipe, all).into_iter().map(Block::Paragraph));
    if let Some(variant) = recipe.variants.first() {
        let trained = WorkDir::new(&recipe.work).room(Room::Train(Some(variant.name())));
        blocks.push(Block::Paragraph("What to do next:".into()));
        blocks.push(Block::Code(train::next_commands(&recipe.model, &trained).join("\n")));
    }
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

fn training(recipe: &Recipe) -> Result<Vec<Block>> {
    let work = WorkDir::new(&recipe.work);
    let mut runs: Vec<page::Named> = vec![];
    let mut table = Table::new(&[
        "variant",
        "documents",
        "trained tokens",
        "steps",
        "best validation loss",
        "tokens per second",
    ]);
    for variant in &recipe.variants {
        let name = variant.name();
        let dir = work.room(Room::Train(Some(name)));
        let speed = page::Timing::read(&dir).rate();
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
            speed.map_or(Cell::Empty, |x| Cell::Number(x, 0)),
        ]);
        runs.push((name, dir));
    }
    let mut blocks = vec![Block::Table(table)];
    blocks.extend(page::curves(&runs)?);
    Ok(blocks)
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
