//! out (N, M) = a (N, K) w (M, K)ᵀ: both operands are read along K, so nothing is packed and weights stream from memory once.
//!
//! Every element is summed over K in lanes, in one order for all tile shapes and all numbers of rows: the result of a row does not
//! depend on the batch that it is in.
#![allow(unsafe_code)]
use std::cell::Cell;

use half::bf16;

use super::rows::Weight;
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

/// Rows `rows` of `a` times the rows of `w`, which are `cols` of the whole weight. `w` is F32 or Bf16.
pub(super) struct DotBlock<'a> {
    pub out: Shared<'a>,
    pub a: &'a [f32],
    pub w: Weight<'a>,
    pub rows: std::ops::Range<usize>,
    pub cols: std::ops::Range<usize>,
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
                self.block(s, &wide[..]);
                WIDE.set(wide);
            }
            Weight::Bf16(w) => self.deep_block(s, w),
            Weight::Blocks(_) => unreachable!("blocks are unpacked before a kernel runs"),
        }
    }
}

/// Sums longer than this are cut: rows of many kilobytes, the more so of powers of two, push each other out of the caches. On 2 threads of Zen 5
/// 4096 went from 215 to 285 GFLOP/s; 1536 is faster in one piece (325) than in pieces of 512 (300).
pub(super) const DEEP: usize = 1536;
/// The length of a cut.
const DEPTH: usize = 1024;
/// Columns of a task whose sums are cut: each packed row of `a` is used for all of them.
pub(super) const DEEP_COLS: usize = 64;

thread_local! {
    static WIDE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static PACKED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static PARTIAL: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// out = w as f32
#[inline(always)]
fn widen<S: Simd, W: Element>(s: S, w: &[W], out: &mut [f32]) {
    let whole = w.len() / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: i + LANES <= w.len(), and out is as long.
        unsafe { s.store(out.as_mut_ptr().add(i), W::load(s, w.as_ptr().add(i))) }
    }
    for i in whole..w.len() {
        out[i] = w[i].widen();
    }
}

/// An element type that lanes are loaded from.
trait Element: Copy {
    /// # Safety
    /// `LANES` elements from `p` on are readable.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V;
    fn widen(self) -> f32;
}
impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(p) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}
impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const bf16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16(p) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
}

/// A cut of a block's long sums.
struct Cut<'a> {
    /// Rows of `a`, [`DEPTH`] apart.
    left: &'a [f32],
    /// Rows of `w`.
    right: &'a [f32],
    /// Lane sums of earlier cuts, a register for each element.
    partial: &'a mut [f32],
    first: usize,
    depth: usize,
    last: bool,
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

    /// `w` begins at row `cols.start`.
    #[inline(always)]
    fn block<S: Simd, W: Element>(&self, s: S, w: &[W]) {
        let (cols, k) = (self.cols.len(), self.k);
        assert!(w.len() >= cols * k && self.a.len() >= self.rows.end * k);
        let mut i = self.rows.start;
        while i < self.rows.end {
            // SAFETY: rows i..i + R of a and rows of w below `cols` exist, as asserted.
            unsafe {
                let a = self.a.as_ptr().add(i * k);
                if S::TILE_ROWS == 8 && self.rows.end - i >= 6 {
                    self.columns::<S, W, 6, false>(s, a, w, i, 0..cols);
                    i += 6;
                } else if S::TILE_ROWS == 8 && self.rows.end - i >= 4 {
                    self.columns::<S, W, 4, false>(s, a, w, i, 0..cols);
                    i += 4;
                } else if self.rows.end - i >= 2 {
                    self.columns::<S, W, 2, false>(s, a, w, i, 0..cols);
                    i += 2;
                } else {
                    self.columns::<S, W, 1, false>(s, a, w, i, 0..cols);
                    i += 1;
                }
            }
        }
    }

    /// As `block`, for long sums: they are cut, and what a cut needs of `a` and `w` is packed. The order of every sum stays what it is elsewhere.
    #[inline(always)]
    fn deep_block<S: Simd, W: Element>(&self, s: S, w: &[W]) {
        let (rows, cols, k) = (self.rows.len(), self.cols.len(), self.k);
        assert!(w.len() == cols * k && self.a.len() >= self.rows.end * k);
        let whole = k / S::LANES * S::LANES;
        let (mut packed, mut partial) = (PACKED.take(), PARTIAL.take());
        packed.resize((rows + cols) * DEPTH, 0.0);
        partial.resize(rows * cols * S::LANES, 0.0);
        for first in (0..whole).step_by(DEPTH) {
            let depth = DEPTH.min(whole - first);
            let (left, right) = packed.split_at_mut(rows * DEPTH);
            for (i, row) in left.chunks_exact_mut(DEPTH).enumerate() {
                widen(s, &self.a[(self.rows.start + i) * k + first..][..depth], &mut row[..depth]);
            }
            for (j, row) in right.chunks_exact_mut(DEPTH).enumerate() {
                widen(s, &w[j * k + first..][..depth], &mut row[..depth]);
            }
            let cut = Cut { left, right, partial: &mut partial, first, depth, last: first + depth == whole };
            self.cut_rows(s, w, cut);
        }
        PACKED.set(packed);
        PARTIAL.set(partial);
    }

    #[inline(always)]
    fn cut_rows<S: Simd, W: Element>(&self, s: S, w: &[W], mut cut: Cut) {
        let (rows, cols) = (self.rows.len(), self.cols.len());
        let mut i = 0;
        while i < rows {
            let r = if S::TILE_ROWS == 8 && rows - i >= 6 { 6 } else { [1, 2, 2, 4][(rows - i).min(4) - 1] };
            let mut j = 0;
            while j < cols {
                let c = if j + 4 <= cols { 4 } else { 1 };
                // SAFETY: the cut holds rows i..i + r and j..j + c.
                unsafe {
                    match (r, c) {
                        (6, 4) => self.cut_tile::<S, W, 6, 4>(s, w, &mut cut, i, j),
                        (4, 4) => self.cut_tile::<S, W, 4, 4>(s, w, &mut cut, i, j),
                        (2, 4) => self.cut_tile::<S, W, 2, 4>(s, w, &mut cut, i, j),
                        (1, 4) => self.cut_tile::<S, W, 1, 4>(s, w, &mut cut, i, j),
                        _ => {
                            for r in i..i + r {
                                self.cut_tile::<S, W, 1, 1>(s, w, &mut cut, r, j);
                            }
                        }
                    }
                }
                j += c;
            }
            i += r;
        }
    }

    /// # Safety
    /// i + R <= rows and j + C <= columns of this block.
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
        // SAFETY: the caller's promise; `partial` holds a register for each element.
        unsafe {
            let partial = cut.partial.as_mut_ptr();
            if cut.first > 0 {
                for r in 0..R {
                    for c in 0..C {
                        sums[r][c] = s.load(partial.add(((i + r) * cols + j + c) * S::LANES));
                    }
                }
            }
            let (left, right) = (cut.left.as_ptr().add(i * DEPTH), cut.right.as_ptr().add(j * DEPTH));
            sums = lanes::<S, f32, R, C>(s, sums, left, right, DEPTH, cut.depth);
            if !cut.last {
                for r in 0..R {
                    for c in 0..C {
                        s.store(partial.add(((i + r) * cols + j + c) * S::LANES), sums[r][c]);
                    }
                }
                return;
            }
            let a = self.a.as_ptr().add((self.rows.start + i) * k);
            let rest: [[f32; C]; R] = tail(a, w.as_ptr().add(j * k), k, k / S::LANES * S::LANES);
            for r in 0..R {
                let mut four = [s.splat(0.0); 4];
                four[..C].copy_from_slice(&sums[r]);
                self.store(self.rows.start + i + r, self.cols.start + j, &s.sum4(four)[..C], &rest[r]);
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
        cols: std::ops::Range<usize>,
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
            let mut x = self.epilogue.alpha * (lanes[c] + rest[c]);
            if let Some(bias) = self.epilogue.bias {
                x += bias[j + c];
            }
            out[c] = if self.epilogue.accumulate { out[c] + x } else { x };
        }
    }
}

/// As a [`tile`] of four rows of `w`, which are read one after another, with memory asked for what comes a page later.
///
/// # Safety
/// R rows of k floats at `a`, four rows of k elements at `w`.
#[inline(always)]
unsafe fn one_by_one<S: Simd, W: Element, const R: usize>(
    s: S,
    a: *const f32,
    w: *const W,
    k: usize,
) -> ([[S::V; 4]; R], [[f32; 4]; R]) {
    const AHEAD: usize = 4096;
    let line = (64 / size_of::<W>()).max(S::LANES);
    let whole = k / S::LANES * S::LANES;
    let mut sums = [[s.splat(0.0); 4]; R];
    for c in 0..4 {
        let mut lanes = [s.splat(0.0); R];
        // SAFETY: every index is below R * k or 4 * k, by the caller's promise; what is asked for ahead is not touched.
        unsafe {
            let w = w.add(c * k);
            let mut p = 0;
            while p < whole {
                s.prefetch(w.wrapping_add(p).wrapping_byte_add(AHEAD).cast());
                let end = (p + line).min(whole);
                while p < end {
                    let right = W::load(s, w.add(p));
                    for r in 0..R {
                        lanes[r] = s.fma(s.load(a.add(r * k + p)), right, lanes[r]);
                    }
                    p += S::LANES;
                }
            }
        }
        for r in 0..R {
            sums[r][c] = lanes[r];
        }
    }
    // SAFETY: the caller's promise.
    (sums, unsafe { tail(a, w, k, whole) })
}

/// The lane sums of R rows of `a` by C rows of `w`, and the sums over what K leaves of a register.
///
/// # Safety
/// R rows of k floats at `a`, C rows of k elements at `w`.
#[inline(always)]
unsafe fn tile<S: Simd, W: Element, const R: usize, const C: usize>(
    s: S,
    a: *const f32,
    w: *const W,
    k: usize,
) -> ([[S::V; C]; R], [[f32; C]; R]) {
    let whole = k / S::LANES * S::LANES;
    // SAFETY: the caller's promise.
    unsafe { (lanes(s, [[s.splat(0.0); C]; R], a, w, k, whole), tail(a, w, k, whole)) }
}

/// sums + the lane sums over the first `depth` (whole registers) of R rows of `a` by C rows of `w`, `stride` elements apart in both.
///
/// # Safety
/// R rows of `depth` floats at `a`, C rows of `depth` elements at `w`.
#[inline(always)]
unsafe fn lanes<S: Simd, W: Element, const R: usize, const C: usize>(
    s: S,
    mut sums: [[S::V; C]; R],
    a: *const f32,
    w: *const W,
    stride: usize,
    depth: usize,
) -> [[S::V; C]; R] {
    let mut p = 0;
    while p < depth {
        let mut right = [s.splat(0.0); C];
        // SAFETY: p + LANES <= depth.
        unsafe {
            for c in 0..C {
                right[c] = W::load(s, w.add(c * stride + p));
            }
            for r in 0..R {
                let left = s.load(a.add(r * stride + p));
                for c in 0..C {
                    sums[r][c] = s.fma(left, right[c], sums[r][c]);
                }
            }
        }
        p += S::LANES;
    }
    sums
}

/// The sums over from..k, less than a register, of R rows of `a` by C rows of `w`.
///
/// # Safety
/// R rows of k floats at `a`, C rows of k elements at `w`.
#[inline(always)]
unsafe fn tail<W: Element, const R: usize, const C: usize>(
    a: *const f32,
    w: *const W,
    k: usize,
    from: usize,
) -> [[f32; C]; R] {
    let mut rest = [[0.0; C]; R];
    for p in from..k {
        for r in 0..R {
            for c in 0..C {
                // SAFETY: p < k.
                rest[r][c] += unsafe { *a.add(r * k + p) * (*w.add(c * k + p)).widen() };
            }
        }
    }
    rest
}
