//! What became of the rows of a run: scores, thresholds, reasons, examples.
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use anyhow::Result;

use crate::{
    data::{alarms::Alarms, languages::name, record::Row, row_shard::RowSet},
    pipeline::work_dir::{Room, WorkDir},
    recipe::Recipe,
    report::{
        html::Block,
        plots::{Scale, Series, histogram, line_plot},
        table::{Cell, Table},
    },
};

/// The part of the page about the data.
pub fn blocks(recipe: &Recipe) -> Result<Vec<Block>> {
    let set = RowSet::open(&WorkDir::new(&recipe.work).room(Room::CodeSwitch))?;
    let rows: Vec<Row> = set.iter().collect::<Result<_>>()?;
    let mut blocks = vec![];
    let mut alarms = Alarms::default();
    rows.iter().filter_map(|r| r.answer.as_ref()).for_each(|a| alarms.count(&a.alarms));
    let mut facts = vec![("questions".to_string(), format!("{} ({alarms})", rows.len()))];
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
        svg: line_plot("What another threshold would keep", "tau", "rows kept (%)", Scale::Zero, &retained),
        caption: "Rows with an alarm are out at any tau.".into(),
    });
    blocks.push(Block::Table(reasons(&rows, recipe)));
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

/// Why rows were left out, by language: a row may have several reasons.
fn reasons(rows: &[Row], recipe: &Recipe) -> Table {
    let mut header = vec!["reason for leaving a row out"];
    header.extend(recipe.target_languages.iter().map(|l| name(l)));
    let mut counts: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, language) in recipe.target_languages.iter().enumerate() {
        for row in rows {
            let verdict = row.verdicts.get(language);
            let given = verdict.filter(|v| !v.keep).map_or(&[][..], |v| &v.reasons);
            // Two sides may give the same one.
            for reason in given.iter().map(|r| kind_of(r)).collect::<BTreeSet<String>>() {
                counts.entry(reason).or_insert_with(|| vec![0; recipe.target_languages.len()])[i] += 1;
            }
        }
    }
    let mut counts: Vec<(String, Vec<usize>)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, n)| Reverse(n.iter().sum::<usize>()));
    let mut table = Table::new(&header);
    for (reason, n) in counts {
        let numbers = n.into_iter().map(|n| Cell::Number(n as f64, 0));
        table.push([Cell::Text(reason)].into_iter().chain(numbers).collect());
    }
    table
}

/// A reason without its numbers: `score answer 0.312 < 0.35` is `score answer below tau`.
fn kind_of(reason: &str) -> String {
    match reason.split_once(" < ") {
        Some((score, _)) => {
            let what = score.rsplit_once(' ').map_or(score, |(what, _)| what);
            format!("{what} below tau")
        }
        None => reason.to_string(),
    }
}

/// A few rows from all over the data, kept and dropped.
fn examples(rows: &[Row], recipe: &Recipe) -> Table {
    let mut table = Table::new(&["question", "own answer", "translation", "code-switched", "verdict"]);
    let Some(target) = recipe.target_languages.first() else { return table };
    let keep = |r: &&Row| r.verdicts.get(target).is_some_and(|v| v.keep);
    let (kept, dropped): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(keep);
    for row in spread(&kept, 5).chain(spread(&dropped, 5)) {
        let t = row.translations.get(target);
        let verdict = row.verdicts.get(target);
        let text = |s: &str| Cell::Text(short(s, 160));
        table.push(vec![
            text(&format!("{} {}", row.instruction, row.input)),
            text(row.answer.as_ref().map_or("", |a| &a.text)),
            text(&t.map_or(String::new(), |t| format!("{} {} → {}", t.instruction, t.input, t.answer))),
            text(row.code_switched.get(target).map_or("", |c| &c.instruction)),
            verdict.map_or(Cell::Empty, |v| Cell::Judged {
                text: if v.keep { "kept".into() } else { v.reasons.join("; ") },
                right: v.keep,
            }),
        ]);
    }
    table
}

/// `n` of them, evenly from first to last.
pub(super) fn spread<T>(all: &[T], n: usize) -> impl Iterator<Item = &T> {
    let n = n.min(all.len());
    (0..n).map(move |i| &all[i * all.len() / n])
}

pub(super) fn short(text: &str, length: usize) -> String {
    let text = text.trim();
    if text.chars().count() <= length {
        text.into()
    } else {
        text.chars().take(length - 1).chain(['…']).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_without_their_numbers() {
        assert_eq!(kind_of("score answer 0.312 < 0.35"), "score answer below tau");
        assert_eq!(kind_of("alarm question loop"), "alarm question loop");
        assert_eq!(kind_of("answer has no score"), "answer has no score");
    }

    #[test]
    fn examples_come_from_all_over() {
        let all: Vec<usize> = (0..10).collect();
        assert_eq!(spread(&all, 5).copied().collect::<Vec<_>>(), [0, 2, 4, 6, 8]);
        assert_eq!(spread(&all[..2], 5).count(), 2);
        assert_eq!(spread(&all[..0], 5).count(), 0);
    }
}
