//! The products with AVX2: 32 codes a register, `maddubs` and `madd` for sums of four products in i32.
#![allow(unsafe_code)]
use std::{arch::x86_64::*, ops::Range};

use super::IntRows;
use crate::ops::quantize::{GgmlType, HostBlocks};

/// Rows that share the codes of a block.
const TOGETHER: usize = 4;

/// out (rows, cols) = rows of `a` times rows of `w`; the caller checked that all fits together.
pub(super) fn dots(out: &mut [f32], a: &IntRows, rows: Range<usize>, w: &HostBlocks, cols: Range<usize>) {
    let run = match w.kind() {
        GgmlType::Q4K => all::<Q4K>,
        GgmlType::Q5K => all::<Q5K>,
        GgmlType::Q6K => all::<Q6K>,
        GgmlType::Q4_0 => all::<By32<Q4_0>>,
        GgmlType::Q4_1 => all::<By32<Q4_1>>,
        GgmlType::Q5_0 => all::<By32<Q5_0>>,
        GgmlType::Q5_1 => all::<By32<Q5_1>>,
        _ => all::<By32<Q8_0>>,
    };
    // SAFETY: the level was chosen because this processor has it (AVX2 comes with F16C and FMA there).
    unsafe { run(out, a, rows, w, cols) }
}

/// A format: the dot products of one row of blocks with `R` rows of activations from `first` on.
trait Format {
    /// # Safety
    /// `row` is `a.len()` values in whole blocks, and rows `first..first + R` of `a` are there; the processor has AVX2, FMA and F16C.
    unsafe fn dot<const R: usize>(row: &[u8], a: &IntRows, first: usize) -> [f32; R];
}

/// # Safety
/// The processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn all<F: Format>(
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
            // SAFETY: the caller of `dots` checked lengths; the features are this function's.
            let found = unsafe { F::dot::<TOGETHER>(row, a, rows.start + i) };
            for (r, x) in found.into_iter().enumerate() {
                out[(i + r) * width + j] = x;
            }
            i += TOGETHER;
        }
        while i < rows.len() {
            // SAFETY: as above.
            let [x] = unsafe { F::dot::<1>(row, a, rows.start + i) };
            out[i * width + j] = x;
            i += 1;
        }
    }
}

// Below, every function is part of `all`, and the bodies are unsafe for the same two reasons: instructions of `all`'s features, and reads
// inside of a row of blocks or of activations, whose lengths the caller of `dots` checked (activations have zeros up to a multiple of 128).

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
    unsafe fn dot<const R: usize>(row: &[u8], a: &IntRows, first: usize) -> [f32; R] {
        let mut lanes = [zero(); R];
        let mut out = [0f32; R];
        for block in 0..row.len() / T::SIZE {
            // SAFETY: see above.
            unsafe {
                let w = T::unpack(row.as_ptr().add(block * T::SIZE));
                for (r, lanes) in lanes.iter_mut().enumerate() {
                    let codes = a.codes(first + r).as_ptr().add(256 * block);
                    let sums = load(a.sixteens(first + r).as_ptr().add(16 * block).cast());
                    let mut products = _mm256_setzero_si256();
                    for j in 0..8 {
                        let pairs = _mm256_maddubs_epi16(w.codes[j], load(codes.add(32 * j).cast()));
                        products = _mm256_add_epi32(products, _mm256_madd_epi16(w.scales[j], pairs));
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

/// Blocks of 32 values: d code + m.
struct By32<T>(T);

/// A format in blocks of 32.
trait Of32 {
    const SIZE: usize;
    /// m = this times d, or what stands behind d.
    const OFFSET: Option<f32>;
    /// Codes below zero, and no m: where m would be nothing.
    const SIGNED: bool = matches!(Self::OFFSET, Some(0.0));
    unsafe fn codes(block: *const u8) -> __m256i;
}

impl<T: Of32> Format for By32<T> {
    #[inline(always)]
    unsafe fn dot<const R: usize>(row: &[u8], a: &IntRows, first: usize) -> [f32; R] {
        let mut lanes = [[zero(); 2]; R];
        let mut offsets = [[0f32; 4]; R];
        let mut out = [0f32; R];
        let blocks = row.len() / T::SIZE;
        for block in (0..blocks).step_by(4) {
            // SAFETY: see above.
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
                    let da = _mm_loadu_ps(a.scales(row).as_ptr().add(block));
                    let scales = _mm256_set_m128(_mm_mul_ps(d, da), _mm_mul_ps(d, da));
                    let scales = [
                        _mm256_permute_ps::<0x00>(scales),
                        _mm256_permute_ps::<0x55>(scales),
                        _mm256_permute_ps::<0xAA>(scales),
                        _mm256_permute_ps::<0xFF>(scales),
                    ];
                    for i in 0..4 {
                        let x = load(a.codes(row).as_ptr().add((block + i) * 32).cast());
                        // |code| and the activation with the code's sign: the products of signed codes as those of unsigned ones.
                        let pairs = match T::SIGNED {
                            true => {
                                _mm256_maddubs_epi16(_mm256_abs_epi8(codes[i]), _mm256_sign_epi8(x, codes[i]))
                            }
                            false => _mm256_maddubs_epi16(codes[i], x),
                        };
                        let products = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                        lanes[r][i % 2] = _mm256_fmadd_ps(products, scales[i], lanes[r][i % 2]);
                    }
                    if !T::SIGNED {
                        let sums = _mm_loadu_ps(a.sums(row).as_ptr().add(block));
                        let at = offsets[r].as_mut_ptr();
                        _mm_storeu_ps(at, _mm_fmadd_ps(m, sums, _mm_loadu_ps(at)));
                    }
                }
            }
        }
        for r in 0..R {
            let [a, b, c, d] = offsets[r];
            // SAFETY: see above.
            out[r] = sum(unsafe { _mm256_add_ps(lanes[r][0], lanes[r][1]) }) + ((a + c) + (b + d));
        }
        out
    }
}

#[inline(always)]
fn zero() -> __m256 {
    // SAFETY: see above.
    unsafe { _mm256_setzero_ps() }
}

#[inline(always)]
unsafe fn load(at: *const __m256i) -> __m256i {
    // SAFETY: see above.
    unsafe { _mm256_loadu_si256(at) }
}

/// lanes + scale products
#[inline(always)]
unsafe fn fma(products: __m256i, scale: f32, lanes: __m256) -> __m256 {
    // SAFETY: see above.
    unsafe { _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), _mm256_set1_ps(scale), lanes) }
}

#[inline(always)]
fn sum(lanes: __m256) -> f32 {
    // SAFETY: see above.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
    }
}

#[inline(always)]
unsafe fn half_at(at: *const u8) -> f32 {
    // SAFETY: see above.
    unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(at.cast::<u16>().read_unaligned())))) }
}

struct Q4K;
struct Q5K;
struct Q6K;

/// The scales of the eight runs, and their minima for the sixteen sums, out of 12 bytes of 6 bits each.
#[inline(always)]
unsafe fn six_bits(at: *const u8) -> ([__m256i; 8], __m256i) {
    // SAFETY: see above.
    unsafe {
        let word = |i: usize| at.cast::<u32>().add(i).read_unaligned();
        let (a, b, c) = (word(0), word(1), word(2));
        let low = |x: u32| u64::from(x & 0x3f3f_3f3f);
        let high = |x: u32, top: u32| u64::from(x & 0x0f0f_0f0f | top >> 2 & 0x3030_3030) << 32;
        let (scales, minima) = (low(a) | high(c, a), low(b) | high(c >> 4, b));
        let wide = _mm256_broadcastsi128_si256(_mm_cvtepu8_epi16(_mm_cvtsi64_si128(scales as i64)));
        let mut each = [wide; 8];
        for (j, each) in (0i16..).zip(&mut each) {
            *each = _mm256_shuffle_epi8(wide, _mm256_set1_epi16(2 * j | (2 * j + 1) << 8));
        }
        let minima = _mm_cvtsi64_si128(minima as i64);
        (each, _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(minima, minima)))
    }
}

impl Of256 for Q4K {
    const SIZE: usize = 144;
    #[inline(always)]
    unsafe fn unpack(block: *const u8) -> Super {
        // SAFETY: see above.
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
        // SAFETY: see above.
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
        // SAFETY: see above.
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
                let (x, y) = (j % 4 * 4 | (j % 4 * 4 + 1) << 8, (j % 4 * 4 + 2) | (j % 4 * 4 + 3) << 8);
                let lanes = _mm256_set_m128i(_mm_set1_epi16(y), _mm_set1_epi16(x));
                *scale = _mm256_shuffle_epi8(halves[usize::from(j >= 4)], lanes);
            }
            let d = half_at(block.add(208));
            Super { codes, scales, offsets, d, m: -32.0 * d }
        }
    }
}

/// The 32 codes of 16 bytes: the low halves first.
#[inline(always)]
unsafe fn nibbles(at: *const u8) -> __m256i {
    // SAFETY: see above.
    unsafe {
        let x = _mm_loadu_si128(at.cast());
        _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(x), x), _mm256_set1_epi8(15))
    }
}

/// 16 where a bit of the four bytes is set.
#[inline(always)]
unsafe fn fifths(at: *const u8) -> __m256i {
    // SAFETY: see above.
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
        struct $name;
        impl Of32 for $name {
            const SIZE: usize = $size;
            const OFFSET: Option<f32> = $offset;
            #[inline(always)]
            unsafe fn codes($at: *const u8) -> __m256i {
                // SAFETY: see above.
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
