//! The products with AVX2: 32 codes a register, `maddubs` and `madd` for sums of four products in i32; where there is VNNI, its instructions that do two of
//! these at once. All sums of integers are exact, so that both have the same bits.
#![allow(unsafe_code)]
use std::{arch::x86_64::*, ops::Range};

mod of_256;
mod of_32;
mod wide;

pub(super) use of_32::{By32, Of32, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
pub(super) use of_256::{Of256, Q4K, Q5K, Q6K};

use super::IntRows;
use crate::ops::quantize::{GgmlType, HostBlocks};

/// Rows that share the codes of a block.
const TOGETHER: usize = 4;

/// out (rows, cols) = rows of `a` times rows of `w`; the caller checked that all fits together.
pub(super) fn dots(out: &mut [f32], a: &IntRows, rows: Range<usize>, w: &HostBlocks, cols: Range<usize>) {
    match w.kind() {
        GgmlType::Q4K => choose::<Q4K>(out, a, rows, w, cols),
        GgmlType::Q5K => choose::<Q5K>(out, a, rows, w, cols),
        GgmlType::Q6K => choose::<Q6K>(out, a, rows, w, cols),
        GgmlType::Q4_0 => choose::<By32<Q4_0>>(out, a, rows, w, cols),
        GgmlType::Q4_1 => choose::<By32<Q4_1>>(out, a, rows, w, cols),
        GgmlType::Q5_0 => choose::<By32<Q5_0>>(out, a, rows, w, cols),
        GgmlType::Q5_1 => choose::<By32<Q5_1>>(out, a, rows, w, cols),
        _ => choose::<By32<Q8_0>>(out, a, rows, w, cols),
    }
}

fn choose<F: Format>(out: &mut [f32], a: &IntRows, rows: Range<usize>, w: &HostBlocks, cols: Range<usize>) {
    let (vnni, bw) = (is_x86_feature_detected!("avx512vnni"), is_x86_feature_detected!("avx512bw"));
    if vnni && bw && is_x86_feature_detected!("avx512vl") {
        // SAFETY: the features were found, and AVX2 (with FMA and F16C) is what the level was chosen for.
        unsafe { with_vnni::<F>(out, a, rows, w, cols) }
    } else {
        // SAFETY: the level was chosen because this processor has AVX2, FMA and F16C.
        unsafe { with_avx2::<F>(out, a, rows, w, cols) }
    }
}

/// A format: the dot products of one row of blocks with `R` rows of activations from `first` on.
trait Format {
    /// # Safety
    /// `row` is `a.len()` values in whole blocks, and rows `first..first + R` of `a` are there; the processor has AVX2, FMA and F16C, with `VNNI` that
    /// and AVX-512VL too.
    unsafe fn dot<const R: usize, const VNNI: bool>(row: &[u8], a: &IntRows, first: usize) -> [f32; R];
}

/// # Safety
/// The processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn with_avx2<F: Format>(
    out: &mut [f32],
    a: &IntRows,
    rows: Range<usize>,
    w: &HostBlocks,
    cols: Range<usize>,
) {
    // SAFETY: as this function's.
    unsafe { all::<F, false>(out, a, rows, w, cols) }
}

/// # Safety
/// The processor has AVX2, FMA, F16C, AVX-512VL and AVX-512 VNNI.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn with_vnni<F: Format>(
    out: &mut [f32],
    a: &IntRows,
    rows: Range<usize>,
    w: &HostBlocks,
    cols: Range<usize>,
) {
    // SAFETY: as this function's.
    unsafe { all::<F, true>(out, a, rows, w, cols) }
}

#[inline(always)]
unsafe fn all<F: Format, const VNNI: bool>(
    out: &mut [f32],
    a: &IntRows,
    rows: Range<usize>,
    w: &HostBlocks,
    cols: Range<usize>,
) {
    let width = cols.len();
    for (j, col) in cols.enumerate() {
        let row = w.row(col);
        let mut i = 0;
        while i + TOGETHER <= rows.len() {
            // SAFETY: the caller of `dots` checked lengths, the caller of this has the features.
            let found = unsafe { F::dot::<TOGETHER, VNNI>(row, a, rows.start + i) };
            for (r, x) in found.into_iter().enumerate() {
                out[(i + r) * width + j] = x;
            }
            i += TOGETHER;
        }
        while i < rows.len() {
            // SAFETY: as above.
            let [x] = unsafe { F::dot::<1, VNNI>(row, a, rows.start + i) };
            out[i * width + j] = x;
            i += 1;
        }
    }
}

// Below, every function is part of `all`, and the bodies are unsafe for the same two reasons: instructions of `all`'s features, and reads
// inside of a row of blocks or of activations, whose lengths the caller of `dots` checked (activations have zeros up to a multiple of 128).

#[inline(always)]
fn zero() -> __m256i {
    // SAFETY: see above.
    unsafe { _mm256_setzero_si256() }
}

#[inline(always)]
unsafe fn load(at: *const __m256i) -> __m256i {
    // SAFETY: see above.
    unsafe { _mm256_loadu_si256(at) }
}

/// The sums over the lanes of four registers.
#[inline(always)]
unsafe fn totals([a, b, c, d]: [__m256i; 4]) -> __m128i {
    // SAFETY: see above.
    unsafe { halves(_mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d))) }
}

/// One half of a register and the other.
#[inline(always)]
unsafe fn halves(x: __m256i) -> __m128i {
    // SAFETY: see above.
    unsafe { _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x)) }
}

/// (x0 + x2) + (x1 + x3)
#[inline(always)]
unsafe fn sum(x: __m128) -> f32 {
    // SAFETY: see above.
    unsafe {
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
    }
}

#[inline(always)]
pub(super) unsafe fn half_at(at: *const u8) -> f32 {
    // SAFETY: see above.
    unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(at.cast::<u16>().read_unaligned())))) }
}
