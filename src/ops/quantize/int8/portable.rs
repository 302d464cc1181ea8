//! The arithmetic of the products in plain Rust, in the order that `mod.rs` states.
use std::ops::Range;

use half::f16;

use super::{IntRows, group_of};
use crate::ops::{
    arrays::from_fn,
    quantize::{GgmlType, HostBlocks},
};

/// out (rows, cols) = rows of `a` times rows of `w`.
pub(super) fn dots(out: &mut [f32], a: &IntRows, rows: Range<usize>, w: &HostBlocks, cols: Range<usize>) {
    let (_, size) = w.kind().block();
    let width = cols.len();
    for (j, col) in cols.enumerate() {
        for (i, row) in rows.clone().enumerate() {
            out[i * width + j] = match group_of(w.kind()) {
                Some(256) => by_256(w.kind(), w.row(col).chunks_exact(size), a, row),
                _ => by_32(w.kind(), w.row(col).chunks_exact(size), a, row),
            };
        }
    }
}

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

fn sum([a, b, c, d]: [f32; 4]) -> f32 {
    (a + c) + (b + d)
}

/// 256 values of a K format: d scale[i / 16] code[i] + m offset[i / 16]; without m, d scale[i / 16] (code[i] - 32).
struct Super {
    codes: [u8; 256],
    scales: [i16; 16],
    offsets: [i16; 16],
    d: f32,
    m: Option<f32>,
}

impl Super {
    fn of(kind: GgmlType, b: &[u8]) -> Super {
        match kind {
            GgmlType::Q4K => Super::with_minima(b, |i| nibble(&b[16..], i)),
            GgmlType::Q5K => {
                Super::with_minima(b, |i| nibble(&b[48..], i) | (b[16 + i % 32] >> (i / 32) & 1) << 4)
            }
            _ => {
                let scales = from_fn(|i| i16::from(b[192 + i] as i8));
                let d = half_at(b, 208);
                Super { codes: from_fn(|i| six(b, i)), scales, offsets: scales, d, m: None }
            }
        }
    }

    /// Q4_K and Q5_K: scales and minima of 6 bits in 12 bytes.
    fn with_minima(b: &[u8], code: impl Fn(usize) -> u8) -> Super {
        let s = &b[4..16];
        let of = |j: usize| match j {
            0..4 => (s[j] & 63, s[j + 4] & 63),
            _ => (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4),
        };
        Super {
            codes: from_fn(code),
            scales: from_fn(|i| i16::from(of(i / 2).0)),
            offsets: from_fn(|i| i16::from(of(i / 2).1)),
            d: half_at(b, 0),
            m: Some(-half_at(b, 2)),
        }
    }
}

/// Code i of Q4_K and Q5_K: 32 bytes hold two runs of 32.
fn nibble(q: &[u8], i: usize) -> u8 {
    q[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15
}

/// Code i of Q6_K.
fn six(b: &[u8], i: usize) -> u8 {
    let (half, part) = (i / 128, i / 32 % 4);
    let low = b[half * 64 + part % 2 * 32 + i % 32] >> (part / 2 * 4) & 15;
    low | (b[128 + half * 32 + i % 32] >> (2 * part) & 3) << 4
}

fn by_256<'a>(kind: GgmlType, blocks: impl Iterator<Item = &'a [u8]>, a: &IntRows, row: usize) -> f32 {
    let (mut lanes, mut offsets) = ([0f32; 4], [0f32; 4]);
    for (block, b) in blocks.enumerate() {
        let w = Super::of(kind, b);
        let (q, da) = (&a.codes(row)[256 * block..], a.scales(row)[block]);
        let (sums, at) = (&a.sixteens(row)[16 * block..], block % 4);
        let mut products: i32 =
            (0..256).map(|i| i32::from(w.scales[i / 16]) * i32::from(w.codes[i]) * i32::from(q[i])).sum();
        let offset: i32 = (0..16).map(|i| i32::from(w.offsets[i]) * i32::from(sums[i])).sum();
        match w.m {
            Some(m) => offsets[at] = (offset as f32).mul_add(m * da, offsets[at]),
            None => products -= 32 * offset,
        }
        lanes[at] = (products as f32).mul_add(w.d * da, lanes[at]);
    }
    sum(lanes) + sum(offsets)
}

/// 32 codes, their scale and what is added to each value.
fn thirty_two(kind: GgmlType, b: &[u8]) -> ([i16; 32], f32, f32) {
    let d = half_at(b, 0);
    let four = |q: &[u8], i: usize| i16::from(q[i % 16] >> (i / 16 * 4) & 15);
    let fifth = |at: usize, i: usize| i16::from(b[at + i / 8] >> (i % 8) & 1) << 4;
    match kind {
        GgmlType::Q4_0 => (from_fn(|i| four(&b[2..], i)), d, -8.0 * d),
        GgmlType::Q4_1 => (from_fn(|i| four(&b[4..], i)), d, half_at(b, 2)),
        GgmlType::Q5_0 => (from_fn(|i| four(&b[6..], i) | fifth(2, i)), d, -16.0 * d),
        GgmlType::Q5_1 => (from_fn(|i| four(&b[8..], i) | fifth(4, i)), d, half_at(b, 2)),
        _ => (from_fn(|i| i16::from(b[2 + i] as i8)), d, 0.0),
    }
}

fn by_32<'a>(kind: GgmlType, blocks: impl Iterator<Item = &'a [u8]>, a: &IntRows, row: usize) -> f32 {
    let (mut lanes, mut offsets) = ([0f32; 4], [0f32; 4]);
    for (block, b) in blocks.enumerate() {
        let (codes, d, m) = thirty_two(kind, b);
        let (q, at) = (&a.codes(row)[32 * block..], block % 4);
        let products: i32 = (0..32).map(|i| i32::from(codes[i]) * i32::from(q[i])).sum();
        lanes[at] = (products as f32).mul_add(d * a.scales(row)[block], lanes[at]);
        offsets[at] = m.mul_add(a.sums(row)[block], offsets[at]);
    }
    sum(lanes) + sum(offsets)
}
