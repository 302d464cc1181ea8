//! out (N, M) = a (N, K) w (M, K)ᵀ over blocks, with `a` in 8 bits.
#![allow(unsafe_code)]
use std::cell::Cell;

use anyhow::{Context, Result, bail};

use super::{Epilogue, ROW_BLOCK, WEIGHT_BLOCK};
use crate::{
    ops::{
        parallel::{Shared, for_each_in_runs},
        quantize::{
            HostBlocks, Matrix,
            int8::{IntRows, dots, group_of, pays_on_tiles},
        },
    },
    tensor::Tensor,
};

thread_local! {
    /// A block of results before they go where they belong.
    static FOUND: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Several products of one input; the caller checked shapes and that every weight is blocks.
pub(super) fn product(
    outs: &mut [&mut Tensor],
    a: &Tensor,
    weights: &[Matrix],
    epilogue: Epilogue,
) -> Result<()> {
    let (n, k) = a.rows_cols();
    let a = a.f32()?;
    let mut rows: [Option<IntRows>; 2] = [None, None];
    let mut parts: Vec<(Shared, HostBlocks, usize, usize)> = vec![];
    let mut tasks = vec![];
    for (which, (out, w)) in outs.iter_mut().zip(weights).enumerate() {
        let Matrix::Blocks(w) = w else { bail!("{w:?} is no blocks") };
        let group = group_of(w.format().kind).with_context(|| format!("{w:?} has no product in integers"))?;
        let slot = usize::from(group == 256);
        rows[slot].get_or_insert_with(|| IntRows::new(a, k, group));
        let m = w.shape()[0];
        // What is unpacked for the tile unit serves many rows.
        let (block, cols) = match pays_on_tiles(n) {
            true => (4 * ROW_BLOCK, 64),
            false => (ROW_BLOCK, (WEIGHT_BLOCK / k.max(1)).max(4)),
        };
        for j in (0..m).step_by(cols) {
            let ranges = (0..n).step_by(block).map(|i| i..(i + block).min(n));
            tasks.extend(ranges.map(|i| (which, i, j..(j + cols).min(m))));
        }
        parts.push((Shared::new(out.f32_mut()?), w.host()?, m, slot));
    }
    let work = n * k * parts.iter().map(|p| p.2).sum::<usize>();
    for_each_in_runs(tasks.len(), work, |t| {
        let (which, i, j) = tasks[t].clone();
        let (out, w, m, slot) = &parts[which];
        let Some(a) = &rows[*slot] else { return };
        let mut found = FOUND.take();
        found.resize(i.len() * j.len(), 0.0);
        dots(&mut found, a, i.clone(), w, j.clone());
        for (row, found) in i.zip(found.chunks_exact(j.len())) {
            // SAFETY: no other task has these rows and columns.
            let out = unsafe { out.part(row * m + j.start, j.len()) };
            for (c, (out, found)) in out.iter_mut().zip(found).enumerate() {
                epilogue.store(out, *found, j.start + c);
            }
        }
        FOUND.set(found);
    });
    Ok(())
}
