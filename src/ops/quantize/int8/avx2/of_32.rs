//! Blocks of 32 values.
use std::arch::x86_64::*;

use super::{Format, load, sum, totals};
use crate::ops::quantize::int8::IntRows;

/// Blocks of 32 values: d code + m.
pub(in super::super) struct By32<T>(T);

/// A format in blocks of 32.
pub(in super::super) trait Of32 {
    const SIZE: usize;
    /// m = this times d, or what stands behind d.
    const OFFSET: Option<f32>;
    /// Codes below zero, and no m: where m would be nothing.
    const SIGNED: bool = matches!(Self::OFFSET, Some(0.0));
    unsafe fn codes(block: *const u8) -> __m256i;
}

impl<T: Of32> Format for By32<T> {
    #[inline(always)]
    unsafe fn dot<const R: usize, const VNNI: bool>(row: &[u8], a: &IntRows, first: usize) -> [f32; R] {
        let mut out = [0f32; R];
        // SAFETY: as `mod.rs` says.
        let (mut lanes, mut offsets) = unsafe { ([_mm_setzero_ps(); R], [_mm_setzero_ps(); R]) };
        let blocks = row.len() / T::SIZE;
        for block in (0..blocks).step_by(4) {
            // SAFETY: as `mod.rs` says.
            unsafe {
                let mut codes = [_mm256_setzero_si256(); 4];
                let (mut d, mut m) = (0u64, 0u64);
                for i in 0..4.min(blocks - block) {
                    let at = row.as_ptr().add((block + i) * T::SIZE);
                    codes[i] = T::codes(at);
                    d |= u64::from(at.cast::<u16>().read_unaligned()) << (16 * i);
                    if T::OFFSET.is_none() {
                        m |= u64::from(at.add(2).cast::<u16>().read_unaligned()) << (16 * i);
                    }
                }
                let d = _mm_cvtph_ps(_mm_cvtsi64_si128(d as i64));
                let m = match T::OFFSET {
                    Some(times) => _mm_mul_ps(_mm_set1_ps(times), d),
                    None => _mm_cvtph_ps(_mm_cvtsi64_si128(m as i64)),
                };
                for r in 0..R {
                    let row = first + r;
                    let mut products = [_mm256_setzero_si256(); 4];
                    for i in 0..4 {
                        let x = load(a.codes(row).as_ptr().add((block + i) * 32).cast());
                        // |code| and the activation with the code's sign: the products of signed codes as those of unsigned ones.
                        let (codes, x) = match T::SIGNED {
                            true => (_mm256_abs_epi8(codes[i]), _mm256_sign_epi8(x, codes[i])),
                            false => (codes[i], x),
                        };
                        products[i] = match VNNI {
                            true => _mm256_dpbusd_epi32(products[i], codes, x),
                            false => _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)),
                        };
                    }
                    let scales = _mm_mul_ps(d, _mm_loadu_ps(a.scales(row).as_ptr().add(block)));
                    lanes[r] = _mm_fmadd_ps(_mm_cvtepi32_ps(totals(products)), scales, lanes[r]);
                    if !T::SIGNED {
                        offsets[r] =
                            _mm_fmadd_ps(m, _mm_loadu_ps(a.sums(row).as_ptr().add(block)), offsets[r]);
                    }
                }
            }
        }
        for r in 0..R {
            // SAFETY: as `mod.rs` says.
            out[r] = unsafe { sum(lanes[r]) + sum(offsets[r]) };
        }
        out
    }
}

/// The 32 codes of 16 bytes: the low halves first.
#[inline(always)]
unsafe fn nibbles(at: *const u8) -> __m256i {
    // SAFETY: as `mod.rs` says.
    unsafe {
        let x = _mm_loadu_si128(at.cast());
        _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(x), x), _mm256_set1_epi8(15))
    }
}

/// 16 where a bit of the four bytes is set.
#[inline(always)]
unsafe fn fifths(at: *const u8) -> __m256i {
    // SAFETY: as `mod.rs` says.
    unsafe {
        let bytes = _mm256_set1_epi32(at.cast::<i32>().read_unaligned());
        let of_eight =
            _mm256_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202, 0x0101_0101_0101_0101, 0);
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let set = _mm256_and_si256(_mm256_shuffle_epi8(bytes, of_eight), bit);
        _mm256_and_si256(_mm256_cmpeq_epi8(set, bit), _mm256_set1_epi8(16))
    }
}

macro_rules! of_32 {
    ($($name:ident, $size:literal, $offset:expr, $at:ident => $codes:expr;)*) => {$(
        #[allow(non_camel_case_types)]
        pub(in super::super) struct $name;
        impl Of32 for $name {
            const SIZE: usize = $size;
            const OFFSET: Option<f32> = $offset;
            #[inline(always)]
            unsafe fn codes($at: *const u8) -> __m256i {
                // SAFETY: as `mod.rs` says.
                unsafe { $codes }
            }
        }
    )*};
}

of_32! {
    Q4_0, 18, Some(-8.0), at => nibbles(at.add(2));
    Q4_1, 20, None, at => nibbles(at.add(4));
    Q5_0, 22, Some(-16.0), at => _mm256_or_si256(nibbles(at.add(6)), fifths(at.add(2)));
    Q5_1, 24, None, at => _mm256_or_si256(nibbles(at.add(8)), fifths(at.add(4)));
    Q8_0, 34, Some(0.0), at => load(at.add(2).cast());
}
