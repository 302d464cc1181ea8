//! Products on the tile unit of Intel processors (AMX), chosen at run time.
//!
//! A tile product adds 16 x 32 by 32 x 16 bf16 numbers to 16 x 16 f32 sums in 16 cycles, 16 times the rate of FMA. Activations are
//! not rounded: an f32 number is the exact sum of three bf16 numbers (24 = 3 x 8 bits of mantissa), so three tile products with
//! the bf16 weight give the exact products, summed in f32: a third of 16 times the rate, with the accuracy of FMA. (Numbers below
//! 2^-110 lose their last bits; an infinite activation gives NaN.)
//!
//! F32 weights are split likewise; of the nine products of pieces the six that an f32 sum can feel are computed.
//!
//! Every element of out is summed over K in steps of 32, whatever the number of rows: a row does not depend on its batch.
#![allow(unsafe_code)]
mod pack;
mod tiles;

use std::{arch::asm, arch::x86_64::*, cell::Cell, ops::Range};

use super::{dot::Epilogue, rows::Weight};
pub(super) use crate::device::vectors::has_tile_unit as available;
use crate::ops::parallel::{Shared, for_each_task};
pub(in crate::ops) use pack::transpose;
use pack::{
    interleave_panel, load_tile, mask, pack_pairs, pack_panel, pack_rows, split_interleave, split_panel,
};
pub(in crate::ops) use tiles::Config;
use tiles::{activations_first, split_activations, split_weights_first, weights_first, weights_in_place};

/// Contraction length of a tile product.
const STEP: usize = 32;
/// Columns of out that one task computes: four tiles.
const PANEL: usize = 64;
/// f32s in a tile's 1024 bytes.
const TILE: usize = 256;
/// Bf16 pieces of an f32.
const PIECES: usize = 3;
/// f32s that the pieces of 16 rows take in one step.
const SLOT: usize = PIECES * TILE;
/// Bytes of packed activations that one pass over the weights works on: they stay in the second-level cache.
const PACKED_BYTES: usize = 1 << 20;
/// The same for all rows that are packed at a time.
const BUFFER_BYTES: usize = 1 << 23;
/// Rows of a (K, M) weight that are interleaved at a time.
const DEPTH: usize = 1024;

/// One weight of a call and where its product goes.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub out: Shared<'a>,
    pub w: Weight<'a>,
    /// Columns of out.
    pub m: usize,
}

/// Bytes of packed activations or weights, aligned to a cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(in crate::ops) struct Line(pub [f32; 16]);

thread_local! {
    static ACTIVATIONS: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
    static PANELS: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

fn floats(lines: &mut Vec<Line>, len: usize) -> &mut [f32] {
    let lines_needed = len.div_ceil(16);
    if lines.len() < lines_needed {
        lines.resize(lines_needed, Line([0.0; 16]));
    }
    // SAFETY: a Line is 16 floats without padding.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), len) }
}

/// parts[i].out (N, M_i) = a (N, K) parts[i].w (M_i, K)ᵀ
pub(super) fn dot_product(parts: &[Part], a: &[f32], n: usize, k: usize, epilogue: Epilogue) {
    let steps = k.div_ceil(STEP);
    let row_bytes = steps * SLOT * 4 / 16;
    let rows_at_once = (BUFFER_BYTES / row_bytes.max(1)).max(16) / 16 * 16;
    // As in `outer_product`.
    let split = parts.iter().any(|p| !p.w.is_bf16());
    let pass_bytes = if split { 2 * PACKED_BYTES } else { PACKED_BYTES };
    let rows_per_task = (pass_bytes / row_bytes.max(1)).max(16) / 16 * 16;
    let columns: usize = parts.iter().map(|p| p.m).sum();
    let mut lines = ACTIVATIONS.take();
    for start in (0..n).step_by(rows_at_once) {
        let rows = rows_at_once.min(n - start);
        let tiles = rows.div_ceil(16);
        let packed = Shared::new(floats(&mut lines, tiles * steps * SLOT));
        for_each_task(tiles, rows * k * 4, |t| {
            let first = start + t * 16;
            let block = first..(first + 16).min(n);
            // SAFETY: the features were found by `available`; each task has its own tile.
            unsafe { pack_pairs(packed.part(t * steps * SLOT, steps * SLOT), a, block, k) }
        });
        let mut tasks = vec![];
        // With few rows a thread reads on where it has fetched ahead.
        let wide = if rows <= 16 { 4 * PANEL } else { PANEL };
        for from in (0..rows).step_by(rows_per_task) {
            let block = start + from..start + (from + rows_per_task).min(rows);
            for (which, part) in parts.iter().enumerate() {
                tasks.extend((0..part.m).step_by(wide).map(|j| (which, block.clone(), j)));
            }
        }
        for_each_task(tasks.len(), rows * k * columns, |t| {
            let (which, rows, j) = tasks[t].clone();
            let offset = (rows.start - start) / 16 * steps * SLOT;
            // SAFETY: packed is only read now; rows and columns of out belong to this task alone.
            unsafe {
                let packed = packed.part(offset, rows.len().div_ceil(16) * steps * SLOT);
                for j in (j..(j + wide).min(parts[which].m)).step_by(PANEL) {
                    dot_task(parts[which], packed, rows.clone(), j, k, epilogue)
                }
            }
        });
    }
    ACTIVATIONS.set(lines);
}

/// out (N, M) = alpha a (N, K) w (K, M), `+=` with `accumulate`
pub(super) fn outer_product(part: Part, a: &[f32], n: usize, k: usize, alpha: f32, accumulate: bool) {
    let mut lines = ACTIVATIONS.take();
    let depth = DEPTH.min(k.next_multiple_of(STEP));
    let row_bytes = depth.div_ceil(STEP) * SLOT * 4 / 16;
    let rows_at_once = BUFFER_BYTES / row_bytes / 16 * 16;
    // Splitting f32 weights costs as much as some fifty rows' products: more rows share it.
    let rows_per_task = if part.w.is_bf16() { 256 } else { 512 };
    for start in (0..n).step_by(rows_at_once) {
        let rows = rows_at_once.min(n - start);
        for top in (0..k).step_by(DEPTH) {
            let range = top..(top + DEPTH).min(k);
            let weights = part.w.shared_rows(range.clone(), part.m);
            let part = Part { w: weights.weight(), ..part };
            let slot = range.len().div_ceil(STEP) * SLOT;
            let packed = Shared::new(floats(&mut lines, rows.div_ceil(16) * slot));
            for_each_task(rows.div_ceil(16), rows * range.len() * 4, |t| {
                let first = start + t * 16;
                let block = first..(first + 16).min(start + rows);
                // SAFETY: the features were found by `available`; each task has its own tile.
                unsafe { pack_rows(packed.part(t * slot, slot), a, block, k, range.clone()) }
            });
            let panels = part.m.div_ceil(PANEL);
            for_each_task(panels * rows.div_ceil(rows_per_task), rows * range.len() * part.m, |t| {
                let (j, from) = (t % panels * PANEL, t / panels * rows_per_task);
                let block = start + from..start + (from + rows_per_task).min(rows);
                // SAFETY: as in `dot_product`.
                unsafe {
                    let packed = packed.part(from / 16 * slot, block.len().div_ceil(16) * slot);
                    outer_task(part, packed, block, j, 0..range.len(), alpha, accumulate || top > 0)
                }
            });
        }
    }
    ACTIVATIONS.set(lines);
}

/// Rows `rows` of out, columns j.. of one panel.
///
/// # Safety
/// `available()`; `packed` comes from `pack_pairs` for `rows`; no one else uses these elements of out.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn dot_task(part: Part, packed: &[f32], rows: Range<usize>, j: usize, k: usize, epilogue: Epilogue) {
    let steps = k.div_ceil(STEP);
    let width = PANEL.min(part.m - j);
    let mut lines = PANELS.take();
    let weights = part.w.rows(j..j + width, k, None);
    // One block of rows uses each weight once: then copying it would cost as much as the product.
    let in_place = match weights.weight() {
        Weight::Bf16(w) if rows.len() <= 16 && width == PANEL && k.is_multiple_of(STEP) => Some(w),
        _ => None,
    };
    let panel = match (weights.weight(), in_place) {
        (_, Some(_)) => &mut [],
        (Weight::Bf16(w), None) => {
            let panel = floats(&mut lines, steps * 4 * TILE);
            // SAFETY: AVX-512 is available.
            unsafe { pack_panel(panel, w, k) };
            panel
        }
        (Weight::F32(w), None) => {
            let panel = floats(&mut lines, steps * 12 * TILE);
            // SAFETY: as above.
            unsafe { split_panel(panel, w, k) };
            panel
        }
        (Weight::Blocks(_), None) => unreachable!("rows of a weight are not blocks"),
    };
    let mut sums = [Line([0.0; 16]); 64];
    let sums_at: *mut f32 = sums.as_mut_ptr().cast();
    for (t, i) in rows.clone().step_by(16).enumerate() {
        let block = 16.min(rows.end - i);
        // A lone column is stored as a row, which is what out needs.
        let sum_stride = if block == 1 { 4 } else { 64 };
        // SAFETY: the caller's promises; `steps` steps of weights and pieces exist.
        unsafe {
            if t == 0 || block < 16 {
                Config::new((16, 4 * block), (16, 4 * block)).load();
            }
            let pieces = packed[t * steps * SLOT..].as_ptr();
            match (in_place, part.w.is_bf16()) {
                (Some(w), _) => {
                    let ahead = w.as_ptr().wrapping_add(w.len());
                    weights_in_place(w.as_ptr(), 2 * k, ahead, pieces, 4 * block, steps, sums_at, sum_stride);
                }
                (None, true) => weights_first(panel.as_ptr(), pieces, 4 * block, steps, sums_at, sum_stride),
                (None, false) => {
                    split_weights_first(panel.as_ptr(), pieces, 4 * block, steps, sums_at, sum_stride)
                }
            }
            for tile in 0..width.div_ceil(16) {
                let mut x = load_tile(&sums[16 * tile..]);
                if block > 1 {
                    x = transpose(x);
                }
                let lanes = 16.min(width - 16 * tile);
                let bias = epilogue.bias.map(|b| &b[j + 16 * tile..][..lanes]);
                for r in 0..block {
                    let out = part.out.part((i + r) * part.m + j + 16 * tile, lanes);
                    finish(out, x[r], epilogue.alpha, bias, epilogue.accumulate);
                }
            }
        }
    }
    // SAFETY: gives the tiles' state back, so that the system need not save it.
    unsafe { asm!("tilerelease", options(nomem, nostack)) };
    PANELS.set(lines);
}

/// # Safety
/// `available()`; `packed` comes from `pack_rows` for `rows` and `depth`; no one else uses these elements of out.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn outer_task(
    part: Part,
    packed: &[f32],
    rows: Range<usize>,
    j: usize,
    depth: Range<usize>,
    alpha: f32,
    accumulate: bool,
) {
    let steps = depth.len().div_ceil(STEP);
    let width = PANEL.min(part.m - j);
    let mut lines = PANELS.take();
    let split = !part.w.is_bf16();
    let panel = floats(&mut lines, steps * TILE * if split { 12 } else { 4 });
    // SAFETY: AVX-512 is available.
    unsafe {
        match part.w {
            Weight::Bf16(w) => interleave_panel(panel, w, part.m, j, width, depth),
            Weight::F32(w) => split_interleave(panel, w, part.m, j, width, depth),
            Weight::Blocks(_) => unreachable!("blocks are unpacked before a task runs"),
        }
    }
    let mut sums = [Line([0.0; 16]); 64];
    for (t, i) in rows.clone().step_by(16).enumerate() {
        let block = 16.min(rows.end - i);
        // SAFETY: the caller's promises; `steps` steps of weights and pieces exist.
        unsafe {
            if t == 0 || block < 16 {
                Config::new((block, 64), (block, 64)).load();
            }
            let pieces = packed[t * steps * SLOT..].as_ptr();
            if split {
                split_activations(panel.as_ptr(), pieces, steps, sums.as_mut_ptr().cast());
            } else {
                activations_first(panel.as_ptr(), pieces, steps, sums.as_mut_ptr().cast());
            }
            for tile in 0..width.div_ceil(16) {
                let x = load_tile(&sums[16 * tile..]);
                let lanes = 16.min(width - 16 * tile);
                for r in 0..block {
                    let out = part.out.part((i + r) * part.m + j + 16 * tile, lanes);
                    finish(out, x[r], alpha, None, accumulate);
                }
            }
        }
    }
    // SAFETY: as in `dot_task`.
    unsafe { asm!("tilerelease", options(nomem, nostack)) };
    PANELS.set(lines);
}

/// out = alpha x [+ bias] [+ out], as many lanes as out has.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn finish(out: &mut [f32], x: __m512i, alpha: f32, bias: Option<&[f32]>, accumulate: bool) {
    let mask = mask(out.len());
    // SAFETY: the mask covers the lanes that out and bias have.
    unsafe {
        let mut x = _mm512_mul_ps(_mm512_castsi512_ps(x), _mm512_set1_ps(alpha));
        if let Some(bias) = bias {
            x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, bias.as_ptr()));
        }
        if accumulate {
            x = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out.as_ptr()), x);
        }
        _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, x);
    }
}
