//! The K formats: 256 values, runs of 32 or 16 with scales of their own.
use std::arch::x86_64::*;

use super::{Format, fma, half_at, load, sum, zero};
use crate::ops::quantize::int8::IntRows;

/// 256 values of a K format: d scales[j] codes[j] + m offsets, run by run of 32.
struct Super {
    codes: [__m256i; 8],
    /// i16, for the pairs of codes that `maddubs` adds up.
    scales: [__m256i; 8],
    /// i16, for the sums of 16.
    offsets: __m256i,
    d: f32,
    m: f32,
}

/// A K format.
trait Of256 {
    const SIZE: usize;
    unsafe fn unpack(block: *const u8) -> Super;
}

impl<T: Of256> Format for T {
    #[inline(always)]
    unsafe fn dot<const R: usize, const VNNI: bool>(row: &[u8], a: &IntRows, first: usize) -> [f32; R] {
        let mut lanes = [zero(); R];
        let mut out = [0f32; R];
        for block in 0..row.len() / T::SIZE {
            // SAFETY: as `mod.rs` says.
            unsafe {
                let w = T::unpack(row.as_ptr().add(block * T::SIZE));
                for (r, lanes) in lanes.iter_mut().enumerate() {
                    let codes = a.codes(first + r).as_ptr().add(256 * block);
                    let sums = load(a.sixteens(first + r).as_ptr().add(16 * block).cast());
                    let mut products = _mm256_setzero_si256();
                    for j in 0..8 {
                        let pairs = _mm256_maddubs_epi16(w.codes[j], load(codes.add(32 * j).cast()));
                        products = match VNNI {
                            true => _mm256_dpwssd_epi32(products, w.scales[j], pairs),
                            false => _mm256_add_epi32(products, _mm256_madd_epi16(w.scales[j], pairs)),
                        };
                    }
                    let da = *a.scales(first + r).get_unchecked(block);
                    *lanes = fma(products, w.d * da, *lanes);
                    *lanes = fma(_mm256_madd_epi16(w.offsets, sums), w.m * da, *lanes);
                }
            }
        }
        for (out, lanes) in out.iter_mut().zip(lanes) {
            *out = sum(lanes);
        }
        out
    }
}

pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;

/// Where the two bytes of number `i` of i16 are, for a shuffle of bytes.
#[inline(always)]
fn bytes_of(i: i16) -> i16 {
    (2 * i) | ((2 * i + 1) << 8)
}

/// The scales of the eight runs, and their minima for the sixteen sums, out of 12 bytes of 6 bits each.
#[inline(always)]
unsafe fn six_bits(at: *const u8) -> ([__m256i; 8], __m256i) {
    // SAFETY: as `mod.rs` says.
    unsafe {
        let word = |i: usize| at.cast::<u32>().add(i).read_unaligned();
        let (a, b, c) = (word(0), word(1), word(2));
        let low = |x: u32| u64::from(x & 0x3f3f_3f3f);
        let high = |x: u32, top: u32| u64::from(x & 0x0f0f_0f0f | top >> 2 & 0x3030_3030) << 32;
        let (scales, minima) = (low(a) | high(c, a), low(b) | high(c >> 4, b));
        let wide = _mm256_broadcastsi128_si256(_mm_cvtepu8_epi16(_mm_cvtsi64_si128(scales as i64)));
        let mut each = [wide; 8];
        for (j, each) in (0i16..).zip(&mut each) {
            *each = _mm256_shuffle_epi8(wide, _mm256_set1_epi16(bytes_of(j)));
        }
        let minima = _mm_cvtsi64_si128(minima as i64);
        (each, _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(minima, minima)))
    }
}

impl Of256 for Q4K {
    const SIZE: usize = 144;
    #[inline(always)]
    unsafe fn unpack(block: *const u8) -> Super {
        // SAFETY: as `mod.rs` says.
        unsafe {
            let (scales, offsets) = six_bits(block.add(4));
            let mut codes = [_mm256_setzero_si256(); 8];
            for i in 0..4 {
                let x = load(block.add(16 + 32 * i).cast());
                codes[2 * i] = _mm256_and_si256(x, _mm256_set1_epi8(15));
                codes[2 * i + 1] = _mm256_and_si256(_mm256_srli_epi16::<4>(x), _mm256_set1_epi8(15));
            }
            Super { codes, scales, offsets, d: half_at(block), m: -half_at(block.add(2)) }
        }
    }
}

impl Of256 for Q5K {
    const SIZE: usize = 176;
    #[inline(always)]
    unsafe fn unpack(block: *const u8) -> Super {
        // SAFETY: as `mod.rs` says.
        unsafe {
            let (scales, offsets) = six_bits(block.add(4));
            let mut high = load(block.add(16).cast());
            let mut codes = [_mm256_setzero_si256(); 8];
            for i in 0..4 {
                let x = load(block.add(48 + 32 * i).cast());
                for (code, x) in codes[2 * i..].iter_mut().zip([x, _mm256_srli_epi16::<4>(x)]) {
                    let fifth = _mm256_slli_epi16::<4>(_mm256_and_si256(high, _mm256_set1_epi8(1)));
                    *code = _mm256_or_si256(_mm256_and_si256(x, _mm256_set1_epi8(15)), fifth);
                    high = _mm256_srli_epi16::<1>(high);
                }
            }
            Super { codes, scales, offsets, d: half_at(block), m: -half_at(block.add(2)) }
        }
    }
}

impl Of256 for Q6K {
    const SIZE: usize = 210;
    #[inline(always)]
    unsafe fn unpack(block: *const u8) -> Super {
        // SAFETY: as `mod.rs` says.
        unsafe {
            let (four, two) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
            let mut codes = [_mm256_setzero_si256(); 8];
            for half in 0..2 {
                let (x, y) = (load(block.add(64 * half).cast()), load(block.add(64 * half + 32).cast()));
                let high = load(block.add(128 + 32 * half).cast());
                let low = [x, y, _mm256_srli_epi16::<4>(x), _mm256_srli_epi16::<4>(y)];
                let high = [
                    _mm256_slli_epi16::<4>(high),
                    _mm256_slli_epi16::<2>(high),
                    high,
                    _mm256_srli_epi16::<2>(high),
                ];
                for part in 0..4 {
                    let (low, high) = (_mm256_and_si256(low[part], four), _mm256_and_si256(high[part], two));
                    codes[4 * half + part] = _mm256_or_si256(low, high);
                }
            }
            let offsets = _mm256_cvtepi8_epi16(_mm_loadu_si128(block.add(192).cast()));
            // A run has two scales, of 16 codes each.
            let halves =
                [_mm256_permute4x64_epi64::<0x44>(offsets), _mm256_permute4x64_epi64::<0xEE>(offsets)];
            let mut scales = [offsets; 8];
            for (j, scale) in (0i16..).zip(&mut scales) {
                let (x, y) = (bytes_of(j % 4 * 2), bytes_of(j % 4 * 2 + 1));
                let lanes = _mm256_set_m128i(_mm_set1_epi16(y), _mm_set1_epi16(x));
                *scale = _mm256_shuffle_epi8(halves[usize::from(j >= 4)], lanes);
            }
            let d = half_at(block.add(208));
            Super { codes, scales, offsets, d, m: -32.0 * d }
        }
    }
}
