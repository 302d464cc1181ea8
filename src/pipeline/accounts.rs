//! Rows are accounted for from stage to stage, by counts that a stage does not make itself: what it says came in is what the folders that it read were finished
//! with, and what stands in its own folder is what it wrote.
use std::path::Path;

use anyhow::{Result, ensure};

use super::{
    identity::Inputs,
    manifest::{Counts, Manifest},
};
use crate::data::row_shard::RowSet;

/// The rows that the stages before wrote into the folders of `inputs`, but those beside its own; `None` where no input is such a folder.
pub(super) fn came_in(inputs: &Inputs) -> Result<Option<usize>> {
    let mut sum = None;
    let Inputs(all, beside) = inputs;
    for (_, path) in all.iter().filter(|(_, path)| path.is_dir() && !beside.contains(path)) {
        if let Some(rows) = Manifest::load(path)?.and_then(|m| m.rows) {
            sum = Some(sum.unwrap_or(0) + rows);
        }
    }
    Ok(sum)
}

/// An error if rows were lost on the way in or out: `came_in` is what stood in the inputs, `written` what `dir` must hold.
pub(super) fn check(
    stage: &str,
    came_in: Option<usize>,
    counts: Option<&Counts>,
    written: Option<usize>,
    dir: &Path,
) -> Result<()> {
    if let (Some(rows), Some(counts)) = (came_in, counts) {
        ensure!(
            counts.read == rows,
            "stage {stage}: the folders that it read hold {rows} rows, but {} of them came in: the result would be incomplete, so it is not taken as finished",
            counts.read
        );
    }
    if let Some(rows) = written {
        let found = RowSet::open_unfinished(dir)?.len();
        ensure!(
            found == rows,
            "stage {stage}: {rows} rows were written, but {} holds {found}: something else changes that folder; run it again",
            dir.display()
        );
    }
    Ok(())
}
