//! Replies of the model before and after training, with right and wrong marked where a metric says which is which.
use anyhow::Result;

use super::data::{short, spread};
use crate::{
    data::languages::name,
    eval::{
        sample::{Sample, read_samples},
        samples::right_or_wrong,
    },
    pipeline::work_dir::{Room, WorkDir},
    recipe::Recipe,
    report::{
        html::Block,
        table::{Cell, Table},
    },
};

/// The part of the page about replies.
pub fn blocks(recipe: &Recipe) -> Result<Vec<Block>> {
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
        let judged_before = right_or_wrong(&work.room(Room::EvalBase), task);
        let judged_after: Vec<_> = recipe
            .variants
            .iter()
            .map(|v| right_or_wrong(&work.room(Room::Eval(Some(v.name()))), task))
            .collect();
        let indices: Vec<usize> = (0..before.len()).collect();
        for &i in spread(&indices, 8) {
            let text = |s: &str| Cell::Text(short(s, 200));
            let reply = |samples: &[Sample], judged: &Option<Vec<bool>>| {
                let text = short(samples.get(i).map_or("", |s| &s.response), 200);
                match judged.as_ref().and_then(|j| j.get(i)) {
                    Some(&right) => Cell::Judged { text, right },
                    None => Cell::Text(text),
                }
            };
            let mut row = vec![
                text(&before[i].prompt),
                text(before[i].targets.first().map_or("", String::as_str)),
                reply(&before, &judged_before),
            ];
            row.extend(after.iter().zip(&judged_after).map(|(samples, judged)| reply(samples, judged)));
            table.push(row);
        }
        blocks.push(Block::Paragraph(format!("{} ({})", task.name, name(&task.language))));
        blocks.push(Block::Table(table));
    }
    Ok(blocks)
}
