//! ggml's formats that are unpacked when a file is read and are never kept as blocks: codebooks (IQ1 to IQ3), ternary numbers (TQ) and 4-bit floats.
//!
//! Each value takes the operations of the gguf package's `quants.py`, in its order, so that its bits are the same.
use std::sync::OnceLock;

use half::f16;

use crate::ops::arrays::from_fn;

macro_rules! types {
    ($($variant:ident, $number:literal, $name:literal, $values:literal, $bytes:literal, $what:literal;)*) => {
        /// A ggml element type that is unpacked when it is read.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum PackedType {
            $(#[doc = $what] $variant,)*
        }

        impl PackedType {
            /// Every one.
            pub const ALL: &[PackedType] = &[$(PackedType::$variant),*];

            /// ggml's number.
            pub fn number(self) -> u32 {
                match self { $(PackedType::$variant => $number),* }
            }
            /// ggml's name, e.g. `IQ2_XS`.
            pub fn name(self) -> &'static str {
                match self { $(PackedType::$variant => $name),* }
            }
            /// (values, bytes) of one block.
            pub fn block(self) -> (usize, usize) {
                match self { $(PackedType::$variant => ($values, $bytes)),* }
            }
        }
    };
}
types! {
    Iq2Xxs, 16, "IQ2_XXS", 256, 66, "256 values: eights from a codebook of 256, signs with even parity";
    Iq2Xs, 17, "IQ2_XS", 256, 74, "256 values: eights from a codebook of 512, signs with even parity";
    Iq3Xxs, 18, "IQ3_XXS", 256, 98, "256 values: fours from a codebook of 256, signs with even parity";
    Iq1S, 19, "IQ1_S", 256, 50, "256 values: eights of -1, 0, 1 from a codebook of 2048, and a shift";
    Iq3S, 21, "IQ3_S", 256, 110, "256 values: fours from a codebook of 512, signs";
    Iq2S, 22, "IQ2_S", 256, 82, "256 values: eights from a codebook of 1024, signs";
    Iq1M, 29, "IQ1_M", 256, 56, "256 values: as IQ1_S, with a shift for each eight and a scale in four pieces";
    Tq1_0, 34, "TQ1_0", 256, 54, "256 values of -1, 0, 1, five to a byte";
    Tq2_0, 35, "TQ2_0", 256, 66, "256 values of -1, 0, 1, four to a byte";
    Mxfp4, 39, "MXFP4", 32, 17, "32 floats of 4 bits and a power of two";
    Nvfp4, 40, "NVFP4", 64, 36, "64 floats of 4 bits, with a float of 8 bits for each 16";
}

/// The codebooks, two bits a number (IQ3: four), as the gguf package has them in hexadecimal: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ1.
const GRIDS: &[u8; 9216] = include_bytes!("grids.bin");

/// What 4-bit floats are, doubled.
const E2M1: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

struct Grids {
    iq2_xxs: Vec<f32>,
    iq2_xs: Vec<f32>,
    iq2_s: Vec<f32>,
    iq3_xxs: Vec<f32>,
    iq3_s: Vec<f32>,
    iq1: Vec<f32>,
}

fn grids() -> &'static Grids {
    static ALL: OnceLock<Grids> = OnceLock::new();
    ALL.get_or_init(|| {
        let twos = |from: usize, n: usize, map: [f32; 3]| -> Vec<f32> {
            let of_byte = move |b: u8| (0..4).map(move |j| map[(b >> (2 * j) & 3).min(2) as usize]);
            GRIDS[from..from + n].iter().flat_map(|&b| of_byte(b)).collect()
        };
        let fours = |from: usize, n: usize, map: [f32; 8]| -> Vec<f32> {
            let of_byte = move |b: u8| [b & 7, b >> 4 & 7].map(|i| map[i as usize]);
            GRIDS[from..from + n].iter().flat_map(|&b| of_byte(b)).collect()
        };
        let two = [8.0, 25.0, 43.0];
        Grids {
            iq2_xxs: twos(0, 512, two),
            iq2_xs: twos(512, 1024, two),
            iq2_s: twos(1536, 2048, two),
            iq3_xxs: fours(3584, 512, [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0]),
            iq3_s: fours(4096, 1024, [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0]),
            iq1: twos(5120, 4096, [-1.0, 0.0, 1.0]),
        }
    })
}

impl PackedType {
    /// From ggml's number.
    pub fn from_number(n: u32) -> Option<PackedType> {
        PackedType::ALL.iter().copied().find(|t| t.number() == n)
    }

    /// out = the values of `bytes`; both whole blocks, as many of one as of the other.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        let ((values, size), grids) = (self.block(), grids());
        for (b, o) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(values)) {
            match self {
                PackedType::Iq2Xxs => iq2_xxs(b, o, &grids.iq2_xxs),
                PackedType::Iq2Xs => iq2_xs(b, o, &grids.iq2_xs),
                PackedType::Iq2S => iq2_s(b, o, &grids.iq2_s),
                PackedType::Iq3Xxs => iq3_xxs(b, o, &grids.iq3_xxs),
                PackedType::Iq3S => iq3_s(b, o, &grids.iq3_s),
                PackedType::Iq1S => iq1_s(b, o, &grids.iq1),
                PackedType::Iq1M => iq1_m(b, o, &grids.iq1),
                PackedType::Tq1_0 => tq1_0(b, o),
                PackedType::Tq2_0 => tq2_0(b, o),
                PackedType::Mxfp4 => mxfp4(b, o),
                PackedType::Nvfp4 => nvfp4(b, o),
            }
        }
    }
}

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}
fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}
fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}
/// Number i of packed nibbles, the low one of each byte first.
fn nibble(b: &[u8], i: usize) -> u8 {
    b[i / 2] >> (i % 2 * 4) & 15
}
/// Eight signs of seven bits: the last makes their number even.
fn even(bits: u32) -> u8 {
    let bits = bits as u8 & 127;
    bits | ((bits.count_ones() as u8 & 1) << 7)
}
/// out = scale * grid, with the signs that are set in `signs`.
fn signed(out: &mut [f32], scale: f32, grid: &[f32], signs: u8) {
    for (j, (o, g)) in out.iter_mut().zip(grid).enumerate() {
        let x = scale * g;
        *o = if signs >> j & 1 == 1 { -x } else { x };
    }
}

fn iq2_xxs(b: &[u8], out: &mut [f32], grid: &[f32]) {
    let d = half_at(b, 0);
    for (g, out) in out.chunks_exact_mut(32).enumerate() {
        let (codes, word) = (&b[2 + 8 * g..6 + 8 * g], u32_at(b, 6 + 8 * g));
        let scale = d * (0.5 + (word >> 28) as f32) * 0.25;
        for (i, out) in out.chunks_exact_mut(8).enumerate() {
            signed(out, scale, &grid[codes[i] as usize * 8..], even(word >> (7 * i)));
        }
    }
}

fn iq2_xs(b: &[u8], out: &mut [f32], grid: &[f32]) {
    let d = half_at(b, 0);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let code = u16_at(b, 2 + 2 * i);
        let scale = d * (0.5 + nibble(&b[66..], i / 2) as f32) * 0.25;
        signed(out, scale, &grid[(code & 511) as usize * 8..], even((code >> 9) as u32));
    }
}

fn iq2_s(b: &[u8], out: &mut [f32], grid: &[f32]) {
    let d = half_at(b, 0);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let high = b[66 + i / 4] >> (i % 4 * 2) & 3;
        let code = b[2 + i] as usize | (high as usize) << 8;
        let scale = d * (0.5 + nibble(&b[74..], i / 2) as f32) * 0.25;
        signed(out, scale, &grid[code * 8..], b[34 + i]);
    }
}

fn iq3_xxs(b: &[u8], out: &mut [f32], grid: &[f32]) {
    let d = half_at(b, 0);
    for (g, out) in out.chunks_exact_mut(32).enumerate() {
        let word = u32_at(b, 66 + 4 * g);
        let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
        for (i, out) in out.chunks_exact_mut(4).enumerate() {
            let signs = even(word >> (i / 2 * 7)) >> (i % 2 * 4);
            signed(out, scale, &grid[b[2 + 8 * g + i] as usize * 4..][..4], signs);
        }
    }
}

fn iq3_s(b: &[u8], out: &mut [f32], grid: &[f32]) {
    let d = half_at(b, 0);
    for (i, out) in out.chunks_exact_mut(4).enumerate() {
        let high = b[66 + i / 8] >> (i % 8) & 1;
        let code = b[2 + i] as usize | (high as usize) << 8;
        let scale = d * (1 + 2 * nibble(&b[106..], i / 8)) as f32;
        signed(out, scale, &grid[code * 4..][..4], b[74 + i / 2] >> (i % 2 * 4));
    }
}

/// What is added to the numbers of IQ1's codebook.
const SHIFT: f32 = 0.125;

fn shifted(out: &mut [f32], scale: f32, grid: &[f32], down: bool) {
    let shift = if down { -SHIFT } else { SHIFT };
    out.iter_mut().zip(grid).for_each(|(o, g)| *o = scale * (g + shift));
}

fn iq1_s(b: &[u8], out: &mut [f32], grid: &[f32]) {
    let d = half_at(b, 0);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let word = u16_at(b, 34 + i / 4 * 2);
        let scale = d * (2 * (word >> 12 & 7) + 1) as f32;
        let code = b[2 + i] as usize | (((word >> (i % 4 * 3)) & 7) as usize * 256);
        shifted(out, scale, &grid[code * 8..], word >> 15 == 1);
    }
}

fn iq1_m(b: &[u8], out: &mut [f32], grid: &[f32]) {
    let words: [u16; 4] = from_fn(|i| u16_at(b, 48 + 2 * i));
    let d = words.iter().enumerate().fold(0, |d, (i, w)| d | (w & 0xf000) >> (12 - 4 * i));
    let d = f16::from_bits(d).to_f32();
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let scale = d * (2 * (words[i / 8] >> (i / 2 % 4 * 3) & 7) + 1) as f32;
        let high = nibble(&b[32..], i);
        let code = b[i] as usize | ((high & 7) as usize * 256);
        shifted(out, scale, &grid[code * 8..], high & 8 == 8);
    }
}

fn tq1_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 52);
    // Bytes hold their digits as a fraction of 256, to the base of three.
    let digit = |byte: u8, power: u8| ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as f32 - 1.0;
    let powers = [1u8, 3, 9, 27, 81];
    let parts = [(&b[..32], &powers[..]), (&b[32..48], &powers[..]), (&b[48..52], &powers[..4])];
    let digits = parts.into_iter().flat_map(|(bytes, powers)| {
        powers.iter().flat_map(move |&p| bytes.iter().map(move |&q| digit(q, p)))
    });
    out.iter_mut().zip(digits).for_each(|(o, x)| *o = d * x);
}

fn tq2_0(b: &[u8], out: &mut [f32]) {
    let d = half_at(b, 64);
    for (i, o) in out.iter_mut().enumerate() {
        *o = d * ((b[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3) as f32 - 1.0);
    }
}

fn mxfp4(b: &[u8], out: &mut [f32]) {
    let e = u32::from(b[0]);
    let d = f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 });
    for (i, o) in out.iter_mut().enumerate() {
        *o = d * E2M1[(b[1 + i % 16] >> (i / 16 * 4) & 15) as usize];
    }
}

fn nvfp4(b: &[u8], out: &mut [f32]) {
    for (g, out) in out.chunks_exact_mut(16).enumerate() {
        let (exponent, mantissa) = (i32::from(b[g] >> 3 & 15), f32::from(b[g] & 7));
        let scale = match (b[g], exponent) {
            (0 | 0x7f, _) => 0.0,
            (_, 0) => mantissa * 2f32.powi(-10),
            _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 8),
        };
        for (i, o) in out.iter_mut().enumerate() {
            *o = scale * E2M1[(b[4 + 8 * g + i % 8] >> (i / 8 * 4) & 15) as usize];
        }
    }
}
