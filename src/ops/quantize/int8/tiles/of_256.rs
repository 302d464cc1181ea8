//! The K formats: scale code is a number p of up to 14 bits, p = 128 h + l with l in 0..128, and Σ p q = 128 Σ h q + Σ l q: two sums of four whole tiles, so that a block leaves the unit
//! once, not once for each of its eight or sixteen scales.
use std::{arch::asm, arch::x86_64::*, ops::Range};

use super::{Line, SIDE, Sums, TILE, Tiled, interleave};
use crate::ops::quantize::int8::{
    IntRows,
    avx2::{Of256, half_at},
};

/// Where in the panel of a block are, in bytes: tiles of l, tiles of h, pairs of offsets (i16), d and -m.
const HIGH: usize = 4 * TILE;
const OFFSETS: usize = 8 * TILE;
const D: usize = OFFSETS + 8 * 64;
const M: usize = D + 64;

impl<T: Of256> Tiled for T {
    const SIZE: usize = T::SIZE;
    const LINES: usize = (M + 64) / 64;
    const DEPTH: usize = 64;

    #[inline(always)]
    unsafe fn pack(panel: &mut [Line], rows: &[&[u8]], block: usize) {
        #[repr(align(64))]
        struct Codes([[u8; 256]; SIDE]);
        let (mut low, mut high) = (Codes([[0; 256]; SIDE]), Codes([[0; 256]; SIDE]));
        let mut offsets = [[0u8; 64]; SIDE];
        let at: *mut u8 = panel.as_mut_ptr().cast();
        // SAFETY: the caller's promise; what is written lies inside the arrays above and of the panel's lines.
        unsafe {
            for (c, row) in rows.iter().enumerate() {
                let block = row.as_ptr().add(block * T::SIZE);
                let w = T::unpack(block);
                for j in 0..8 {
                    let scales = _mm512_castsi256_si512(w.scales[j]);
                    let scales = _mm512_shuffle_i64x2::<0b01_01_00_00>(scales, scales);
                    let p = _mm512_mullo_epi16(_mm512_cvtepu8_epi16(w.codes[j]), scales);
                    let l = _mm512_and_si512(p, _mm512_set1_epi16(127));
                    let h = _mm512_srai_epi16::<7>(p);
                    _mm256_storeu_si256(low.0[c].as_mut_ptr().add(32 * j).cast(), _mm512_cvtepi16_epi8(l));
                    _mm256_storeu_si256(high.0[c].as_mut_ptr().add(32 * j).cast(), _mm512_cvtepi16_epi8(h));
                }
                _mm256_storeu_si256(offsets[c].as_mut_ptr().cast(), w.offsets);
                at.add(D).cast::<f32>().add(c).write(half_at(block.add(T::D)));
                at.add(M).cast::<f32>().add(c).write(half_at(block.add(T::M)));
            }
            for step in 0..4 {
                interleave(at.add(step * TILE), low.0[0].as_ptr().add(64 * step), 256);
                interleave(at.add(HIGH + step * TILE), high.0[0].as_ptr().add(64 * step), 256);
            }
            let mut pairs = [0u8; TILE];
            interleave(pairs.as_mut_ptr(), offsets[0].as_ptr(), 64);
            at.add(OFFSETS).copy_from_nonoverlapping(pairs.as_ptr(), 8 * 64);
        }
    }

    #[inline(always)]
    unsafe fn product(out: &mut Sums, a: &IntRows, rows: Range<usize>, panel: &[Line], blocks: usize) {
        let mut found = [Line([0.0; 16]); 4 * SIDE];
        let mut lanes = [[*out; 4]; 2];
        let both = rows.len() > SIDE;
        for (lane, block) in (0..4).flat_map(|lane| (lane..blocks).step_by(4).map(move |block| (lane, block)))
        {
            // SAFETY: the caller's promise: the panel has `LINES` lines a block, a row of activations 256 codes.
            unsafe {
                let at = panel.as_ptr().add(block * Self::LINES).cast::<u8>();
                let codes = |row: usize| a.codes(row).as_ptr().add(256 * block);
                sums(&mut found, at, codes(rows.start), both.then(|| codes(rows.start + SIDE)), a.stride());
                let d = _mm512_load_ps(at.add(D).cast());
                let m = _mm512_load_ps(at.add(M).cast());
                for r in 0..rows.len() {
                    let row = rows.start + r;
                    let tile = found.as_ptr().add(r / SIDE * 2 * SIDE + r % SIDE);
                    let (low, high) =
                        (_mm512_load_si512(tile.cast()), _mm512_load_si512(tile.add(SIDE).cast()));
                    let mut products = _mm512_add_epi32(low, _mm512_slli_epi32::<7>(high));
                    let pairs = a.sixteens(row).as_ptr().add(16 * block).cast::<i32>();
                    let mut offset = _mm512_setzero_si512();
                    for j in 0..8 {
                        let pair = _mm512_set1_epi32(pairs.add(j).read_unaligned());
                        offset = _mm512_dpwssd_epi32(
                            offset,
                            _mm512_load_si512(at.add(OFFSETS + 64 * j).cast()),
                            pair,
                        );
                    }
                    let da = _mm512_set1_ps(*a.scales(row).get_unchecked(block));
                    if T::IN_INTEGERS {
                        products = _mm512_sub_epi32(products, _mm512_slli_epi32::<5>(offset));
                    } else {
                        let to = &mut lanes[1][lane][r];
                        *to = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(offset), _mm512_mul_ps(m, da), *to);
                    }
                    let to = &mut lanes[0][lane][r];
                    *to = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), _mm512_mul_ps(d, da), *to);
                }
            }
        }
        for (r, out) in out[..rows.len()].iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let sum = |[a, b, c, d]: &[Sums; 4]| {
                    _mm512_add_ps(_mm512_add_ps(a[r], c[r]), _mm512_add_ps(b[r], d[r]))
                };
                *out = _mm512_add_ps(sum(&lanes[0]), sum(&lanes[1]));
            }
        }
    }
}

/// found = four tiles: Σ l q and Σ h q of the first rows, then of the second rows, if there are any.
#[inline(always)]
unsafe fn sums(
    found: &mut [Line; 4 * SIDE],
    at: *const u8,
    first: *const i8,
    second: Option<*const i8>,
    stride: usize,
) {
    // SAFETY: the caller's tiles, rows and configuration.
    unsafe {
        match second {
            Some(second) => asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{a} + {s}*1]", "tileloadd tmm6, [{w} + {t}*1]", "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{b} + {s}*1]", "tdpbssd tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{w} + {t}*1 + 4096]", "tdpbssd tmm1, tmm4, tmm7", "tdpbssd tmm3, tmm5, tmm7",
                "add {a}, 64", "add {b}, 64", "add {w}, 1024", "dec {n:e}", "jnz 2b",
                "tilestored [{c} + {t}*1], tmm0", "tilestored [{c} + {t}*1 + 1024], tmm1",
                "tilestored [{c} + {t}*1 + 2048], tmm2", "tilestored [{c} + {t}*1 + 3072], tmm3",
                a = inout(reg) first => _, b = inout(reg) second => _, w = inout(reg) at => _, s = in(reg) stride, t = in(reg) 64usize,
                n = inout(reg) 4 => _, c = in(reg) found.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            ),
            None => asm!(
                "tilezero tmm0", "tilezero tmm1",
                "2:",
                "tileloadd tmm4, [{a} + {s}*1]",
                "tileloadd tmm6, [{w} + {t}*1]", "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w} + {t}*1 + 4096]", "tdpbssd tmm1, tmm4, tmm7",
                "add {a}, 64", "add {w}, 1024", "dec {n:e}", "jnz 2b",
                "tilestored [{c} + {t}*1], tmm0", "tilestored [{c} + {t}*1 + 1024], tmm1",
                a = inout(reg) first => _, w = inout(reg) at => _, s = in(reg) stride, t = in(reg) 64usize,
                n = inout(reg) 4 => _, c = in(reg) found.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _, options(nostack)
            ),
        }
    }
}
