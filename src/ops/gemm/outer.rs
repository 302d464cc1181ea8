//! out (N, M) = a b with b (K, M) read along its rows: the layouts of the backward pass. A strip of b is packed (and widened from
//! bf16) once for all rows of a; every element of out is summed over K in order.
#![allow(unsafe_code)]
use std::{cell::Cell, ops::Range};

use super::rows::Weight;
use crate::ops::{
    parallel::Shared,
    simd::{Kernel, Simd},
};

/// Columns of a strip, floats: two AVX-512 registers.
pub(super) const STRIP: usize = 32;
/// Rows of b that are packed at a time: a strip of 32 KiB.
pub(super) const DEPTH: usize = 256;

/// Rows `rows` and the columns of strip `strip` of out.
pub(super) struct OuterBlock<'a> {
    pub out: Shared<'a>,
    pub a: &'a [f32],
    /// Distance from a (i, p) to a (i + 1, p), and to a (i, p + 1).
    pub a_strides: (usize, usize),
    pub b: Weight<'a>,
    pub rows: Range<usize>,
    pub strip: usize,
    pub k: usize,
    /// Columns of b and out.
    pub m: usize,
    pub alpha: f32,
    pub accumulate: bool,
}

thread_local!(static PACKED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) });

impl Kernel for OuterBlock<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut packed = PACKED.take();
        // The packed strip, and one tile's rows of results.
        packed.resize(DEPTH * STRIP + 8 * STRIP, 0.0);
        let (strip, tile) = packed.split_at_mut(DEPTH * STRIP);
        let col = self.strip * STRIP;
        let width = STRIP.min(self.m - col);
        for start in (0..self.k).step_by(DEPTH) {
            let depth = DEPTH.min(self.k - start);
            self.pack(strip, start, depth, col, width);
            let first = start == 0;
            let mut i = self.rows.start;
            while i < self.rows.end {
                let left = self.rows.end - i;
                // SAFETY: rows i.. of a, as counted; the strip holds `depth` rows.
                unsafe {
                    if S::TILE_ROWS == 8 && left >= 8 {
                        self.tile::<S, 8>(s, strip, tile, i, start, depth);
                        self.store::<8>(tile, i, col, width, first);
                        i += 8;
                    } else if S::LANES == 8 && left >= 6 {
                        self.tile::<S, 6>(s, strip, tile, i, start, depth);
                        self.store::<6>(tile, i, col, width, first);
                        i += 6;
                    } else if left >= 4 {
                        self.tile::<S, 4>(s, strip, tile, i, start, depth);
                        self.store::<4>(tile, i, col, width, first);
                        i += 4;
                    } else {
                        self.tile::<S, 1>(s, strip, tile, i, start, depth);
                        self.store::<1>(tile, i, col, width, first);
                        i += 1;
                    }
                }
            }
        }
        PACKED.set(packed);
    }
}

impl OuterBlock<'_> {
    #[inline(always)]
    fn pack(&self, strip: &mut [f32], start: usize, depth: usize, col: usize, width: usize) {
        for (p, row) in strip.chunks_exact_mut(STRIP).take(depth).enumerate() {
            let from = (start + p) * self.m + col;
            match self.b {
                Weight::F32(b) => row[..width].copy_from_slice(&b[from..from + width]),
                Weight::Bf16(b) => {
                    for (x, y) in row.iter_mut().zip(&b[from..from + width]) {
                        *x = f32::from_bits((y.to_bits() as u32) << 16);
                    }
                }
                Weight::Blocks(_) => unreachable!("blocks are unpacked before a kernel runs"),
            }
            row[width..].fill(0.0);
        }
    }

    /// tile (R, STRIP) = a (i.., start..) strip (depth, STRIP)
    ///
    /// # Safety
    /// Rows i..i + R and columns start..start + depth of a exist.
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize>(
        &self,
        s: S,
        strip: &[f32],
        tile: &mut [f32],
        i: usize,
        start: usize,
        depth: usize,
    ) {
        let (down, along) = self.a_strides;
        assert!(strip.len() >= depth * STRIP && tile.len() >= R * STRIP);
        assert!((i + R - 1) * down + (start + depth - 1) * along < self.a.len());
        // SAFETY: all indices are below the lengths just asserted.
        unsafe {
            let a = self.a.as_ptr().add(i * down + start * along);
            for half in (0..STRIP).step_by(2 * S::LANES) {
                let mut sums = [[s.splat(0.0); 2]; R];
                for p in 0..depth {
                    let b = strip.as_ptr().add(p * STRIP + half);
                    let right = [s.load(b), s.load(b.add(S::LANES))];
                    for r in 0..R {
                        let left = s.splat(*a.add(r * down + p * along));
                        sums[r][0] = s.fma(left, right[0], sums[r][0]);
                        sums[r][1] = s.fma(left, right[1], sums[r][1]);
                    }
                }
                for r in 0..R {
                    let out = tile.as_mut_ptr().add(r * STRIP + half);
                    s.store(out, sums[r][0]);
                    s.store(out.add(S::LANES), sums[r][1]);
                }
            }
        }
    }

    #[inline(always)]
    fn store<const R: usize>(&self, tile: &[f32], i: usize, col: usize, width: usize, first: bool) {
        for r in 0..R {
            // SAFETY: each task has its own rows and columns of out.
            let out = unsafe { self.out.part((i + r) * self.m + col, width) };
            let row = &tile[r * STRIP..][..width];
            if first && !self.accumulate {
                out.iter_mut().zip(row).for_each(|(o, x)| *o = self.alpha * x);
            } else {
                out.iter_mut().zip(row).for_each(|(o, x)| *o += self.alpha * x);
            }
        }
    }
}
