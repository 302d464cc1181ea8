//! The small matrix products that attention is made of, and the layouts that they read.
#![allow(unsafe_code)]
use crate::ops::simd::Simd;

/// Queries of one tile: the vector lanes of the scores, which are held transposed, (keys, queries).
pub(crate) const QUERIES: usize = 32;
/// Keys of one tile.
pub(crate) const KEYS: usize = 64;

/// Rows of some matrix: row i is `data[i * stride..]`.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

impl<'a> Rows<'a> {
    /// Without the first `n` rows.
    #[inline(always)]
    pub(crate) fn skip(self, n: usize) -> Rows<'a> {
        Rows { data: &self.data[n * self.stride..], stride: self.stride }
    }
}

/// The left operand of [`matmul`].
#[derive(Clone, Copy)]
pub(crate) enum Left<'a> {
    /// As it stands, (m, k).
    Plain(Rows<'a>),
    /// Its transpose, (k, m).
    Transposed(Rows<'a>),
}

/// c (m, n) = or, with `accumulate`, += a (m, k) b (k, n), n a multiple of `LANES`. Every element is summed over k in order, so
/// that its bits depend on nothing but its row of a and its column of b.
#[inline(always)]
pub(crate) fn matmul<S: Simd>(
    s: S,
    [m, n, k]: [usize; 3],
    a: Left,
    b: Rows,
    c: &mut [f32],
    c_stride: usize,
    accumulate: bool,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(n % S::LANES == 0 && (k - 1) * b.stride + n <= b.data.len() && (m - 1) * c_stride + n <= c.len());
    let tiles =
        Tiles { s, m, n, k, b: b.data.as_ptr(), b_stride: b.stride, c: c.as_mut_ptr(), c_stride, accumulate };
    match a {
        Left::Plain(a) => {
            assert!((m - 1) * a.stride + k <= a.data.len());
            // SAFETY: a, b and c hold the products' operands, as asserted.
            unsafe { tiles.all::<false>(a.data.as_ptr(), a.stride) }
        }
        Left::Transposed(a) => {
            assert!((k - 1) * a.stride + m <= a.data.len());
            // SAFETY: as above.
            unsafe { tiles.all::<true>(a.data.as_ptr(), a.stride) }
        }
    }
}

struct Tiles<S> {
    s: S,
    m: usize,
    n: usize,
    k: usize,
    b: *const f32,
    b_stride: usize,
    c: *mut f32,
    c_stride: usize,
    accumulate: bool,
}

impl<S: Simd> Tiles<S> {
    /// # Safety
    /// a (m, k), or (k, m) with `T`, b (k, n) and c (m, n) lie inside their allocations.
    #[inline(always)]
    unsafe fn all<const T: bool>(&self, a: *const f32, stride: usize) {
        let mut j = 0;
        while j < self.n {
            // SAFETY: the caller's promise; the columns j.. that remain are counted.
            unsafe {
                if self.n - j >= 2 * S::LANES {
                    self.columns::<2, T>(a, stride, j);
                    j += 2 * S::LANES;
                } else {
                    self.columns::<1, T>(a, stride, j);
                    j += S::LANES;
                }
            }
        }
    }

    /// # Safety
    /// As for `all`; columns j..j + C * LANES exist.
    #[inline(always)]
    unsafe fn columns<const C: usize, const T: bool>(&self, a: *const f32, stride: usize, j: usize) {
        let mut i = 0;
        // SAFETY: the caller's promise; the rows i.. that remain are counted.
        unsafe {
            if S::TILE_ROWS == 8 {
                while self.m - i >= 8 {
                    self.tile::<8, C, T>(a, stride, i, j);
                    i += 8;
                }
            }
            while self.m - i >= 4 {
                self.tile::<4, C, T>(a, stride, i, j);
                i += 4;
            }
            match self.m - i {
                3 => self.tile::<3, C, T>(a, stride, i, j),
                2 => self.tile::<2, C, T>(a, stride, i, j),
                1 => self.tile::<1, C, T>(a, stride, i, j),
                _ => {}
            }
        }
    }

    /// R rows from i on, C registers of columns from j on.
    ///
    /// # Safety
    /// As for `all`; these rows and columns exist.
    #[inline(always)]
    unsafe fn tile<const R: usize, const C: usize, const T: bool>(
        &self,
        a: *const f32,
        stride: usize,
        i: usize,
        j: usize,
    ) {
        let s = self.s;
        // SAFETY: elements (i + r, p), (p, j + x), (i + r, j + x) with p < k, by the caller's promise.
        unsafe {
            let a = a.add(if T { i } else { i * stride });
            let (b, c) = (self.b.add(j), self.c.add(i * self.c_stride + j));
            let mut sums = [[s.splat(0.0); C]; R];
            if self.accumulate {
                for r in 0..R {
                    for x in 0..C {
                        sums[r][x] = s.load(c.add(r * self.c_stride + x * S::LANES));
                    }
                }
            }
            for p in 0..self.k {
                let mut row = [s.splat(0.0); C];
                for x in 0..C {
                    row[x] = s.load(b.add(p * self.b_stride + x * S::LANES));
                }
                for r in 0..R {
                    let left = s.splat(*a.add(if T { p * stride + r } else { r * stride + p }));
                    for x in 0..C {
                        sums[r][x] = s.fma(left, row[x], sums[r][x]);
                    }
                }
            }
            for r in 0..R {
                for x in 0..C {
                    s.store(c.add(r * self.c_stride + x * S::LANES), sums[r][x]);
                }
            }
        }
    }
}

/// `n` rows of `hs` floats at `start`, `start + stride`, ... of `data`, ready to be a right operand: where `hs` is not a multiple
/// of the lanes they are copied to `padded`, with zeros up to `width`.
#[inline(always)]
pub(crate) fn gather_rows<'a>(
    data: &'a [f32],
    start: usize,
    stride: usize,
    n: usize,
    hs: usize,
    width: usize,
    padded: &'a mut [f32],
) -> Rows<'a> {
    if width == hs {
        return Rows { data: &data[start..start + (n.max(1) - 1) * stride + hs], stride };
    }
    for (i, row) in padded.chunks_exact_mut(width).take(n).enumerate() {
        row[..hs].copy_from_slice(&data[start + i * stride..][..hs]);
        row[hs..].fill(0.0);
    }
    Rows { data: padded, stride: width }
}

/// out (hs, QUERIES) = `factor` times the transpose of `n` rows of `hs` floats; the lanes from `n` on are 0.
#[inline(always)]
pub(crate) fn transpose(out: &mut [f32], rows: Rows, n: usize, hs: usize, factor: f32) {
    let out = &mut out[..hs * QUERIES];
    let whole = hs / 4 * 4;
    if n < QUERIES {
        out.fill(0.0);
    }
    let mut i = 0;
    while i + 4 <= n {
        let row = |r: usize| &rows.data[(i + r) * rows.stride..][..hs];
        let r = [row(0), row(1), row(2), row(3)];
        for d in (0..whole).step_by(4) {
            let column = &mut out[d * QUERIES + i..][..3 * QUERIES + 4];
            transpose_4x4([&r[0][d..], &r[1][d..], &r[2][d..], &r[3][d..]], factor, column);
        }
        for d in whole..hs {
            for y in 0..4 {
                out[d * QUERIES + i + y] = r[y][d] * factor;
            }
        }
        i += 4;
    }
    for i in i..n {
        for (d, x) in rows.data[i * rows.stride..][..hs].iter().enumerate() {
            out[d * QUERIES + i] = x * factor;
        }
    }
}

/// Columns, QUERIES apart, = `factor` times the first four elements of four rows.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transpose_4x4(rows: [&[f32]; 4], factor: f32, columns: &mut [f32]) {
    use std::arch::x86_64::*;
    assert!(rows.iter().all(|r| r.len() >= 4) && columns.len() >= 3 * QUERIES + 4);
    // SAFETY: SSE belongs to every x86-64 processor; the extents are checked.
    unsafe {
        let factor = _mm_set1_ps(factor);
        let a = _mm_mul_ps(_mm_loadu_ps(rows[0].as_ptr()), factor);
        let b = _mm_mul_ps(_mm_loadu_ps(rows[1].as_ptr()), factor);
        let c = _mm_mul_ps(_mm_loadu_ps(rows[2].as_ptr()), factor);
        let d = _mm_mul_ps(_mm_loadu_ps(rows[3].as_ptr()), factor);
        let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
        let (ab_high, cd_high) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
        let to = columns.as_mut_ptr();
        _mm_storeu_ps(to, _mm_movelh_ps(ab, cd));
        _mm_storeu_ps(to.add(QUERIES), _mm_movehl_ps(cd, ab));
        _mm_storeu_ps(to.add(2 * QUERIES), _mm_movelh_ps(ab_high, cd_high));
        _mm_storeu_ps(to.add(3 * QUERIES), _mm_movehl_ps(cd_high, ab_high));
    }
}
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn transpose_4x4(rows: [&[f32]; 4], factor: f32, columns: &mut [f32]) {
    for x in 0..4 {
        for (y, row) in rows.iter().enumerate() {
            columns[x * QUERIES + y] = row[x] * factor;
        }
    }
}

/// Sets the scores (keys, QUERIES) that are not to be seen to minus infinity: query i sees key j if 0 <= i - j < window. Keys and
/// queries are counted from their document's start; the tile's first ones are `first_key` and `first_query`.
#[inline(always)]
pub(crate) fn mask(scores: &mut [f32], first_key: usize, first_query: usize, window: usize) {
    for (j, row) in scores.chunks_exact_mut(QUERIES).enumerate() {
        let key = first_key + j;
        row[..key.saturating_sub(first_query).min(QUERIES)].fill(f32::NEG_INFINITY);
        row[key.saturating_add(window).saturating_sub(first_query).min(QUERIES)..].fill(f32::NEG_INFINITY);
    }
}
