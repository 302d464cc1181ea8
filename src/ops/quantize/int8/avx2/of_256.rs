//! The K formats: 256 values, runs of 32 or 16 with scales of their own.
use std::{arch::x86_64::*, ops::Range};

use super::{
    Format, half_at, halves, load, sum, totals,
    wide::{self, Wide256},
    zero,
};
use crate::ops::quantize::int8::IntRows;

/// 256 values of a K format: d scales[j] codes[j] + m offsets, run by run of 32; without m, d scales[j] (codes[j] - 32).
pub(in super::super) struct Super {
    pub codes: [__m256i; 8],
    /// i16, for the pairs of codes that `maddubs` adds up.
    pub scales: [__m256i; 8],
    /// i16, for the sums of 16.
    pub offsets: __m256i,
}

/// A K format.
pub(in super::super) trait Of256 {
    const SIZE: usize;
    /// Where d is, and -m.
    const D: usize = 0;
    const M: usize = 2;
    /// The offset is 32 times the scale, and there is no m.
    const IN_INTEGERS: bool = false;
    unsafe fn unpack(block: *const u8) -> Super;
}

impl<T: Wide256> Format for T {
    #[inline(always)]
    unsafe fn dot<const R: usize, const VNNI: bool>(row: &[u8], a: &IntRows, first: usize) -> [f32; R] {
        let mut out = [0f32; R];
        // SAFETY: as `mod.rs` says.
        unsafe {
            if R == 4 {
                let found = of_four_rows::<T, VNNI>(row, a, first);
                out.copy_from_slice(&found);
            } else {
                for (r, out) in out.iter_mut().enumerate() {
                    *out = of_one_row::<T, VNNI>(row, a, first + r);
                }
            }
        }
        out
    }
}

/// A block at a time for four rows of activations.
#[inline(always)]
unsafe fn of_four_rows<T: Wide256, const VNNI: bool>(row: &[u8], a: &IntRows, first: usize) -> [f32; 4] {
    // SAFETY: as `mod.rs` says.
    unsafe {
        let (mut lanes, mut offsets) = ([_mm_setzero_ps(); 4], [_mm_setzero_ps(); 4]);
        for block in 0..row.len() / T::SIZE {
            let at = row.as_ptr().add(block * T::SIZE);
            let mut sums = [[zero(); 4]; 2];
            let mut da = [0f32; 4];
            if VNNI {
                let w = T::wide(at);
                for r in 0..4 {
                    (sums[0][r], sums[1][r]) = wide::products(&w, a, first + r, block);
                }
            } else {
                let w = T::unpack(at);
                for r in 0..4 {
                    (sums[0][r], sums[1][r]) = products(&w, a, first + r, block);
                }
            }
            for (r, da) in da.iter_mut().enumerate() {
                *da = *a.scales(first + r).get_unchecked(block);
            }
            let to = (&mut lanes[block % 4], &mut offsets[block % 4]);
            let scales = (_mm_set1_ps(half_at(at.add(T::D))), _mm_set1_ps(half_at(at.add(T::M))));
            join::<T>(to, (totals(sums[0]), totals(sums[1])), scales, _mm_loadu_ps(da.as_ptr()));
        }
        let lanes = _mm_add_ps(_mm_add_ps(lanes[0], lanes[2]), _mm_add_ps(lanes[1], lanes[3]));
        let offsets = _mm_add_ps(_mm_add_ps(offsets[0], offsets[2]), _mm_add_ps(offsets[1], offsets[3]));
        let mut out = [0f32; 4];
        _mm_storeu_ps(out.as_mut_ptr(), _mm_add_ps(lanes, offsets));
        out
    }
}

/// Four blocks at a time for one row of activations.
#[inline(always)]
unsafe fn of_one_row<T: Wide256, const VNNI: bool>(row: &[u8], a: &IntRows, first: usize) -> f32 {
    let blocks = row.len() / T::SIZE;
    // SAFETY: as `mod.rs` says.
    unsafe {
        let mut to = (_mm_setzero_ps(), _mm_setzero_ps());
        for block in (0..blocks / 4 * 4).step_by(4) {
            let da = _mm_loadu_ps(a.scales(first).as_ptr().add(block));
            of_blocks::<T, VNNI>(&mut to, row, a, first, block..block + 4, da);
        }
        let rest = blocks / 4 * 4..blocks;
        if !rest.is_empty() {
            let mut da = [0f32; 4];
            da[..rest.len()].copy_from_slice(&a.scales(first)[rest.clone()]);
            of_blocks::<T, VNNI>(&mut to, row, a, first, rest, _mm_loadu_ps(da.as_ptr()));
        }
        sum(to.0) + sum(to.1)
    }
}

/// Up to four blocks of a row.
#[inline(always)]
unsafe fn of_blocks<T: Wide256, const VNNI: bool>(
    (lanes, offsets): &mut (__m128, __m128),
    row: &[u8],
    a: &IntRows,
    first: usize,
    blocks: Range<usize>,
    da: __m128,
) {
    let mut pairs = [zero(); 4];
    let (mut d, mut m) = (0u64, 0u64);
    // SAFETY: as `mod.rs` says.
    unsafe {
        for i in 0..blocks.len() {
            let at = row.as_ptr().add((blocks.start + i) * T::SIZE);
            let (products, offsets) = match VNNI {
                true => wide::products(&T::wide(at), a, first, blocks.start + i),
                false => products(&T::unpack(at), a, first, blocks.start + i),
            };
            pairs[i] = _mm256_hadd_epi32(products, offsets);
            d |= u64::from(at.add(T::D).cast::<u16>().read_unaligned()) << (16 * i);
            m |= u64::from(at.add(T::M).cast::<u16>().read_unaligned()) << (16 * i);
        }
        let (d, m) = (_mm_cvtsi64_si128(d as i64), _mm_cvtsi64_si128(m as i64));
        // Product, offset, product, offset of two blocks.
        let x = halves(_mm256_hadd_epi32(pairs[0], pairs[1]));
        let y = halves(_mm256_hadd_epi32(pairs[2], pairs[3]));
        let (x, y) = (_mm_castsi128_ps(x), _mm_castsi128_ps(y));
        let products = _mm_castps_si128(_mm_shuffle_ps::<0x88>(x, y));
        let offset = _mm_castps_si128(_mm_shuffle_ps::<0xdd>(x, y));
        join::<T>((lanes, offsets), (products, offset), (_mm_cvtph_ps(d), _mm_cvtph_ps(m)), da);
    }
}

/// Σ scale code q and Σ offset (Σ q) of a block, in eight lanes each.
#[inline(always)]
unsafe fn products(w: &Super, a: &IntRows, row: usize, block: usize) -> (__m256i, __m256i) {
    // SAFETY: as `mod.rs` says.
    unsafe {
        let codes = a.codes(row).as_ptr().add(256 * block);
        let sums = load(a.sixteens(row).as_ptr().add(16 * block).cast());
        let mut products = zero();
        for j in 0..8 {
            let pairs = _mm256_maddubs_epi16(w.codes[j], load(codes.add(32 * j).cast()));
            products = _mm256_add_epi32(products, _mm256_madd_epi16(w.scales[j], pairs));
        }
        (products, _mm256_madd_epi16(w.offsets, sums))
    }
}

/// The sums of four blocks or rows to their lanes.
#[inline(always)]
unsafe fn join<T: Of256>(
    (lanes, offsets): (&mut __m128, &mut __m128),
    (mut products, offset): (__m128i, __m128i),
    (d, m): (__m128, __m128),
    da: __m128,
) {
    // SAFETY: as `mod.rs` says.
    unsafe {
        if T::IN_INTEGERS {
            products = _mm_sub_epi32(products, _mm_slli_epi32::<5>(offset));
        } else {
            *offsets = _mm_fnmadd_ps(_mm_cvtepi32_ps(offset), _mm_mul_ps(m, da), *offsets);
        }
        *lanes = _mm_fmadd_ps(_mm_cvtepi32_ps(products), _mm_mul_ps(d, da), *lanes);
    }
}

pub(in super::super) struct Q4K;
pub(in super::super) struct Q5K;
pub(in super::super) struct Q6K;

/// Where the two bytes of number `i` of i16 are, for a shuffle of bytes.
#[inline(always)]
pub(super) fn bytes_of(i: i16) -> i16 {
    (2 * i) | ((2 * i + 1) << 8)
}

/// The scales of the eight runs, and their minima for the sixteen sums, out of 12 bytes of 6 bits each.
#[inline(always)]
pub(super) unsafe fn six_bits(at: *const u8) -> (__m128i, __m256i) {
    // SAFETY: as `mod.rs` says.
    unsafe {
        let word = |i: usize| at.cast::<u32>().add(i).read_unaligned();
        let (a, b, c) = (word(0), word(1), word(2));
        let low = |x: u32| u64::from(x & 0x3f3f_3f3f);
        let high = |x: u32, top: u32| u64::from(x & 0x0f0f_0f0f | top >> 2 & 0x3030_3030) << 32;
        let (scales, minima) = (low(a) | high(c, a), low(b) | high(c >> 4, b));
        let minima = _mm_cvtsi64_si128(minima as i64);
        let scales = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(scales as i64));
        (scales, _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(minima, minima)))
    }
}

/// Each of eight scales in all lanes.
#[inline(always)]
unsafe fn each(scales: __m128i) -> [__m256i; 8] {
    // SAFETY: as `mod.rs` says.
    unsafe {
        let wide = _mm256_broadcastsi128_si256(scales);
        let mut each = [wide; 8];
        for (j, each) in (0i16..).zip(&mut each) {
            *each = _mm256_shuffle_epi8(wide, _mm256_set1_epi16(bytes_of(j)));
        }
        each
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
            Super { codes, scales: each(scales), offsets }
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
            Super { codes, scales: each(scales), offsets }
        }
    }
}

impl Of256 for Q6K {
    const SIZE: usize = 210;
    const D: usize = 208;
    const M: usize = 208;
    const IN_INTEGERS: bool = true;
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
            Super { codes, scales, offsets }
        }
    }
}
