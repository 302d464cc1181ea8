//! The naive oracle, in f64: one value at a time, by its place in the block.
use half::{bf16, f16};

use super::{GgmlType, NF4, unpack::IQ4};

/// The values of whole blocks.
pub fn dequantize(kind: GgmlType, bytes: &[u8]) -> Vec<f64> {
    let (values, size) = kind.block();
    bytes.chunks_exact(size).flat_map(|b| (0..values).map(move |i| value(kind, b, i))).collect()
}

/// Bits `from..from + n` of a byte.
fn bits(byte: u8, from: usize, n: u32) -> u32 {
    (byte as u32 >> from) & ((1 << n) - 1)
}

/// Scale and minimum of a run of Q4_K and Q5_K: six bits each.
fn scale_min(b: &[u8], run: usize) -> (u32, u32) {
    let (low, high) = (run % 4, run / 4);
    match high {
        0 => (bits(b[4 + low], 0, 6), bits(b[8 + low], 0, 6)),
        _ => (
            bits(b[12 + low], 0, 4) | bits(b[4 + low], 6, 2) << 4,
            bits(b[12 + low], 4, 4) | bits(b[8 + low], 6, 2) << 4,
        ),
    }
}

/// Value i of block b.
fn value(kind: GgmlType, b: &[u8], i: usize) -> f64 {
    let half = |at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f64();
    // Blocks of 32: 16 bytes from `at` on hold two values each, i and i + 16.
    let nibble = |at: usize| bits(b[at + i % 16], i / 16 % 2 * 4, 4);
    let fifth = |at: usize| bits(b[at + i / 8], i % 8, 1) << 4;
    // Super-blocks: runs of 32 values.
    let (run, j) = (i / 32, i % 32);
    let two = |at: usize| bits(b[at + run / 4 * 32 + j], run % 4 * 2, 2);
    let four = |at: usize| bits(b[at + run / 2 * 32 + j], run % 2 * 4, 4);
    match kind {
        GgmlType::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f64,
        GgmlType::F16 => half(0),
        GgmlType::Bf16 => bf16::from_le_bytes([b[0], b[1]]).to_f64(),
        GgmlType::Q4_0 => half(0) * (nibble(2) as f64 - 8.0),
        GgmlType::Q4_1 => half(0) * nibble(4) as f64 + half(2),
        GgmlType::Q5_0 => half(0) * ((nibble(6) | fifth(2)) as f64 - 16.0),
        GgmlType::Q5_1 => half(0) * (nibble(8) | fifth(4)) as f64 + half(2),
        GgmlType::Q8_0 => half(0) * b[2 + i] as i8 as f64,
        GgmlType::Q2K => {
            let s = b[i / 16];
            half(80) * bits(s, 0, 4) as f64 * two(16) as f64 - half(82) * bits(s, 4, 4) as f64
        }
        GgmlType::Q3K => {
            let k = i / 16;
            let scale = bits(b[96 + k % 8], k / 8 * 4, 4) | bits(b[104 + k % 4], k / 4 * 2, 2) << 4;
            let third = if bits(b[j], run, 1) == 1 { 0.0 } else { 4.0 };
            half(108) * (scale as f64 - 32.0) * (two(32) as f64 - third)
        }
        GgmlType::Q4K => {
            let (scale, min) = scale_min(b, run);
            half(0) * scale as f64 * four(16) as f64 - half(2) * min as f64
        }
        GgmlType::Q5K => {
            let (scale, min) = scale_min(b, run);
            let q = four(48) | bits(b[16 + j], run, 1) << 4;
            half(0) * scale as f64 * q as f64 - half(2) * min as f64
        }
        GgmlType::Q6K => {
            let (half_block, part) = (run / 4, run % 4);
            let low = bits(b[half_block * 64 + part % 2 * 32 + j], part / 2 * 4, 4);
            let high = bits(b[128 + half_block * 32 + j], part * 2, 2) << 4;
            half(208) * b[192 + i / 16] as i8 as f64 * ((low | high) as f64 - 32.0)
        }
        GgmlType::Nf4 => {
            let scale = f32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f64;
            scale * NF4[bits(b[4 + i / 2], 4 - i % 2 * 4, 4) as usize] as f64
        }
        GgmlType::Iq4Nl => half(0) * IQ4[nibble(2) as usize] as f64,
        GgmlType::Iq4Xs => {
            let high = u16::from_le_bytes([b[2], b[3]]) as u32 >> (2 * run) & 3;
            let scale = bits(b[4 + run / 2], run % 2 * 4, 4) | high << 4;
            half(0) * (scale as f64 - 32.0) * IQ4[nibble(8 + 16 * run) as usize] as f64
        }
    }
}
