//! The K formats in registers of 512 bits: two runs of 32 codes a register.
use std::arch::x86_64::*;

use super::{
    load,
    of_256::{Of256, Q4K, Q5K, Q6K, bytes_of, six_bits},
};
use crate::ops::quantize::int8::IntRows;

/// 256 values, as `of_256::Super` has them.
pub(super) struct Wide {
    codes: [__m512i; 4],
    scales: [__m512i; 4],
    offsets: __m256i,
}

/// A K format in 512 bits.
pub(in super::super) trait Wide256: Of256 {
    unsafe fn wide(block: *const u8) -> Wide;
}

/// Σ scale code q and Σ offset (Σ q) of a block with a row, in eight lanes each.
#[inline(always)]
pub(super) unsafe fn products(w: &Wide, a: &IntRows, row: usize, block: usize) -> (__m256i, __m256i) {
    // SAFETY: as `mod.rs` says; this is compiled where there is VNNI only.
    unsafe {
        let codes = a.codes(row).as_ptr().add(256 * block);
        let sums = load(a.sixteens(row).as_ptr().add(16 * block).cast());
        let mut products = _mm512_setzero_si512();
        for j in 0..4 {
            let q = _mm512_loadu_si512(codes.add(64 * j).cast());
            products = _mm512_dpwssd_epi32(products, w.scales[j], _mm512_maddubs_epi16(w.codes[j], q));
        }
        let products =
            _mm256_add_epi32(_mm512_castsi512_si256(products), _mm512_extracti64x4_epi64::<1>(products));
        (products, _mm256_madd_epi16(w.offsets, sums))
    }
}

#[inline(always)]
unsafe fn both(low: __m256i, high: __m256i) -> __m512i {
    // SAFETY: as above.
    unsafe { _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high) }
}

/// Scales `x[0]` to `x[3]` of eight i16 in each quarter of `wide`, one in each quarter of the result.
#[inline(always)]
unsafe fn quarters(wide: __m512i, x: [i16; 4]) -> __m512i {
    // SAFETY: as above.
    unsafe {
        let [a, b, c, d] = [bytes_of(x[0]), bytes_of(x[1]), bytes_of(x[2]), bytes_of(x[3])];
        let low = _mm256_set_m128i(_mm_set1_epi16(b), _mm_set1_epi16(a));
        let high = _mm256_set_m128i(_mm_set1_epi16(d), _mm_set1_epi16(c));
        _mm512_shuffle_epi8(wide, both(low, high))
    }
}

/// Left by one number of bits in the first half, by another in the second, as rotations of 64 bits.
#[inline(always)]
unsafe fn rotate(x: __m512i, low: i64, high: i64) -> __m512i {
    // SAFETY: as above.
    unsafe { _mm512_rolv_epi64(x, both(_mm256_set1_epi64x(low), _mm256_set1_epi64x(high))) }
}

/// Eight scales, one a run, of Q4_K and Q5_K, for their pairs of runs.
#[inline(always)]
unsafe fn scales_of_runs(scales: __m128i) -> [__m512i; 4] {
    // SAFETY: as above.
    unsafe {
        let wide = _mm512_broadcast_i32x4(scales);
        [
            quarters(wide, [0, 0, 1, 1]),
            quarters(wide, [2, 2, 3, 3]),
            quarters(wide, [4, 4, 5, 5]),
            quarters(wide, [6, 6, 7, 7]),
        ]
    }
}

/// 128 codes of four bits: the runs that stand in the low halves of 64 bytes, and those in the high halves.
#[inline(always)]
unsafe fn nibbles(at: *const u8) -> [__m512i; 2] {
    // SAFETY: as above.
    unsafe {
        let (x, four) = (_mm512_loadu_si512(at.cast()), _mm512_set1_epi8(15));
        let (low, high) = (_mm512_and_si512(x, four), _mm512_and_si512(_mm512_srli_epi16::<4>(x), four));
        [_mm512_shuffle_i64x2::<0x44>(low, high), _mm512_shuffle_i64x2::<0xee>(low, high)]
    }
}

impl Wide256 for Q4K {
    #[inline(always)]
    unsafe fn wide(block: *const u8) -> Wide {
        // SAFETY: as above.
        unsafe {
            let (scales, offsets) = six_bits(block.add(4));
            let [[a, b], [c, d]] = [nibbles(block.add(16)), nibbles(block.add(80))];
            let codes = [a, b, c, d];
            Wide { codes, scales: scales_of_runs(scales), offsets }
        }
    }
}

impl Wide256 for Q5K {
    #[inline(always)]
    unsafe fn wide(block: *const u8) -> Wide {
        // SAFETY: as above.
        unsafe {
            let (scales, offsets) = six_bits(block.add(4));
            let high = load(block.add(16).cast());
            let high = both(high, high);
            let [[a, b], [c, d]] = [nibbles(block.add(48)), nibbles(block.add(112))];
            let mut codes = [a, b, c, d];
            // Bit r of a byte is the fifth of run r.
            let fifths = [rotate(high, 4, 3), rotate(high, 2, 1), rotate(high, 0, -1), rotate(high, -2, -3)];
            for (code, fifth) in codes.iter_mut().zip(fifths) {
                *code = _mm512_or_si512(*code, _mm512_and_si512(fifth, _mm512_set1_epi8(16)));
            }
            Wide { codes, scales: scales_of_runs(scales), offsets }
        }
    }
}

impl Wide256 for Q6K {
    #[inline(always)]
    unsafe fn wide(block: *const u8) -> Wide {
        // SAFETY: as above.
        unsafe {
            let (four, two) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
            let mut codes = [_mm512_setzero_si512(); 4];
            for half in 0..2 {
                let x = _mm512_loadu_si512(block.add(64 * half).cast());
                let high = load(block.add(128 + 32 * half).cast());
                let high = both(high, high);
                let low = [x, _mm512_srli_epi16::<4>(x)];
                let high = [rotate(high, 4, 2), rotate(high, 0, -2)];
                for part in 0..2 {
                    let (low, high) = (_mm512_and_si512(low[part], four), _mm512_and_si512(high[part], two));
                    codes[2 * half + part] = _mm512_or_si512(low, high);
                }
            }
            let offsets = _mm256_cvtepi8_epi16(_mm_loadu_si128(block.add(192).cast()));
            let scales = _mm512_castsi256_si512(offsets);
            let first = _mm512_shuffle_i64x2::<0x00>(scales, scales);
            let second = _mm512_shuffle_i64x2::<0x55>(scales, scales);
            let scales = [
                quarters(first, [0, 1, 2, 3]),
                quarters(first, [4, 5, 6, 7]),
                quarters(second, [0, 1, 2, 3]),
                quarters(second, [4, 5, 6, 7]),
            ];
            Wide { codes, scales, offsets }
        }
    }
}
