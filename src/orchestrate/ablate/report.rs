//! The ablation's table, conclusions and page. Everything that it says is computed from the arms' results.
use anyhow::{Context, Result};

use super::{Ran, many::about_intervals};
use crate::{
    data::languages::{name, same_language},
    eval::compare::{Comparison, delta},
    recipe::{ablate::Ablations, source},
    report::{
        html::{Block, Report, Section},
        intervals::{Curve, Estimate, Level, curves, forest},
        table::{Cell, Table},
    },
};
use crate::{pipeline::work_dir::metrics_of, stages::train::page};

/// The first metric of each task, as indices of the arms' comparisons.
pub(super) fn headlines(ran: &[Ran]) -> Vec<usize> {
    let all = ran.first().map_or(&[][..], |r| &r.to_base);
    (0..all.len()).filter(|&i| i == 0 || all[i].task != all[i - 1].task).collect()
}

/// Headlines of tasks in the reference arm's target languages, or in its source language.
fn of_language(ran: &[Ran], source: bool) -> Vec<usize> {
    let Some(reference) = ran.first() else { return vec![] };
    let is_source = |c: &Comparison| same_language(&c.language, &reference.arm.recipe.source_language);
    headlines(ran).into_iter().filter(|&i| is_source(&reference.to_base[i]) == source).collect()
}

fn title(r: &Ran, ran: &[Ran]) -> String {
    let same = r.same_as.and_then(|i| ran.get(i)).map(|e| format!(" (same training as {})", e.arm.arm.name));
    format!("{}{}", r.arm.title(), same.unwrap_or_default())
}

/// What is headed and its table: the headline metrics of `width` tasks side by side, one row an arm.
pub fn tables(ran: &[Ran], width: usize) -> Vec<(String, Table)> {
    let Some(reference) = ran.first() else { return vec![] };
    let chunks: Vec<Vec<usize>> = headlines(ran).chunks(width.max(1)).map(<[usize]>::to_vec).collect();
    let table = |indices: &Vec<usize>| {
        let labels: Vec<String> = indices
            .iter()
            .map(|&i| format!("{}: {}", reference.to_base[i].task, reference.to_base[i].metric))
            .collect();
        let mut header = vec!["arm", "documents"];
        let more = ["to base (95 %)", "to full (95 %)", "p (Holm)"];
        labels.iter().for_each(|l| header.extend([l.as_str()].into_iter().chain(more)));
        let mut table = Table::new(&header);
        let mut before = vec![Cell::Text("base model, untrained".into()), Cell::Empty];
        indices.iter().for_each(|&i| {
            let c = &reference.to_base[i];
            before.extend([Cell::Number(c.before, c.decimals), Cell::Empty, Cell::Empty, Cell::Empty]);
        });
        table.push(before);
        for r in ran {
            let documents = r.packed["train"]["documents"].as_f64();
            let mut row =
                vec![Cell::Text(title(r, ran)), documents.map_or(Cell::Empty, |n| Cell::Number(n, 0))];
            for &i in indices {
                let c = &r.to_base[i];
                row.extend([Cell::Number(c.after, c.decimals), delta(c)]);
                row.push(r.to_reference.get(i).map_or(Cell::Empty, delta));
                row.push(r.holm.get(i).copied().flatten().map_or(Cell::Empty, |p| Cell::Number(p, 3)));
            }
            table.push(row);
        }
        (labels.join("; "), table)
    };
    chunks.iter().map(table).collect()
}

/// An interval beyond zero: on the good side, on the bad side, or neither.
fn verdict(c: &Comparison) -> i8 {
    let up = i8::from(c.paired.low > 0.0) - i8::from(c.paired.high < 0.0);
    if c.higher_is_better { up } else { -up }
}

fn signed(c: &Comparison) -> String {
    let (d, p) = (c.decimals, &c.paired);
    format!("{:+.d$} ({:+.d$} .. {:+.d$})", p.difference, p.low, p.high)
}

/// Sentences about the target language, the source language, the sweeps, and what the intervals do not say.
pub fn conclusions(matrix: &Ablations, ran: &[Ran]) -> Vec<String> {
    let Some(reference) = ran.first() else { return vec![] };
    let full = reference.arm.title();
    let mut out = vec![];
    for i in of_language(ran, false) {
        let c = &reference.to_base[i];
        let of = |wanted: i8| -> Vec<String> {
            ran[1..]
                .iter()
                .filter(|r| r.same_as.is_none())
                .filter_map(|r| Some((r, r.to_reference.get(i)?)))
                .filter(|(_, c)| verdict(c) == wanted)
                .map(|(r, c)| format!("{} {}", r.arm.title(), signed(c)))
                .collect()
        };
        let mut text = format!(
            "{} ({}, {}): {full} takes it from {:.d$} to {:.d$}, {}.",
            c.task,
            name(&c.language),
            c.metric,
            c.before,
            c.after,
            signed(c),
            d = c.decimals
        );
        for (what, arms) in [("Worse", of(-1)), ("Better", of(1)), ("Not told apart from it", of(0))] {
            if !arms.is_empty() {
                text += &format!(" {what}: {}.", arms.join("; "));
            }
        }
        out.push(text);
    }
    for i in of_language(ran, true) {
        let lost: Vec<String> = ran
            .iter()
            .filter(|r| verdict(&r.to_base[i]) < 0)
            .map(|r| format!("{} {}", r.arm.title(), signed(&r.to_base[i])))
            .collect();
        let c = &reference.to_base[i];
        out.push(match lost.is_empty() {
            true => format!("{} ({}): no arm loses against the untrained model.", c.task, name(&c.language)),
            false => format!(
                "{} ({}): {} of {} arms lose against the untrained model: {}.",
                c.task,
                name(&c.language),
                lost.len(),
                ran.len(),
                lost.join("; ")
            ),
        });
    }
    for (s, sweep) in matrix.sweeps.iter().enumerate() {
        out.extend(of_language(ran, false).into_iter().filter_map(|i| sweep_sentence(&sweep.key, s, i, ran)));
    }
    out.push(about_intervals(matrix, ran, reference));
    out
}

fn points(sweep: usize, i: usize, ran: &[Ran]) -> Vec<(f64, f64, (f64, f64))> {
    let mut out: Vec<_> = ran
        .iter()
        .filter_map(|r| Some((r.arm.sweep.filter(|s| s.0 == sweep)?.1, r)))
        .map(|(x, r)| {
            // Whiskers are about the comparison with the reference; the reference itself has none.
            let c = r.to_reference.get(i).unwrap_or(&r.to_base[i]);
            (x, c.after, (c.before + c.paired.low, c.before + c.paired.high))
        })
        .collect();
    out.sort_by(|a, b| a.0.total_cmp(&b.0));
    out
}

fn sweep_sentence(key: &str, sweep: usize, i: usize, ran: &[Ran]) -> Option<String> {
    let c = &ran.first()?.to_base[i];
    let better = |a: f64, b: f64| if c.higher_is_better { a.total_cmp(&b) } else { b.total_cmp(&a) };
    let points = points(sweep, i, ran);
    let best = points.iter().max_by(|a, b| better(a.1, b.1))?.1;
    let worst = points.iter().min_by(|a, b| better(a.1, b.1))?.1;
    let (first, last) = (points.first()?.0, points.last()?.0);
    if best == worst {
        return Some(format!("{key} from {first} to {last}: no difference on {}.", c.task));
    }
    let at = |value: f64| {
        let all: Vec<String> = points.iter().filter(|p| p.1 == value).map(|p| p.0.to_string()).collect();
        all.join(", ")
    };
    Some(format!(
        "{key} from {first} to {last}: {} is best at {} ({best:.d$}) and worst at {} ({worst:.d$}).",
        c.task,
        at(best),
        at(worst),
        d = c.decimals
    ))
}

/// The whole page.
pub fn build(matrix: &Ablations, ran: &[Ran]) -> Result<Report> {
    let Some(reference) = ran.first() else { return Ok(Report::default()) };
    let recipe = &reference.arm.recipe;
    let mut figure = 0;
    let mut numbered = |svg: String, caption: String| {
        figure += 1;
        Block::Svg { svg, caption: format!("Figure {figure}. {caption}") }
    };
    let rows: Vec<usize> = headlines(ran);
    let targets: Vec<&str> = recipe.target_languages.iter().map(|l| name(l)).collect();
    let mut result = vec![Block::Paragraph(format!(
        "{} arms over the recipe {}: each is the full method with the named change, trained from the same model ({}) on the same {} \
         questions and tested on the same rows. Arms share every stage whose inputs and settings are equal.",
        ran.len(),
        matrix.recipe.display(),
        recipe.model,
        name(&recipe.source_language)
    ))];
    for (n, (heading, table)) in tables(ran, 1).into_iter().enumerate() {
        result.push(Block::Table(table));
        result.push(Block::Paragraph(format!(
            "Table {}. {heading}. Differences with 95 % intervals of the paired bootstrap over test rows: to the untrained base model, and \
             to {}, with the p-value corrected for all comparisons of the matrix (Holm). Coloured where the interval excludes zero.",
            n + 1,
            reference.arm.title()
        )));
    }
    for &i in &rows {
        let c = &reference.to_base[i];
        result.push(numbered(
            forest(&format!("{} ({})", c.task, name(&c.language)), &c.metric, &estimates(ran, i), &levels(ran, i)),
            format!(
                "Each arm after training: {} on the rows of {}. Whiskers: {}'s value plus the 95 % interval of the paired difference to it, so an arm \
                 differs from it where its whisker does not touch the first dashed line.",
                c.metric,
                c.task,
                reference.arm.title()
            ),
        ));
    }
    let conclusion = conclusions(matrix, ran).into_iter().map(Block::Paragraph).collect();
    let mut sections = vec![
        Section { heading: "Conclusions".into(), blocks: conclusion },
        Section { heading: "What each part is worth".into(), blocks: result },
    ];
    let sweeps = sweep_blocks(matrix, ran, &rows, &mut numbered);
    if !sweeps.is_empty() {
        sections.push(Section { heading: "Sweeps".into(), blocks: sweeps });
    }
    sections.push(Section { heading: "Training".into(), blocks: training(ran, &mut numbered)? });
    sections.push(Section { heading: "How it was made".into(), blocks: made(matrix, ran)? });
    Ok(Report {
        facts: vec![],
        title: format!("Ablations: {}", matrix.name),
        subtitle: format!(
            "{} learns {} from {}",
            recipe.model,
            targets.join(", "),
            name(&recipe.source_language)
        ),
        sections,
    })
}

fn estimates(ran: &[Ran], i: usize) -> Vec<Estimate> {
    let of = |r: &Ran| {
        let c = &r.to_base[i];
        let interval = r
            .to_reference
            .get(i)
            .map_or((c.after, c.after), |c| (c.before + c.paired.low, c.before + c.paired.high));
        Estimate { name: r.arm.title().to_string(), value: c.after, interval }
    };
    ran.iter().filter(|r| r.same_as.is_none()).map(of).collect()
}

fn levels(ran: &[Ran], i: usize) -> Vec<Level> {
    let Some(reference) = ran.first() else { return vec![] };
    let c = &reference.to_base[i];
    vec![
        Level { at: c.after, name: reference.arm.title().into() },
        Level { at: c.before, name: "base model, untrained".into() },
    ]
}

fn sweep_blocks(
    matrix: &Ablations,
    ran: &[Ran],
    rows: &[usize],
    numbered: &mut impl FnMut(String, String) -> Block,
) -> Vec<Block> {
    let Some(reference) = ran.first() else { return vec![] };
    let mut blocks = vec![];
    for (s, sweep) in matrix.sweeps.iter().enumerate() {
        for &first in rows {
            let lines = [Curve {
                name: format!(
                    "{} ({})",
                    reference.to_base[first].task,
                    name(&reference.to_base[first].language)
                ),
                points: points(s, first, ran),
            }];
            let documents: Vec<String> = ran
                .iter()
                .filter_map(|r| {
                    Some((r.arm.sweep.filter(|x| x.0 == s)?.1, r.packed["train"]["documents"].as_u64()?))
                })
                .map(|(x, n)| format!("{x}: {n}"))
                .collect();
            let label = sweep.title.as_deref().unwrap_or(&sweep.key);
            let metric = &reference.to_base[first].metric;
            blocks.push(numbered(
                curves(
                    &format!("{} against {}", reference.to_base[first].task, sweep.key),
                    label,
                    metric,
                    &lines,
                    &levels(ran, first),
                ),
                format!(
                    "One training for each value of {}, everything else as in {}. Whiskers as above; dashed: its value and the untrained \
                     model's on {}. Training documents by value: {}.",
                    sweep.key,
                    reference.arm.title(),
                    reference.to_base[first].task,
                    documents.join(", ")
                ),
            ));
        }
    }
    blocks
}

fn training(ran: &[Ran], numbered: &mut impl FnMut(String, String) -> Block) -> Result<Vec<Block>> {
    let Some(reference) = ran.first() else { return Ok(vec![]) };
    let source = &reference.arm.recipe.source_language;
    let of = |tag: &str, wanted: &dyn Fn(&Ran) -> bool| -> Result<Vec<Curve>> {
        let mut all = vec![];
        for r in ran.iter().filter(|r| r.arm.sweep.is_none() && r.same_as.is_none() && wanted(r)) {
            let points: Vec<_> =
                page::points(&metrics_of(r.trains.first().context("there is no training")?), tag)?
                    .into_iter()
                    .map(|(x, y)| (x, y, (y, y)))
                    .collect();
            if !points.is_empty() {
                all.push(Curve { name: r.arm.title().into(), points });
            }
        }
        Ok(all)
    };
    let mut blocks = vec![];
    let kept = of("eval/source_loss", &|r| same_language(&r.arm.recipe.source_language, source))?;
    if !kept.is_empty() {
        blocks.push(numbered(
            curves(
                &format!("{} held-out loss during training", name(source)),
                "optimizer step",
                "nats per token",
                &kept,
                &[],
            ),
            "Loss of the base model's own answers to held-out source-language questions, none of which is trained on: a rise is forgetting. \
             The same rows in every arm, so curves compare."
                .into(),
        ));
    }
    blocks.push(numbered(
        curves("Validation loss", "optimizer step", "nats per token", &of("eval/loss", &|_| true)?, &[]),
        "On the held-out siblings of each arm's own training set: they differ between arms, so only the shapes compare.".into(),
    ));
    Ok(blocks)
}

fn made(matrix: &Ablations, ran: &[Ran]) -> Result<Vec<Block>> {
    let mut table = Table::new(&["arm", "changes to the recipe", "steps", "best validation loss"]);
    for r in ran {
        let number = |v: &serde_json::Value, d| v.as_f64().map_or(Cell::Empty, |x| Cell::Number(x, d));
        table.push(vec![
            Cell::Text(r.arm.arm.name.clone()),
            Cell::Text(if r.arm.arm.set.is_empty() { "none".into() } else { r.arm.arm.set.join("; ") }),
            number(&r.trained["steps"], 0),
            number(&r.trained["best"]["loss"], 4),
        ]);
    }
    let mut blocks = vec![Block::Table(table)];
    if !matrix.set.is_empty() {
        blocks.push(Block::Paragraph(format!("In every arm: {}.", matrix.set.join("; "))));
    }
    if let Some(reference) = ran.first() {
        blocks.push(Block::Code(source::text(&reference.arm.recipe)?));
    }
    Ok(blocks)
}
