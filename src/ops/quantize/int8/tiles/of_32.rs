//! Blocks of 32 values: half a tile's product each, then d d_a in f32, block i in sum i mod 4 of four.
use std::{arch::asm, arch::x86_64::*, ops::Range};

use super::{Line, PASS, SIDE, Sums, Tiled, interleave};
use crate::ops::quantize::int8::{
    IntRows,
    avx2::{By32, Of32, half_at},
};

/// Where in the panel of a block are, in bytes: half a tile of codes, d and m.
const D: usize = 8 * 64;
const M: usize = D + 64;
/// Blocks whose products are taken at a time.
const LANES: usize = 4;

impl<T: Of32> Tiled for By32<T> {
    const SIZE: usize = T::SIZE;
    const LINES: usize = (M + 64) / 64;
    const DEPTH: usize = 32;

    #[inline(always)]
    unsafe fn pack(panel: &mut [Line], rows: &[&[u8]], block: usize) {
        let mut codes = [[0u8; 64]; SIDE];
        let mut pairs = [0u8; SIDE * 64];
        let at: *mut u8 = panel.as_mut_ptr().cast();
        // SAFETY: the caller's promise; what is written lies inside the arrays above and of the panel's lines.
        unsafe {
            for (c, row) in rows.iter().enumerate() {
                let block = row.as_ptr().add(block * T::SIZE);
                _mm256_storeu_si256(codes[c].as_mut_ptr().cast(), T::codes(block));
                let d = half_at(block);
                at.add(D).cast::<f32>().add(c).write(d);
                at.add(M).cast::<f32>().add(c).write(match T::OFFSET {
                    Some(times) => times * d,
                    None => half_at(block.add(2)),
                });
            }
            interleave(pairs.as_mut_ptr(), codes[0].as_ptr(), 64);
            at.copy_from_nonoverlapping(pairs.as_ptr(), D);
        }
    }

    #[inline(always)]
    unsafe fn product(out: &mut Sums, a: &IntRows, rows: Range<usize>, panel: &[Line], blocks: usize) {
        // SAFETY: the caller's promise.
        let zero = unsafe { [_mm512_setzero_ps(); LANES] };
        let (mut lanes, mut offsets) = ([zero; PASS], [zero; PASS]);
        let mut found = [Line([0.0; 16]); LANES * PASS];
        let both = rows.len() > SIDE;
        for block in (0..blocks).step_by(LANES) {
            let here = LANES.min(blocks - block);
            // SAFETY: the caller's promise: the panel has `LINES` lines a block, a row of activations 32 codes.
            unsafe {
                let at = |i: usize| panel.as_ptr().add((block + i) * Self::LINES).cast::<u8>();
                for (i, found) in found.chunks_exact_mut(PASS).take(here).enumerate() {
                    let codes = |row: usize| a.codes(row).as_ptr().add(32 * (block + i));
                    let second = both.then(|| codes(rows.start + SIDE));
                    sums::<T>(found, at(i), codes(rows.start), second, a.stride(), i % 2 == 1);
                }
                for i in 0..here {
                    let (d, m) = (_mm512_load_ps(at(i).add(D).cast()), _mm512_load_ps(at(i).add(M).cast()));
                    for r in 0..rows.len() {
                        let row = rows.start + r;
                        let products = _mm512_load_si512(found.as_ptr().add(i * PASS + r).cast());
                        let scale = _mm512_mul_ps(d, _mm512_set1_ps(*a.scales(row).get_unchecked(block + i)));
                        lanes[r][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, lanes[r][i]);
                        if !T::SIGNED {
                            let sum = _mm512_set1_ps(*a.sums(row).get_unchecked(block + i));
                            offsets[r][i] = _mm512_fmadd_ps(m, sum, offsets[r][i]);
                        }
                    }
                }
            }
        }
        let sum = |[a, b, c, d]: [__m512; LANES]| {
            // SAFETY: the caller's promise.
            unsafe { _mm512_add_ps(_mm512_add_ps(a, c), _mm512_add_ps(b, d)) }
        };
        for (r, out) in out[..rows.len()].iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *out = unsafe { _mm512_add_ps(sum(lanes[r]), sum(offsets[r])) };
        }
    }
}

macro_rules! one_block {
    ($product:literal, $x:literal, $y:literal, $found:ident, $at:ident, $first:ident, $second:ident, $stride:ident) => {
        match $second {
            Some(second) => asm!(
                concat!("tilezero tmm", $x), concat!("tilezero tmm", $y),
                "tileloadd tmm6, [{w} + {t}*1]", "tileloadd tmm4, [{a} + {s}*1]", concat!($product, " tmm", $x, ", tmm4, tmm6"),
                "tileloadd tmm5, [{b} + {s}*1]", concat!($product, " tmm", $y, ", tmm5, tmm6"),
                concat!("tilestored [{c} + {t}*1], tmm", $x), concat!("tilestored [{c} + {t}*1 + 1024], tmm", $y),
                a = in(reg) $first, b = in(reg) second, w = in(reg) $at, s = in(reg) $stride, t = in(reg) 64usize, c = in(reg) $found.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, options(nostack)
            ),
            None => asm!(
                concat!("tilezero tmm", $x),
                "tileloadd tmm6, [{w} + {t}*1]", "tileloadd tmm4, [{a} + {s}*1]", concat!($product, " tmm", $x, ", tmm4, tmm6"),
                concat!("tilestored [{c} + {t}*1], tmm", $x),
                a = in(reg) $first, w = in(reg) $at, s = in(reg) $stride, t = in(reg) 64usize, c = in(reg) $found.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, options(nostack)
            ),
        }
    };
}

/// found = Σ code q of the first rows, then of the second rows, if there are any, in other tiles than the block before.
#[inline(always)]
unsafe fn sums<T: Of32>(
    found: &mut [Line],
    at: *const u8,
    first: *const i8,
    second: Option<*const i8>,
    stride: usize,
    odd: bool,
) {
    // SAFETY: the caller's tiles, rows and configuration.
    unsafe {
        match (T::SIGNED, odd) {
            (true, false) => one_block!("tdpbssd", "0", "2", found, at, first, second, stride),
            (true, true) => one_block!("tdpbssd", "1", "3", found, at, first, second, stride),
            (false, false) => one_block!("tdpbsud", "0", "2", found, at, first, second, stride),
            (false, true) => one_block!("tdpbsud", "1", "3", found, at, first, second, stride),
        }
    }
}
