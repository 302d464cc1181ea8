//! out (N, M) = a (N, K) w (M, K)ᵀ: both operands are read along K, so nothing is packed and weights stream from memory once.
//!
//! Every element is summed over K in lanes, in one order for all tile shapes and all numbers of rows: the result of a row does not
//! depend on the batch that it is in.
#![allow(unsafe_code)]
use std::{cell::Cell, ops::Range};

use super::{
    rows::Weight,
    tile::{Element, ask, lanes, one_by_one, rest, tile, totals, widen},
};
use crate::ops::{
    parallel::Shared,
    simd::{Kernel, Simd},
};

/// What happens to a product before it is stored: out = alpha * product [+ bias] [+ out].
#[derive(Clone, Copy)]
pub(super) struct Epilogue<'a> {
    pub alpha: f32,
    pub accumulate: bool,
    /// (M)
    pub bias: Option<&'a [f32]>,
}

impl Epilogue<'_> {
    /// Stores a product of column `col`.
    #[inline(always)]
    pub(super) fn store(&self, out: &mut f32, product: f32, col: usize) {
        let mut x = self.alpha * product;
        if let Some(bias) = self.bias {
            x += bias[col];
        }
        *out = if self.accumulate { *out + x } else { x };
    }
}

/// Rows `rows` of `a` times the rows of `w`, which are `cols` of the whole weight. `w` is F32 or Bf16.
pub(super) struct DotBlock<'a> {
    pub out: Shared<'a>,
    pub a: &'a [f32],
    pub w: Weight<'a>,
    pub rows: Range<usize>,
    pub cols: Range<usize>,
    pub k: usize,
    /// Columns of `out`.
    pub m: usize,
    pub epilogue: Epilogue<'a>,
}

/// Up to this many rows the weights are read from memory as one stream, one row after another, each once: four rows in turn, as the tile
/// of many rows wants them, are four streams, which memory delivers more slowly (37 and 45 GB/s on a Zen 5 machine).
pub(super) const FEW_ROWS: usize = 8;

impl Kernel for DotBlock<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.w {
            Weight::F32(w) if self.rows.len() <= FEW_ROWS => self.stream(s, w),
            Weight::Bf16(w) if self.rows.len() <= FEW_ROWS => self.stream(s, w),
            Weight::F32(w) if self.k <= DEEP => self.block(s, w),
            Weight::F32(w) => self.deep_block(s, w),
            Weight::Bf16(w) if self.k <= DEEP => {
                // Taken and put back, not lent to a closure: closures do not inherit the instruction set.
                let mut wide = WIDE.take();
                wide.resize(w.len(), 0.0);
                widen(s, w, &mut wide);
                self.block(s, &wide);
                WIDE.set(wide);
            }
            Weight::Bf16(w) => self.deep_block(s, w),
            Weight::Blocks(_) => unreachable!("blocks are unpacked before a kernel runs"),
        }
    }
}

/// Sums longer than this are cut: rows of many kilobytes, the more so of powers of two, push each other out of the caches.
pub(super) const DEEP: usize = 1536;
/// The length of a cut.
const DEPTH: usize = 512;
/// How far apart packed rows are: not a power of two, whose lines would push each other out of the caches.
const STRIDE: usize = DEPTH + 16;
/// Columns of a task whose sums are cut: each packed row of `a` is used for all of them.
pub(super) const DEEP_COLS: usize = 64;

thread_local! {
    static WIDE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static PACKED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static PARTIAL: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// The sums over a part of K of some rows of `a` by some rows of `w`.
struct Cut<'a> {
    /// Rows of `a`.
    left: &'a [f32],
    /// Rows of `w`.
    right: &'a [f32],
    /// How far apart rows are, on either side.
    stride: usize,
    depth: usize,
    /// Lane sums of earlier cuts, a register for each element; empty where there is one cut.
    partial: &'a mut [f32],
    first: bool,
    last: bool,
}

/// Rows and columns of a tile whose lane sums stay in registers, with what they are made of: 24 + 5 of 32, 12 + 4 of 16, 8 + 5 of 16.
#[inline(always)]
fn tile_shape<S: Simd>() -> (usize, usize) {
    match S::LANES {
        16 => (6, 4),
        8 => (4, 3),
        _ => (2, 4),
    }
}

impl DotBlock<'_> {
    /// Few rows: all of them by four rows of `w`, then by the next four. `w` begins at row `cols.start`.
    #[inline(always)]
    fn stream<S: Simd, W: Element>(&self, s: S, w: &[W]) {
        let (cols, k) = (self.cols.len(), self.k);
        assert!(w.len() >= cols * k && self.a.len() >= self.rows.end * k);
        let mut j = 0;
        while j < cols {
            let some = j..(j + 4).min(cols);
            let mut i = self.rows.start;
            while i < self.rows.end {
                let left = self.rows.end - i;
                // SAFETY: rows i..i + R of a and rows `some` of w exist, as asserted.
                unsafe {
                    let a = self.a.as_ptr().add(i * k);
                    if S::TILE_ROWS == 8 && left >= 8 {
                        self.columns::<S, W, 8, true>(s, a, w, i, some.clone());
                        i += 8;
                    } else if left >= 4 {
                        self.columns::<S, W, 4, true>(s, a, w, i, some.clone());
                        i += 4;
                    } else if left >= 2 {
                        self.columns::<S, W, 2, true>(s, a, w, i, some.clone());
                        i += 2;
                    } else {
                        self.columns::<S, W, 1, true>(s, a, w, i, some.clone());
                        i += 1;
                    }
                }
            }
            j += 4;
        }
    }

    /// Many rows whose sums are taken in one piece. `w` begins at row `cols.start`.
    #[inline(always)]
    fn block<S: Simd>(&self, s: S, w: &[f32]) {
        if S::LANES == 16 {
            return self.wide_block(s, w);
        }
        let k = self.k;
        let left = &self.a[self.rows.start * k..self.rows.end * k];
        let depth = k / S::LANES * S::LANES;
        let cut = Cut { left, right: w, stride: k, depth, partial: &mut [], first: true, last: true };
        self.tiles(s, w, cut);
    }

    /// As `block`, by tiles of four columns that are stored at once: on AVX-512, where a tile takes as long to store as a tenth of its sums, 7 % faster for K = 576.
    #[inline(always)]
    fn wide_block<S: Simd>(&self, s: S, w: &[f32]) {
        let (cols, k) = (self.cols.len(), self.k);
        assert!(w.len() >= cols * k && self.a.len() >= self.rows.end * k);
        let mut i = self.rows.start;
        while i < self.rows.end {
            let left = self.rows.end - i;
            let rows = if left >= 6 { 6 } else { [1, 2, 2, 4][left.min(4) - 1] };
            // SAFETY: rows i..i + R of a and all rows of w exist, as asserted.
            unsafe {
                let a = self.a.as_ptr().add(i * k);
                match rows {
                    6 => self.columns::<S, f32, 6, false>(s, a, w, i, 0..cols),
                    4 => self.columns::<S, f32, 4, false>(s, a, w, i, 0..cols),
                    2 => self.columns::<S, f32, 2, false>(s, a, w, i, 0..cols),
                    _ => self.columns::<S, f32, 1, false>(s, a, w, i, 0..cols),
                }
            }
            i += rows;
        }
    }

    /// As `block`, for long sums: they are cut, and what a cut needs of `a` and `w` is packed. The order of every sum stays what it is elsewhere.
    #[inline(always)]
    fn deep_block<S: Simd, W: Element>(&self, s: S, w: &[W]) {
        let (rows, cols, k) = (self.rows.len(), self.cols.len(), self.k);
        assert!(w.len() == cols * k && self.a.len() >= self.rows.end * k);
        let whole = k / S::LANES * S::LANES;
        let (mut packed, mut partial) = (PACKED.take(), PARTIAL.take());
        packed.resize((rows + cols) * STRIDE, 0.0);
        partial.resize(rows * cols * S::LANES, 0.0);
        for first in (0..whole).step_by(DEPTH) {
            let depth = DEPTH.min(whole - first);
            let (left, right) = packed.split_at_mut(rows * STRIDE);
            for (i, row) in left.chunks_exact_mut(STRIDE).enumerate() {
                let from = (self.rows.start + i) * k + first;
                ask(s, self.a.as_ptr().wrapping_add(from + 2 * k), depth);
                widen(s, &self.a[from..][..depth], &mut row[..depth]);
            }
            for (j, row) in right.chunks_exact_mut(STRIDE).enumerate() {
                ask(s, w.as_ptr().wrapping_add((j + 2) * k + first), depth);
                widen(s, &w[j * k + first..][..depth], &mut row[..depth]);
            }
            let cut = Cut {
                left,
                right,
                stride: STRIDE,
                depth,
                partial: &mut partial,
                first: first == 0,
                last: first + depth == whole,
            };
            self.tiles(s, w, cut);
        }
        PACKED.set(packed);
        PARTIAL.set(partial);
    }

    /// A cut, tile by tile.
    #[inline(always)]
    fn tiles<S: Simd, W: Element>(&self, s: S, w: &[W], mut cut: Cut) {
        let (rows, cols) = (self.rows.len(), self.cols.len());
        let span = |n: usize, stride: usize| if n == 0 { 0 } else { (n - 1) * stride + cut.depth };
        assert!(cut.left.len() >= span(rows, cut.stride) && cut.right.len() >= span(cols, cut.stride));
        assert!(cut.partial.len() >= if cut.first && cut.last { 0 } else { rows * cols * S::LANES });
        assert!(w.len() >= cols * self.k && self.a.len() >= self.rows.end * self.k);
        let (tall, wide) = tile_shape::<S>();
        let tiles = cols.div_ceil(wide).max(1);
        let mut i = 0;
        while i < rows {
            let r = if rows - i >= tall { tall } else { [1, 2, 2, 4][(rows - i).min(4) - 1] };
            // The rows of the next tiles are asked for while these are computed.
            let next = self.a.as_ptr().wrapping_add((self.rows.start + i + r) * self.k);
            let lines = if cut.first && cut.last { (r * self.k).div_ceil(16).div_ceil(tiles) } else { 0 };
            let (mut j, mut asked) = (0, 0);
            while j < cols {
                let c = if cols - j >= wide { wide } else { 1 };
                for _ in 0..lines {
                    s.prefetch(next.wrapping_add(asked * 16).cast());
                    asked += 1;
                }
                // SAFETY: rows i..i + r and columns j..j + c are in the block, whose operands are there as asserted.
                unsafe {
                    match (S::LANES, r, c) {
                        (16, 6, 4) => self.cut_tile::<S, W, 6, 4>(s, w, &mut cut, i, j),
                        (16, 6, 1) => self.cut_tile::<S, W, 6, 1>(s, w, &mut cut, i, j),
                        (16, 4, 4) => self.cut_tile::<S, W, 4, 4>(s, w, &mut cut, i, j),
                        (8, 4, 3) => self.cut_tile::<S, W, 4, 3>(s, w, &mut cut, i, j),
                        (8, 4, 1) => self.cut_tile::<S, W, 4, 1>(s, w, &mut cut, i, j),
                        (8, 2, 3) => self.cut_tile::<S, W, 2, 3>(s, w, &mut cut, i, j),
                        (8, 1, 3) => self.cut_tile::<S, W, 1, 3>(s, w, &mut cut, i, j),
                        (_, 2, 4) => self.cut_tile::<S, W, 2, 4>(s, w, &mut cut, i, j),
                        (_, 1, 4) => self.cut_tile::<S, W, 1, 4>(s, w, &mut cut, i, j),
                        _ => (i..i + r).for_each(|i| self.cut_tile::<S, W, 1, 1>(s, w, &mut cut, i, j)),
                    }
                }
                j += c;
            }
            i += r;
        }
    }

    /// # Safety
    /// i + R <= rows and j + C <= columns of this block; the cut and `w` hold them.
    #[inline(always)]
    unsafe fn cut_tile<S: Simd, W: Element, const R: usize, const C: usize>(
        &self,
        s: S,
        w: &[W],
        cut: &mut Cut,
        i: usize,
        j: usize,
    ) {
        let (cols, k) = (self.cols.len(), self.k);
        let mut sums = [[s.splat(0.0); C]; R];
        let at = |r: usize, c: usize| ((i + r) * cols + j + c) * S::LANES;
        // SAFETY: the caller's promise; `partial` holds a register for each element.
        unsafe {
            if !cut.first {
                for r in 0..R {
                    for c in 0..C {
                        sums[r][c] = s.load(cut.partial.as_ptr().add(at(r, c)));
                    }
                }
            }
            let (left, right) =
                (cut.left.as_ptr().add(i * cut.stride), cut.right.as_ptr().add(j * cut.stride));
            sums = lanes::<S, f32, R, C>(s, sums, left, right, cut.stride, cut.depth);
            if !cut.last {
                for r in 0..R {
                    for c in 0..C {
                        s.store(cut.partial.as_mut_ptr().add(at(r, c)), sums[r][c]);
                    }
                }
                return;
            }
            let a = self.a.as_ptr().add((self.rows.start + i) * k);
            let rest = rest::<S, W, R, C>(a, w.as_ptr().add(j * k), k);
            let sums = totals(s, sums);
            for r in 0..R {
                self.store(self.rows.start + i + r, self.cols.start + j, &sums[r], &rest[r]);
            }
        }
    }

    /// R rows by rows `cols` of `w`; ONE: by one of them after another.
    ///
    /// # Safety
    /// `a` points at R rows, `w` holds `cols`.
    #[inline(always)]
    unsafe fn columns<S: Simd, W: Element, const R: usize, const ONE: bool>(
        &self,
        s: S,
        a: *const f32,
        w: &[W],
        i: usize,
        cols: Range<usize>,
    ) {
        let k = self.k;
        let mut j = cols.start;
        while j + 4 <= cols.end {
            // SAFETY: rows j..j + 4 of w exist.
            let (sums, rest) = unsafe {
                let w = w.as_ptr().add(j * k);
                if ONE { one_by_one::<S, W, R>(s, a, w, k) } else { tile::<S, W, R, 4>(s, a, w, k) }
            };
            for r in 0..R {
                self.store(i + r, self.cols.start + j, &s.sum4(sums[r]), &rest[r]);
            }
            j += 4;
        }
        while j < cols.end {
            // SAFETY: row j of w exists.
            let (sums, rest) = unsafe { tile::<S, W, R, 1>(s, a, w.as_ptr().add(j * k), k) };
            for r in 0..R {
                self.store(i + r, self.cols.start + j, &[s.sum(sums[r][0])], &rest[r]);
            }
            j += 1;
        }
    }

    #[inline(always)]
    fn store(&self, i: usize, j: usize, lanes: &[f32], rest: &[f32]) {
        // SAFETY: each task has its own rows and columns of out.
        let out = unsafe { self.out.part(i * self.m + j, lanes.len()) };
        for c in 0..lanes.len() {
            self.epilogue.store(&mut out[c], lanes[c] + rest[c], j + c);
        }
    }
}
