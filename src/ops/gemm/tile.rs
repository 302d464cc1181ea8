//! What dot products are made of: lane sums of a tile of rows by columns, their totals, and what whole registers leave of K. One order of additions for
//! all shapes of tiles.
#![allow(unsafe_code)]
use half::bf16;

use crate::ops::simd::Simd;

/// out = w as f32
#[inline(always)]
pub(super) fn widen<S: Simd, W: Element>(s: S, w: &[W], out: &mut [f32]) {
    let whole = w.len() / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: i + LANES <= w.len(), and out is as long.
        unsafe { s.store(out.as_mut_ptr().add(i), W::load(s, w.as_ptr().add(i))) }
    }
    for i in whole..w.len() {
        out[i] = w[i].widen();
    }
}

/// Asks for the cache lines of `len` elements.
#[inline(always)]
pub(super) fn ask<S: Simd, W>(s: S, p: *const W, len: usize) {
    for at in (0..len * size_of::<W>()).step_by(64) {
        s.prefetch(p.cast::<u8>().wrapping_add(at));
    }
}

/// An element type that lanes are loaded from.
pub(super) trait Element: Copy {
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

/// As a [`tile`] of four rows of `w`, which are read one after another, with memory asked for what comes a page later.
///
/// # Safety
/// R rows of k floats at `a`, four rows of k elements at `w`.
#[inline(always)]
pub(super) unsafe fn one_by_one<S: Simd, W: Element, const R: usize>(
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
pub(super) unsafe fn tile<S: Simd, W: Element, const R: usize, const C: usize>(
    s: S,
    a: *const f32,
    w: *const W,
    k: usize,
) -> ([[S::V; C]; R], [[f32; C]; R]) {
    let whole = k / S::LANES * S::LANES;
    // SAFETY: the caller's promise.
    unsafe { (lanes(s, [[s.splat(0.0); C]; R], a, w, k, whole), tail(a, w, k, whole)) }
}

/// sums + the lane sums over the first `depth` (whole registers) of R rows of `a` by C rows of `w`, `stride` apart in both.
///
/// # Safety
/// R rows of `depth` floats at `a`, C rows of `depth` elements at `w`.
#[inline(always)]
pub(super) unsafe fn lanes<S: Simd, W: Element, const R: usize, const C: usize>(
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

/// The sums over the lanes, four at a time: along rows where a row has four, else down columns.
#[inline(always)]
pub(super) fn totals<S: Simd, const R: usize, const C: usize>(s: S, sums: [[S::V; C]; R]) -> [[f32; C]; R] {
    let mut out = [[0.0; C]; R];
    if C == 4 {
        for r in 0..R {
            let row = &sums[r];
            out[r].copy_from_slice(&s.sum4([row[0], row[1 % C], row[2 % C], row[3 % C]])[..C]);
        }
        return out;
    }
    for from in (0..R).step_by(4) {
        let at = |r: usize| (from + r).min(R - 1);
        for c in 0..C {
            let down = s.sum4([sums[from][c], sums[at(1)][c], sums[at(2)][c], sums[at(3)][c]]);
            for r in from..R.min(from + 4) {
                out[r][c] = down[r - from];
            }
        }
    }
    out
}

/// The sums over what whole registers leave of K, of R rows of `a` by C rows of `w`.
///
/// # Safety
/// R rows of k floats at `a`, C rows of k elements at `w`.
#[inline(always)]
pub(super) unsafe fn rest<S: Simd, W: Element, const R: usize, const C: usize>(
    a: *const f32,
    w: *const W,
    k: usize,
) -> [[f32; C]; R] {
    let whole = k / S::LANES * S::LANES;
    if whole == k {
        return [[0.0; C]; R];
    }
    // Where registers are few, a call keeps these sums from taking any of a tile's.
    // SAFETY: the caller's promise.
    if S::LANES == 16 { unsafe { tail(a, w, k, whole) } } else { unsafe { tail_apart(a, w, k, whole) } }
}

#[inline(never)]
unsafe fn tail_apart<W: Element, const R: usize, const C: usize>(
    a: *const f32,
    w: *const W,
    k: usize,
    from: usize,
) -> [[f32; C]; R] {
    // SAFETY: the caller's promise.
    unsafe { tail(a, w, k, from) }
}

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
