//! out (N, M) = a (N, K) w (M, K)ᵀ: both operands are read along K, so nothing is packed and weights stream from memory once.
//!
//! Every element is summed over K in lanes, in one order for all tile shapes and all numbers of rows: the result of a row does not
//! depend on the batch that it is in.
#![allow(unsafe_code)]
use std::cell::Cell;

use half::bf16;

use crate::ops::{
    parallel::Shared,
    simd::{Kernel, Simd},
};

/// The matrix that is read row by row.
#[derive(Clone, Copy)]
pub(super) enum Weight<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// What happens to a product before it is stored: out = alpha * product [+ bias] [+ out].
#[derive(Clone, Copy)]
pub(super) struct Epilogue<'a> {
    pub alpha: f32,
    pub accumulate: bool,
    /// (M)
    pub bias: Option<&'a [f32]>,
}

/// Rows i0..i1 of `a` times rows j0..j1 of `w`.
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
const FEW_ROWS: usize = 8;

impl Kernel for DotBlock<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.w {
            Weight::F32(w) => {
                let w = &w[self.cols.start * self.k..];
                if self.rows.len() <= FEW_ROWS { self.stream(s, w) } else { self.block(s, w) }
            }
            Weight::Bf16(w) => {
                let w = &w[self.cols.start * self.k..self.cols.end * self.k];
                if self.rows.len() <= FEW_ROWS {
                    return self.stream(s, w);
                }
                // Taken and put back, not lent to a closure: closures do not inherit the instruction set.
                let mut wide = WIDE.take();
                wide.resize(w.len(), 0.0);
                widen(s, w, &mut wide);
                self.block(s, &wide[..]);
                WIDE.set(wide);
            }
        }
    }
}

thread_local!(static WIDE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) });

/// out = w as f32
#[inline(always)]
fn widen<S: Simd>(s: S, w: &[bf16], out: &mut [f32]) {
    let whole = w.len() / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: i + LANES <= w.len() == out.len().
        unsafe { s.store(out.as_mut_ptr().add(i), s.load_bf16(w.as_ptr().add(i))) }
    }
    for i in whole..w.len() {
        out[i] = w[i].to_f32();
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
    let mut rest = [[0.0; 4]; R];
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
            for p in whole..k {
                for r in 0..R {
                    rest[r][c] += *a.add(r * k + p) * (*w.add(p)).widen();
                }
            }
        }
        for r in 0..R {
            sums[r][c] = lanes[r];
        }
    }
    (sums, rest)
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
    let mut sums = [[s.splat(0.0); C]; R];
    let mut rest = [[0.0; C]; R];
    // SAFETY: every index is below R * k or C * k, by the caller's promise.
    unsafe {
        let mut p = 0;
        while p < whole {
            let mut right = [s.splat(0.0); C];
            for c in 0..C {
                right[c] = W::load(s, w.add(c * k + p));
            }
            for r in 0..R {
                let left = s.load(a.add(r * k + p));
                for c in 0..C {
                    sums[r][c] = s.fma(left, right[c], sums[r][c]);
                }
            }
            p += S::LANES;
        }
        for p in whole..k {
            for r in 0..R {
                for c in 0..C {
                    rest[r][c] += *a.add(r * k + p) * (*w.add(c * k + p)).widen();
                }
            }
        }
    }
    (sums, rest)
}
