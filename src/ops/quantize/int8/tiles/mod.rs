//! The products on the tile unit (AMX-INT8), for many rows: a tile product adds 16 x 64 by 64 x 16 numbers of 8 bits to 16 x 16 sums in 16 cycles.
//!
//! Activations are read where they are. 16 rows of weights at a time are unpacked into the unit's second operands (four codes of a row side by side), which all rows of activations
//! share. All sums of integers are exact, so that the bits are those of the other kernels.
#![allow(unsafe_code)]
use std::{arch::asm, arch::x86_64::*, cell::Cell, ops::Range};

mod of_256;
mod of_32;

use super::{
    IntRows,
    avx2::{By32, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0},
};
use crate::ops::{
    arrays::from_fn,
    gemm::amx::{Config, Line, transpose},
    quantize::{GgmlType, HostBlocks},
};

/// Rows and columns of a tile of sums.
const SIDE: usize = 16;
/// Bytes of a tile.
const TILE: usize = 1024;
/// Rows of activations that a pass over the weights' tiles works on.
const PASS: usize = 2 * SIDE;

thread_local! {
    static PANEL: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// As `avx2::dots`; the processor has the tile unit with 8 bits, and AVX-512.
pub(super) fn dots(out: &mut [f32], a: &IntRows, rows: Range<usize>, w: &HostBlocks, cols: Range<usize>) {
    let by = match w.kind() {
        GgmlType::Q4K => all::<Q4K>,
        GgmlType::Q5K => all::<Q5K>,
        GgmlType::Q6K => all::<Q6K>,
        GgmlType::Q4_0 => all::<By32<Q4_0>>,
        GgmlType::Q4_1 => all::<By32<Q4_1>>,
        GgmlType::Q5_0 => all::<By32<Q5_0>>,
        GgmlType::Q5_1 => all::<By32<Q5_1>>,
        _ => all::<By32<Q8_0>>,
    };
    // SAFETY: the caller's promise.
    unsafe { by(out, a, rows, w, cols) }
}

/// A format on the tile unit.
trait Tiled {
    /// Bytes of a block.
    const SIZE: usize;
    /// Lines that a block of 16 rows takes in the panel.
    const LINES: usize;
    /// Bytes of K that a tile product takes.
    const DEPTH: usize;

    /// The blocks that stand at `block` of up to 16 rows, unpacked; rows that are not there are left as they are.
    ///
    /// # Safety
    /// The processor has AVX-512 (F, BW, VL), and `rows` have the block.
    unsafe fn pack(panel: &mut [Line], rows: &[&[u8]], block: usize);

    /// out (rows, 16) = the rows of a, at most 32 of them, times the columns of the panel, which has `blocks` blocks.
    ///
    /// # Safety
    /// The same, with the tile unit, which is configured for as many rows.
    unsafe fn product(out: &mut Sums, a: &IntRows, rows: Range<usize>, panel: &[Line], blocks: usize);
}

/// 32 rows of 16 columns.
type Sums = [__m512; PASS];

/// # Safety
/// The processor has AVX-512 (F, BW, VL, VNNI) and the tile unit.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn all<F: Tiled>(
    out: &mut [f32],
    a: &IntRows,
    rows: Range<usize>,
    w: &HostBlocks,
    cols: Range<usize>,
) {
    let blocks = w.row(cols.start).len() / F::SIZE;
    let mut lines = PANEL.take();
    if lines.len() < blocks * F::LINES {
        lines.resize(blocks * F::LINES, Line([0.0; 16]));
    }
    let panel = &mut lines[..blocks * F::LINES];
    let (width, mut configured) = (cols.len(), 0);
    for from in (0..width).step_by(SIDE) {
        let here = SIDE.min(width - from);
        let columns: [&[u8]; SIDE] = from_fn(|i| w.row(cols.start + from + i.min(here - 1)));
        for (block, panel) in panel.chunks_exact_mut(F::LINES).enumerate() {
            // SAFETY: the caller's promise; all rows are whole blocks.
            unsafe { F::pack(panel, &columns[..here], block) };
        }
        for start in (0..rows.len()).step_by(PASS) {
            let pass = PASS.min(rows.len() - start);
            // SAFETY: the caller's promise.
            unsafe {
                if configured != pass {
                    configure(pass, F::DEPTH);
                    configured = pass;
                }
                let mut sums = [_mm512_setzero_ps(); PASS];
                let first = rows.start + start;
                F::product(&mut sums, a, first..first + pass, panel, blocks);
                for (r, sums) in sums[..pass].iter().enumerate() {
                    let out = &mut out[(start + r) * width + from..][..here];
                    _mm512_mask_storeu_ps(out.as_mut_ptr(), u16::MAX >> (SIDE - here), *sums);
                }
            }
        }
    }
    // SAFETY: the unit is there; its state is given back, so that the system need not keep it.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
    PANEL.set(lines);
}

/// Tiles 0 and 1 are the sums of the first 16 rows, 2 and 3 those of the others; 4 and 5 their activations; 6 and 7 weights.
///
/// # Safety
/// The tile unit is there.
unsafe fn configure(rows: usize, depth: usize) {
    let (first, second) = (rows.min(SIDE), rows.saturating_sub(SIDE).max(1));
    let weights = (depth / 4, 64);
    // SAFETY: the caller's promise.
    unsafe {
        Config::of([
            (first, 64),
            (first, 64),
            (second, 64),
            (second, 64),
            (first, depth),
            (second, depth),
            weights,
            weights,
        ])
        .load()
    }
}

/// 16 rows of 64 bytes become a tile: four bytes of a row side by side.
///
/// # Safety
/// AVX-512; `from` is 16 rows, `stride` bytes apart, `to` one tile of 16 lines.
#[inline(always)]
unsafe fn interleave(to: *mut u8, from: *const u8, stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [_mm512_setzero_si512(); SIDE];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = _mm512_loadu_si512(from.add(i * stride).cast());
        }
        for (i, row) in transpose(rows).into_iter().enumerate() {
            _mm512_storeu_si512(to.add(64 * i).cast(), row);
        }
    }
}
