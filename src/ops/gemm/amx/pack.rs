//! Activations cut into bf16 pieces, and weights, in the order that tiles are loaded in.
use std::{arch::x86_64::*, ops::Range};

use half::bf16;

use super::{Line, PIECES, SLOT, STEP, TILE};
use crate::ops::arrays::from_fn;

/// The pieces of rows `rows` (at most 16) as the second operand: in each step and piece a tile of 16 rows, one a pair of
/// columns of a, that hold that pair of each row. Fewer than 16 rows make shorter rows, without gaps.
///
/// # Safety
/// The instructions are available.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pack_pairs(out: &mut [f32], a: &[f32], rows: Range<usize>, k: usize) {
    let n = rows.len();
    for (step, slot) in out.chunks_exact_mut(SLOT).enumerate() {
        let mut pieces = [[_mm512_setzero_si512(); 16]; PIECES];
        for r in 0..n {
            let from = &a[(rows.start + r) * k + step * STEP..(rows.start + r + 1) * k];
            let split = split(from);
            for piece in 0..PIECES {
                pieces[piece][r] = split[piece];
            }
        }
        for piece in 0..PIECES {
            let tile = &mut slot[piece * TILE..][..TILE];
            if n == 1 {
                // SAFETY: a tile has room for a register.
                unsafe { _mm512_storeu_si512(tile.as_mut_ptr().cast(), pieces[piece][0]) };
                continue;
            }
            let pairs = transpose(pieces[piece]);
            for pair in 0..16 {
                let to = &mut tile[pair * n..][..n];
                // SAFETY: the mask keeps the n pairs within the tile.
                unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), mask(n), pairs[pair]) };
            }
        }
    }
}

/// The pieces of rows `rows` (at most 16) and columns `depth` of a as the first operand: tiles of 16 rows of 32 numbers.
///
/// # Safety
/// The instructions are available.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pack_rows(
    out: &mut [f32],
    a: &[f32],
    rows: Range<usize>,
    k: usize,
    depth: Range<usize>,
) {
    for (step, slot) in out.chunks_exact_mut(SLOT).enumerate() {
        for (r, row) in rows.clone().enumerate() {
            let pieces = split(&a[row * k + depth.start + step * STEP..row * k + depth.end]);
            for piece in 0..PIECES {
                let line = &mut slot[piece * TILE + 16 * r..][..16];
                // SAFETY: row r of 16 in the tile.
                unsafe { _mm512_storeu_si512(line.as_mut_ptr().cast(), pieces[piece]) };
            }
        }
    }
}

/// Up to 32 numbers, zeros after them, as the sum of three rows of bf16 numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn split(from: &[f32]) -> [__m512i; PIECES] {
    let (low, high) = (mask(from.len()), mask(from.len().saturating_sub(16)));
    // SAFETY: the masks cover what `from` has; the registers have the same size.
    unsafe {
        let p = from.as_ptr();
        let mut x = [_mm512_maskz_loadu_ps(low, p), _mm512_maskz_loadu_ps(high, p.wrapping_add(16))];
        let mut pieces = [_mm512_setzero_si512(); PIECES];
        for piece in &mut pieces {
            *piece = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(x[1], x[0]));
            x[0] = _mm512_sub_ps(x[0], widen(_mm512_castsi512_si256(*piece)));
            x[1] = _mm512_sub_ps(x[1], widen(_mm512_extracti64x4_epi64::<1>(*piece)));
        }
        pieces
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widen(x: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)))
}

/// Rows `depth` and `width` columns from j of w (K, M), as the second operand: in each step four tiles of 16 columns, whose rows
/// hold two rows of w alternately. Zeros beyond the edges.
///
/// # Safety
/// The instructions are available.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn interleave_panel(
    panel: &mut [f32],
    w: &[bf16],
    m: usize,
    j: usize,
    width: usize,
    depth: Range<usize>,
) {
    let masks = [0u32, 32].map(|from| match width as u32 {
        w if w >= from + 32 => u32::MAX,
        w if w <= from => 0,
        w => (1 << (w - from)) - 1,
    });
    let orders = [interleaving(0), interleaving(1)];
    for (step, slot) in panel.chunks_exact_mut(4 * TILE).enumerate() {
        for pair in 0..16 {
            let row = |r: usize| -> Option<&[bf16]> {
                let p = depth.start + step * STEP + 2 * pair + r;
                (p < depth.end).then(|| &w[p * m + j..][..width])
            };
            let rows = [row(0), row(1)];
            for half in 0..2 {
                let load = |row: Option<&[bf16]>| match row {
                    // SAFETY: the mask covers what the row has.
                    Some(row) => unsafe {
                        _mm512_maskz_loadu_epi16(masks[half], row.as_ptr().wrapping_add(32 * half).cast())
                    },
                    None => _mm512_setzero_si512(),
                };
                let (a, b) = (load(rows[0]), load(rows[1]));
                for quarter in 0..2 {
                    let x = _mm512_permutex2var_epi16(a, orders[quarter], b);
                    let tile = &mut slot[(2 * half + quarter) * TILE + 16 * pair..][..16];
                    // SAFETY: 16 floats.
                    unsafe { _mm512_storeu_si512(tile.as_mut_ptr().cast(), x) };
                }
            }
        }
    }
}

/// Bytes between the weights being copied and those asked for from memory: what a panel's products leave time for.
const AHEAD: usize = 16384;

/// Up to 64 rows of w (M, K) as the first operand: in each step four tiles of 16 rows of 32 numbers. Zeros beyond the edges.
/// Rows are read from one end to the other, which is what the processor's prefetcher is good at; tiles read from `w` itself
/// would touch 16 places at a time.
///
/// # Safety
/// The instructions are available.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn pack_panel(panel: &mut [f32], w: &[bf16], k: usize) {
    if w.len() < 64 * k {
        panel.fill(0.0);
    }
    let tail = !0u32 >> (k.next_multiple_of(STEP) - k);
    for (r, row) in w.chunks_exact(k).enumerate() {
        for (step, slot) in panel.chunks_exact_mut(4 * TILE).enumerate() {
            let p = row.as_ptr().wrapping_add(step * STEP);
            let line = &mut slot[r * 16..][..16];
            // SAFETY: the mask covers what is left of the row; prefetching never faults.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(p.wrapping_byte_add(AHEAD).cast());
                let mask = if step * STEP + STEP <= k { !0 } else { tail };
                let x = _mm512_maskz_loadu_epi16(mask, p.cast());
                _mm512_storeu_si512(line.as_mut_ptr().cast(), x);
            }
        }
    }
}

/// As [`pack_panel`] for f32 weights: each tile is followed by those of its second and third piece.
///
/// # Safety
/// The instructions are available.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn split_panel(panel: &mut [f32], w: &[f32], k: usize) {
    if w.len() < 64 * k {
        panel.fill(0.0);
    }
    for (r, row) in w.chunks_exact(k).enumerate() {
        for (from, slot) in row.chunks(STEP).zip(panel.chunks_exact_mut(12 * TILE)) {
            let pieces = split(from);
            for p in 0..PIECES {
                let line = &mut slot[(r / 16 * 3 + p) * TILE + r % 16 * 16..][..16];
                // SAFETY: 16 floats.
                unsafe { _mm512_storeu_si512(line.as_mut_ptr().cast(), pieces[p]) };
            }
        }
    }
}

/// As [`interleave_panel`] for f32 weights: each tile is followed by those of its second and third piece.
///
/// # Safety
/// The instructions are available.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn split_interleave(
    panel: &mut [f32],
    w: &[f32],
    m: usize,
    j: usize,
    width: usize,
    depth: Range<usize>,
) {
    let orders = [interleaving(0), interleaving(1)];
    for (step, slot) in panel.chunks_exact_mut(12 * TILE).enumerate() {
        for pair in 0..16 {
            let row = |r: usize, half: usize| -> [__m512i; PIECES] {
                let p = depth.start + step * STEP + 2 * pair + r;
                let (from, to) = (width.min(32 * half), width.min(32 * half + 32));
                split(if p < depth.end { &w[p * m + j + from..p * m + j + to] } else { &[] })
            };
            for half in 0..2 {
                let (even, odd) = (row(0, half), row(1, half));
                for p in 0..PIECES {
                    for quarter in 0..2 {
                        let x = _mm512_permutex2var_epi16(even[p], orders[quarter], odd[p]);
                        let tile = &mut slot[((2 * half + quarter) * 3 + p) * TILE + 16 * pair..][..16];
                        // SAFETY: 16 floats.
                        unsafe { _mm512_storeu_si512(tile.as_mut_ptr().cast(), x) };
                    }
                }
            }
        }
    }
}

/// Lanes of (a0 b0 a1 b1 ...), where b's are counted from 32 on: of the first or second half of a and b.
fn interleaving(half: u16) -> __m512i {
    let lanes: [u16; 32] = from_fn(|i| half * 16 + i as u16 / 2 + 32 * (i as u16 % 2));
    // SAFETY: the registers have the same size.
    unsafe { std::mem::transmute::<[u16; 32], __m512i>(lanes) }
}

pub(super) fn mask(lanes: usize) -> u16 {
    if lanes >= 16 { u16::MAX } else { (1 << lanes) - 1 }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_tile(lines: &[Line]) -> [__m512i; 16] {
    let mut x = [_mm512_setzero_si512(); 16];
    for i in 0..16 {
        // SAFETY: a line is 64 bytes.
        x[i] = unsafe { _mm512_loadu_si512(lines[i].0.as_ptr().cast()) };
    }
    x
}

/// The transpose of 16 x 16 numbers of 32 bits.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::ops) fn transpose(x: [__m512i; 16]) -> [__m512i; 16] {
    let zero = _mm512_setzero_si512();
    let (mut t, mut u) = ([zero; 16], [zero; 16]);
    for i in (0..16).step_by(2) {
        t[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for i in (0..16).step_by(4) {
        u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // Quarter q of u[4 g + c] is now column 4 q + c of rows 4 g to 4 g + 3.
    for c in 0..4 {
        let even =
            [_mm512_shuffle_i32x4::<0x88>(u[c], u[4 + c]), _mm512_shuffle_i32x4::<0x88>(u[8 + c], u[12 + c])];
        let odd =
            [_mm512_shuffle_i32x4::<0xdd>(u[c], u[4 + c]), _mm512_shuffle_i32x4::<0xdd>(u[8 + c], u[12 + c])];
        t[c] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        t[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        t[8 + c] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        t[12 + c] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
    t
}
