//! Values out of blocks, a block at a time. The layouts are those of ggml's `block_q*` structures; each value takes the same single operations, in the
//! same order, as in the gguf package's `quants.py`, so that its bits are the same.
use half::{bf16, f16};

use super::formats::GgmlType;
use crate::ops::simd::{Kernel, Simd};

/// out = the values of `bytes`, whole blocks of `kind`.
pub(super) struct Unpack<'a> {
    pub kind: GgmlType,
    pub bytes: &'a [u8],
    pub out: &'a mut [f32],
}

impl Kernel for Unpack<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (values, size) = self.kind.block();
        for (b, o) in self.bytes.chunks_exact(size).zip(self.out.chunks_exact_mut(values)) {
            match self.kind {
                GgmlType::F32 => o[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
                GgmlType::F16 => o[0] = half_at(b, 0),
                GgmlType::Bf16 => o[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
                GgmlType::Q4_0 => q4_0(b, o),
                GgmlType::Q4_1 => q4_1(b, o),
                GgmlType::Q5_0 => q5_0(b, o),
                GgmlType::Q5_1 => q5_1(b, o),
                GgmlType::Q8_0 => q8_0(b, o),
                GgmlType::Q2K => q2_k(b, o),
                GgmlType::Q3K => q3_k(b, o),
                GgmlType::Q4K => q4_k(b, o),
                GgmlType::Q5K => q5_k(b, o),
                GgmlType::Q6K => q6_k(b, o),
                GgmlType::Iq4Nl => iq4_nl(b, o),
                GgmlType::Iq4Xs => iq4_xs(b, o),
                GgmlType::Nf4 => nf4(b, o),
            }
        }
    }
}

/// What IQ4's 4 bits choose from (ggml's `kvalues_iq4nl`).
pub(super) const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// What NF4's 4 bits choose from, as bitsandbytes has them: quantiles of the normal distribution.
pub const NF4: [f32; 16] = [
    -1.0,
    -0.6961928,
    -0.52507305,
    -0.3949175,
    -0.28444138,
    -0.18477343,
    -0.091050036,
    0.0,
    0.0795803,
    0.1609302,
    0.2461123,
    0.33791524,
    0.44070983,
    0.562617,
    0.72295684,
    1.0,
];

#[inline(always)]
fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// Number i of 32 nibbles: the low ones first.
#[inline(always)]
fn nibble(q: &[u8], i: usize) -> u8 {
    if i < 16 { q[i] & 15 } else { q[i - 16] >> 4 }
}

#[inline(always)]
fn q4_0(b: &[u8], out: &mut [f32]) {
    let (d, q) = (half_at(b, 0), &b[2..18]);
    for i in 0..32 {
        out[i] = (nibble(q, i) as f32 - 8.0) * d;
    }
}

#[inline(always)]
fn q4_1(b: &[u8], out: &mut [f32]) {
    let (d, min, q) = (half_at(b, 0), half_at(b, 2), &b[4..20]);
    for i in 0..32 {
        out[i] = nibble(q, i) as f32 * d + min;
    }
}

/// Number i of 32 with five bits: the fifth ones are bits of a word.
#[inline(always)]
fn five(high: u32, q: &[u8], i: usize) -> f32 {
    (nibble(q, i) as u32 | (high >> i & 1) << 4) as f32
}

#[inline(always)]
fn word_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

#[inline(always)]
fn q5_0(b: &[u8], out: &mut [f32]) {
    let (d, high, q) = (half_at(b, 0), word_at(b, 2), &b[6..22]);
    for i in 0..32 {
        out[i] = (five(high, q, i) - 16.0) * d;
    }
}

#[inline(always)]
fn q5_1(b: &[u8], out: &mut [f32]) {
    let (d, min, high, q) = (half_at(b, 0), half_at(b, 2), word_at(b, 4), &b[8..24]);
    for i in 0..32 {
        out[i] = five(high, q, i) * d + min;
    }
}

#[inline(always)]
fn q8_0(b: &[u8], out: &mut [f32]) {
    let (d, q) = (half_at(b, 0), &b[2..34]);
    for i in 0..32 {
        out[i] = d * (q[i] as i8) as f32;
    }
}

/// 16 scales and minima of 4 bits; a byte holds the same place of four runs of 32 values.
#[inline(always)]
fn q2_k(b: &[u8], out: &mut [f32]) {
    let (scales, d, dmin) = (&b[..16], half_at(b, 80), half_at(b, 82));
    for run in 0..8 {
        let q = &b[16 + run / 4 * 32..][..32];
        for half in 0..2 {
            let s = scales[2 * run + half];
            let (scale, min) = (d * (s & 15) as f32, dmin * (s >> 4) as f32);
            let (q, out) = (&q[16 * half..][..16], &mut out[32 * run + 16 * half..][..16]);
            for i in 0..16 {
                out[i] = scale * (q[i] >> (run % 4 * 2) & 3) as f32 - min;
            }
        }
    }
}

/// As Q2_K without minima; a third bit lies apart, and where it is not set 4 is taken away.
#[inline(always)]
fn q3_k(b: &[u8], out: &mut [f32]) {
    let (mask, scales, d) = (&b[..32], &b[96..108], half_at(b, 108));
    for run in 0..8 {
        let q = &b[32 + run / 4 * 32..][..32];
        for half in 0..2 {
            let k = 2 * run + half;
            let low = if k < 8 { scales[k] & 15 } else { scales[k - 8] >> 4 };
            let high = scales[8 + k % 4] >> (k / 4 * 2) & 3;
            let scale = d * ((low | high << 4) as f32 - 32.0);
            let (q, mask) = (&q[16 * half..][..16], &mask[16 * half..][..16]);
            let out = &mut out[16 * k..][..16];
            for i in 0..16 {
                let third = (mask[i] >> run & 1) << 2;
                out[i] = scale * ((q[i] >> (run % 4 * 2) & 3 | third) as f32 - 4.0);
            }
        }
    }
}

/// The 6-bit scale and minimum of sub-block j out of 12 packed bytes.
#[inline(always)]
fn scale_min(j: usize, s: &[u8]) -> (f32, f32) {
    let (d, m) = if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        ((s[j + 4] & 15) | ((s[j - 4] >> 6) << 4), (s[j + 4] >> 4) | ((s[j] >> 6) << 4))
    };
    (d as f32, m as f32)
}

#[inline(always)]
fn q4_k(b: &[u8], out: &mut [f32]) {
    let (d, dmin, scales) = (half_at(b, 0), half_at(b, 2), &b[4..16]);
    for sub in 0..8 {
        let (scale, min) = scale_min(sub, scales);
        let (scale, min) = (d * scale, dmin * min);
        let (q, out) = (&b[16 + sub / 2 * 32..][..32], &mut out[32 * sub..][..32]);
        for i in 0..32 {
            out[i] = scale * (q[i] >> (sub % 2 * 4) & 15) as f32 - min;
        }
    }
}

#[inline(always)]
fn q5_k(b: &[u8], out: &mut [f32]) {
    let (d, dmin, scales, high) = (half_at(b, 0), half_at(b, 2), &b[4..16], &b[16..48]);
    for sub in 0..8 {
        let (scale, min) = scale_min(sub, scales);
        let (scale, min) = (d * scale, dmin * min);
        let (q, out) = (&b[48 + sub / 2 * 32..][..32], &mut out[32 * sub..][..32]);
        for i in 0..32 {
            let value = q[i] >> (sub % 2 * 4) & 15 | (high[i] >> sub & 1) << 4;
            out[i] = scale * value as f32 - min;
        }
    }
}

#[inline(always)]
fn q6_k(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 208);
    for run in 0..8 {
        let (half, part) = (run / 4, run % 4);
        // Runs 0 and 2, and 1 and 3, of a half share bytes.
        let (low, high) = (&b[half * 64 + part % 2 * 32..][..32], &b[128 + half * 32..][..32]);
        for k in 0..2 {
            let scale = d * (b[192 + 2 * run + k] as i8) as f32;
            let (low, high) = (&low[16 * k..][..16], &high[16 * k..][..16]);
            let out = &mut out[32 * run + 16 * k..][..16];
            for i in 0..16 {
                let value = low[i] >> (part / 2 * 4) & 15 | (high[i] >> (part * 2) & 3) << 4;
                out[i] = scale * (value as f32 - 32.0);
            }
        }
    }
}

#[inline(always)]
fn iq4_nl(b: &[u8], out: &mut [f32]) {
    let (d, q) = (half_at(b, 0), &b[2..18]);
    for i in 0..32 {
        out[i] = d * IQ4[nibble(q, i) as usize] as f32;
    }
}

#[inline(always)]
fn iq4_xs(b: &[u8], out: &mut [f32]) {
    let (d, high, low) = (half_at(b, 0), u16::from_le_bytes([b[2], b[3]]), &b[4..8]);
    for sub in 0..8 {
        let six = (low[sub / 2] >> (sub % 2 * 4) & 15) as u16 | (high >> (2 * sub) & 3) << 4;
        let scale = d * (six as f32 - 32.0);
        let (q, out) = (&b[8 + 16 * sub..][..16], &mut out[32 * sub..][..32]);
        for i in 0..32 {
            out[i] = scale * IQ4[nibble(q, i) as usize] as f32;
        }
    }
}

/// The first of two values is in the upper half of a byte.
#[inline(always)]
fn nf4(b: &[u8], out: &mut [f32]) {
    let (scale, q) = (f32::from_bits(word_at(b, 0)), &b[4..36]);
    for i in 0..32 {
        out[2 * i] = NF4[(q[i] >> 4) as usize] * scale;
        out[2 * i + 1] = NF4[(q[i] & 15) as usize] * scale;
    }
}
