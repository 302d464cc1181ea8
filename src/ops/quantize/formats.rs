//! ggml's block formats (its `block_q*` structures; K-quants by super-blocks of 256) and NF4 (QLoRA, arXiv 2305.14314, appendix E): their table, values out of them, and the simple ones out of
//! values. The kernels of `kernels/quantize.cu` compute the same bits, and are held to these.
use anyhow::{Context, Result};
use half::{bf16, f16};

use super::{pack::Pack, packed::PackedType, unpack::Unpack};
use crate::{
    device::Gpu,
    ops::{kernels, launch::Grid, simd},
    tensor::Tensor,
};

/// A launch function of quantize.cu: out, blocks, tokens, values, columns, rows of the table.
pub(super) type Dequantize =
    unsafe fn(&Gpu, Grid, &mut Tensor, &Tensor, Option<&Tensor>, u64, usize, usize) -> Result<()>;

macro_rules! formats {
    ($($variant:ident, $number:literal, $name:literal, $kernel:ident, $values:literal, $bytes:literal, $what:literal;)*) => {
        /// An element type that can be read: ggml's, and the one of bitsandbytes that is kept as it is stored.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GgmlType {
            $(#[doc = $what] $variant,)*
        }

        impl GgmlType {
            /// Every one, those of ggml by its number.
            pub const EVERY: &[GgmlType] = &[$(GgmlType::$variant),*];

            /// ggml's number; that of [`GgmlType::Nf4`] stands in no file.
            pub fn number(self) -> u32 {
                match self { $(GgmlType::$variant => $number),* }
            }
            /// Its name, e.g. `Q4_K`.
            pub fn name(self) -> &'static str {
                match self { $(GgmlType::$variant => $name),* }
            }
            /// (values, bytes) of one block.
            pub fn block(self) -> (usize, usize) {
                match self { $(GgmlType::$variant => ($values, $bytes)),* }
            }
            /// Launches the kernel that unpacks it.
            pub(super) fn launch(self) -> Dequantize {
                match self { $(GgmlType::$variant => kernels::$kernel),* }
            }
        }
    };
}
formats! {
    F32, 0, "F32", dequantize_float32, 1, 4, "IEEE binary32";
    F16, 1, "F16", dequantize_float16, 1, 2, "IEEE binary16";
    Q4_0, 2, "Q4_0", dequantize_q4_0, 32, 18, "32 values: scale, 4 bits";
    Q4_1, 3, "Q4_1", dequantize_q4_1, 32, 20, "32 values: scale and minimum, 4 bits";
    Q5_0, 6, "Q5_0", dequantize_q5_0, 32, 22, "32 values: scale, 5 bits";
    Q5_1, 7, "Q5_1", dequantize_q5_1, 32, 24, "32 values: scale and minimum, 5 bits";
    Q8_0, 8, "Q8_0", dequantize_q8_0, 32, 34, "32 values: scale, 8 bits";
    Q2K, 10, "Q2_K", dequantize_q2_k, 256, 84, "256 values: 16 scales and minima of 4 bits, 2 bits";
    Q3K, 11, "Q3_K", dequantize_q3_k, 256, 110, "256 values: 16 scales of 6 bits, 3 bits";
    Q4K, 12, "Q4_K", dequantize_q4_k, 256, 144, "256 values: 8 scales and minima of 6 bits, 4 bits";
    Q5K, 13, "Q5_K", dequantize_q5_k, 256, 176, "256 values: 8 scales and minima of 6 bits, 5 bits";
    Q6K, 14, "Q6_K", dequantize_q6_k, 256, 210, "256 values: 16 scales of 8 bits, 6 bits";
    Iq4Nl, 20, "IQ4_NL", dequantize_iq4_nl, 32, 18, "32 values: scale, 4 bits that choose from 16 numbers";
    Iq4Xs, 23, "IQ4_XS", dequantize_iq4_xs, 256, 136, "256 values: 8 scales of 6 bits, 4 bits that choose from 16 numbers";
    Bf16, 30, "BF16", dequantize_bfloat16, 1, 2, "bfloat16";
    Nf4, 4294967295, "NF4", dequantize_nf4, 64, 36, "64 values of bitsandbytes: scale (F32), 4 bits that choose from 16 numbers";
}

/// Types of ggml that are known by name only.
const UNREADABLE: [(u32, &str); 8] =
    [(9, "Q8_1"), (15, "Q8_K"), (24, "I8"), (25, "I16"), (26, "I32"), (27, "I64"), (28, "F64"), (41, "Q1_0")];

/// The most values that a block has.
pub(super) const MOST: usize = 256;

impl GgmlType {
    /// Those of ggml, by its number.
    pub const ALL: &[GgmlType] = match GgmlType::EVERY {
        [ggml @ .., _] => ggml,
        [] => &[],
    };

    /// From ggml's number.
    pub fn from_number(n: u32) -> Option<GgmlType> {
        GgmlType::ALL.iter().copied().find(|t| t.number() == n)
    }

    /// From ggml's number; the error names the type and lists those that can be read.
    pub fn readable(n: u32) -> Result<GgmlType> {
        GgmlType::from_number(n).with_context(|| {
            let name = UNREADABLE.iter().find(|(number, _)| *number == n).map_or("a type unknown here", |t| t.1);
            let names = GgmlType::ALL.iter().map(|t| t.name());
            let names: Vec<&str> = names.chain(PackedType::ALL.iter().map(|t| t.name())).collect();
            format!(
                "ggml type {n} ({name}) cannot be read; those that can are {}: quantise the model anew to one of them",
                names.join(", ")
            )
        })
    }

    /// Bytes of a row of `cols` values, if that is a whole number of blocks.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let (values, bytes) = self.block();
        cols.is_multiple_of(values).then(|| (cols / values).checked_mul(bytes)).flatten()
    }

    /// out = the values of `bytes`; both whole blocks, as many of one as of the other.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        simd::run(Unpack { kind: self, bytes, out })
    }

    /// The same, rounded.
    pub fn dequantize_bf16(self, bytes: &[u8], out: &mut [bf16]) {
        let (values, size) = self.block();
        // Some blocks at a time, so that short ones are worth a call.
        let some = MOST / values;
        let mut wide = [0.0; MOST];
        for (b, o) in bytes.chunks(some * size).zip(out.chunks_mut(some * values)) {
            self.dequantize(b, &mut wide[..o.len()]);
            o.iter_mut().zip(&wide).for_each(|(o, x)| *o = bf16::from_f32(*x));
        }
    }

    /// Whether its blocks can be made of values here.
    pub fn is_made(self) -> bool {
        use GgmlType::*;
        matches!(self, F32 | F16 | Bf16 | Q8_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q4K | Q5K | Q6K)
    }

    /// bytes = the blocks of `values` (finite), both whole blocks of a type that [`GgmlType::is_made`], as ggml's `quantize_row_*_ref`; Q4_0 and Q4_1 as on a machine
    /// with fused multiplication and addition, and as the gguf package, the others as on one without.
    pub(crate) fn quantize(self, values: &[f32], bytes: &mut [u8]) {
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
                kind => return simd::run(Pack { kind, values, bytes }),
            }
        }
    }
}

#[inline(always)]
pub(super) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// 32 values as nibbles of at most 15: the first 16 low, the last 16 high.
fn pack(x: &[f32], bytes: &mut [u8], number: impl Fn(f32) -> u8) {
    for i in 0..16 {
        bytes[i] = number(x[i]).min(15) | number(x[i + 16]).min(15) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_named_with_what_can() {
        for (number, name) in [(9, "Q8_1"), (26, "I32"), (28, "F64"), (41, "Q1_0"), (999, "unknown")] {
            let error = GgmlType::readable(number).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("Q4_K") && error.contains("IQ4_XS"), "{error}");
        }
        for (n, _) in UNREADABLE {
            assert!(GgmlType::from_number(n).is_none() && PackedType::from_number(n).is_none(), "{n}");
        }
        for &kind in GgmlType::ALL {
            assert_eq!(GgmlType::readable(kind.number()).unwrap(), kind);
        }
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(GgmlType::Q4K.row_bytes(512), Some(288));
        assert_eq!(GgmlType::Q4K.row_bytes(96), None);
        assert_eq!(GgmlType::Q8_0.row_bytes(96), Some(102));
    }
}
