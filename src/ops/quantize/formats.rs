//! ggml's block formats (its `block_q*` structures; K-quants by super-blocks of 256): values out of them, and the simple ones out of values.
//! The kernels of `kernels/quantize.cu` compute the same bits, and are held to these.
use half::{bf16, f16};

/// A ggml element type that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgmlType {
    /// 0
    F32,
    /// 1
    F16,
    /// 2: 32 values, scale, 4 bits
    Q4_0,
    /// 3: 32 values, scale and minimum, 4 bits
    Q4_1,
    /// 8: 32 values, scale, 8 bits
    Q8_0,
    /// 12: 256 values, 8 scales and minima of 6 bits, 4 bits
    Q4K,
    /// 14: 256 values, 16 scales of 8 bits, 6 bits
    Q6K,
    /// 30
    Bf16,
}

impl GgmlType {
    /// From ggml's number.
    pub fn from_number(n: u32) -> Option<GgmlType> {
        use GgmlType::*;
        Some(match n {
            0 => F32,
            1 => F16,
            2 => Q4_0,
            3 => Q4_1,
            8 => Q8_0,
            12 => Q4K,
            14 => Q6K,
            30 => Bf16,
            _ => return None,
        })
    }

    /// (values, bytes) of one block.
    pub fn block(self) -> (usize, usize) {
        use GgmlType::*;
        match self {
            F32 => (1, 4),
            F16 | Bf16 => (1, 2),
            Q4_0 => (32, 18),
            Q4_1 => (32, 20),
            Q8_0 => (32, 34),
            Q4K => (256, 144),
            Q6K => (256, 210),
        }
    }

    /// out = the values of `bytes`; both whole blocks, as many of one as of the other.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        let (values, size) = self.block();
        for (b, o) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(values)) {
            match self {
                GgmlType::F32 => o[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
                GgmlType::F16 => o[0] = half_at(b, 0),
                GgmlType::Bf16 => o[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
                GgmlType::Q4_0 => nibbles(&b[2..], o, |q| (q - 8.0) * half_at(b, 0)),
                GgmlType::Q4_1 => nibbles(&b[4..], o, |q| q * half_at(b, 0) + half_at(b, 2)),
                GgmlType::Q8_0 => {
                    o.iter_mut().zip(&b[2..]).for_each(|(o, &q)| *o = half_at(b, 0) * (q as i8) as f32)
                }
                GgmlType::Q4K => q4_k(b, o),
                GgmlType::Q6K => q6_k(b, o),
            }
        }
    }

    /// The same, rounded.
    pub fn dequantize_bf16(self, bytes: &[u8], out: &mut [bf16]) {
        let (values, size) = self.block();
        let mut wide = [0.0; 256];
        for (b, o) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(values)) {
            self.dequantize(b, &mut wide[..values]);
            o.iter_mut().zip(&wide).for_each(|(o, x)| *o = bf16::from_f32(*x));
        }
    }

    /// bytes = the blocks of `values`, both whole blocks; Q8_0, Q4_0 and Q4_1, as ggml's `quantize_row_*_ref` on a machine with fused
    /// multiplication and addition, and as the gguf package.
    pub(super) fn quantize(self, values: &[f32], bytes: &mut [u8]) {
        let (n, size) = self.block();
        for (x, b) in values.chunks_exact(n).zip(bytes.chunks_exact_mut(size)) {
            match self {
                GgmlType::Q8_0 => {
                    let d = x.iter().fold(0.0f32, |a, x| a.max(x.abs())) / 127.0;
                    let inverse = inverse(d);
                    b[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
                    b[2..].iter_mut().zip(x).for_each(|(b, x)| *b = (x * inverse).round() as i8 as u8);
                }
                GgmlType::Q4_0 => {
                    // The first value of the largest magnitude becomes -8.
                    let most = x.iter().fold(0.0f32, |a, &x| if x.abs() > a.abs() { x } else { a });
                    let d = most / -8.0;
                    let inverse = inverse(d) as f64;
                    b[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
                    pack(x, &mut b[2..], |x| (x as f64 * inverse + 8.5) as u8);
                }
                GgmlType::Q4_1 => {
                    let least = x.iter().fold(f32::INFINITY, |a, &x| a.min(x));
                    let d = (x.iter().fold(f32::NEG_INFINITY, |a, &x| a.max(x)) - least) / 15.0;
                    let inverse = inverse(d);
                    b[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
                    b[2..4].copy_from_slice(&f16::from_f32(least).to_le_bytes());
                    pack(x, &mut b[4..], |x| ((x - least) * inverse + 0.5) as u8);
                }
                // The op refuses the others.
                _ => return,
            }
        }
    }
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// 32 values as nibbles of at most 15: the first 16 low, the last 16 high.
fn pack(x: &[f32], bytes: &mut [u8], number: impl Fn(f32) -> u8) {
    for i in 0..16 {
        bytes[i] = number(x[i]).min(15) | number(x[i + 16]).min(15) << 4;
    }
}

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// 16 bytes: the low nibbles are the first 16 values, the high ones the last.
fn nibbles(q: &[u8], out: &mut [f32], value: impl Fn(f32) -> f32) {
    for i in 0..16 {
        out[i] = value((q[i] & 15) as f32);
        out[i + 16] = value((q[i] >> 4) as f32);
    }
}

/// The 6-bit scale and minimum of sub-block j out of 12 packed bytes.
fn scale_min(j: usize, s: &[u8]) -> (f32, f32) {
    let (d, m) = if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        ((s[j + 4] & 15) | ((s[j - 4] >> 6) << 4), (s[j + 4] >> 4) | ((s[j] >> 6) << 4))
    };
    (d as f32, m as f32)
}

fn q4_k(b: &[u8], out: &mut [f32]) {
    let (d, dmin, scales, q) = (half_at(b, 0), half_at(b, 2), &b[4..16], &b[16..144]);
    for pair in 0..4 {
        let q = &q[pair * 32..][..32];
        for high in 0..2 {
            let (scale, min) = scale_min(2 * pair + high, scales);
            let (scale, min) = (d * scale, dmin * min);
            let out = &mut out[(2 * pair + high) * 32..][..32];
            for i in 0..32 {
                out[i] = scale * ((q[i] >> (4 * high)) & 15) as f32 - min;
            }
        }
    }
}

fn q6_k(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 208);
    for half in 0..2 {
        let (low, high, scales) = (&b[half * 64..], &b[128 + half * 32..], &b[192 + half * 8..]);
        let out = &mut out[half * 128..][..128];
        for i in 0..32 {
            let value =
                |low: u8, shift: u32| ((low & 15) | (((high[i] >> shift) & 3) << 4)) as i8 as f32 - 32.0;
            let scale = |k: usize| d * scales[i / 16 + k] as i8 as f32;
            out[i] = scale(0) * value(low[i], 0);
            out[i + 32] = scale(2) * value(low[i + 32], 2);
            out[i + 64] = scale(4) * value(low[i] >> 4, 4);
            out[i + 96] = scale(6) * value(low[i + 32] >> 4, 6);
        }
    }
}
