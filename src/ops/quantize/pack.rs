//! Blocks out of values as ggml makes them without an importance matrix (`quantize_row_*_ref` in ggml-quants.c): Q5_0 and Q5_1 by their extremes, K-quants by a search for the scale (and
//! minimum) of least weighted squared error.
//!
//! The groups of a super-block are searched side by side, one a lane. Every group takes its own additions in ggml's order, and nothing is fused, so that the bytes are those
//! of ggml built for plain x86-64 (its generic code), at every vector level.

use half::{bf16, f16};

use super::formats::{GgmlType, inverse};
use crate::ops::{
    arrays::from_fn,
    simd::{Kernel, Simd},
};

/// bytes = the blocks of `values`, both whole blocks of `kind`.
pub(super) struct Pack<'a> {
    pub kind: GgmlType,
    pub values: &'a [f32],
    pub bytes: &'a mut [u8],
}

impl Kernel for Pack<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (n, size) = self.kind.block();
        for (x, b) in self.values.chunks_exact(n).zip(self.bytes.chunks_exact_mut(size)) {
            match self.kind {
                GgmlType::F32 => b.copy_from_slice(&x[0].to_le_bytes()),
                GgmlType::F16 => b.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes()),
                GgmlType::Bf16 => b.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes()),
                GgmlType::Q5_0 => q5_0(x, b),
                GgmlType::Q5_1 => q5_1(x, b),
                GgmlType::Q4K => q4_k(x, b),
                GgmlType::Q5K => q5_k(x, b),
                GgmlType::Q6K => q6_k(x, b),
                // [`GgmlType::is_made`] is asked before.
                _ => return,
            }
        }
    }
}

/// The nearest integer, ties to even, of a number below 2^22: ggml's `nearest_int`.
#[inline(always)]
fn nearest(x: f32) -> i32 {
    ((x + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

#[inline(always)]
fn half_to(b: &mut [u8], at: usize, x: f32) -> f32 {
    let rounded = f16::from_f32(x);
    b[at..at + 2].copy_from_slice(&rounded.to_le_bytes());
    rounded.to_f32()
}

/// Numbers of 5 bits: the fifth ones in a word at `at`, then nibbles, the first 16 low.
#[inline(always)]
fn five_bits(b: &mut [u8], at: usize, number: impl Fn(usize) -> u8) {
    let mut fifth = 0u32;
    for i in 0..16 {
        let (low, high) = (number(i), number(i + 16));
        b[at + 4 + i] = low & 15 | high << 4;
        fifth |= ((low >> 4) as u32) << i | ((high >> 4) as u32) << (i + 16);
    }
    b[at..at + 4].copy_from_slice(&fifth.to_le_bytes());
}

#[inline(always)]
fn q5_0(x: &[f32], b: &mut [u8]) {
    // The first value of the largest magnitude becomes -16.
    let most = x.iter().fold(0.0f32, |a, &x| if a.abs() < x.abs() { x } else { a });
    let d = most / -16.0;
    let inverse = inverse(d);
    half_to(b, 0, d);
    five_bits(b, 2, |i| ((x[i] * inverse + 16.5) as i8).min(31) as u8);
}

#[inline(always)]
fn q5_1(x: &[f32], b: &mut [u8]) {
    let least = x.iter().fold(f32::MAX, |a, &x| if x < a { x } else { a });
    let most = x.iter().fold(f32::MIN, |a, &x| if x > a { x } else { a });
    let d = (most - least) / 31.0;
    let inverse = inverse(d);
    half_to(b, 0, d);
    half_to(b, 2, least);
    five_bits(b, 4, |i| ((x[i] - least) * inverse + 0.5) as u8);
}

/// Of 8 groups of 32 values: scale, minus the minimum (>= 0), and each value's number, [value][group].
struct Affine {
    scale: [f32; 8],
    minus: [f32; 8],
    number: [[i32; 8]; 32],
}

/// ggml's `make_qkx2_quants` of 8 groups with numbers 0..=most: beginning with the range of the values, scales are tried that would put `most + first`, `most + first + 0.1` and so on, up to
/// `steps` of them, numbers into it; for each the least-squares scale and minimum (at most 0) are taken if their weighted squared error is lower. Weights are rms + |x|.
#[inline(always)]
fn affine(x: &[[f32; 8]; 32], most: i32, first: f32, steps: usize) -> Affine {
    let mut squares = [0.0f32; 8];
    for v in x {
        (0..8).for_each(|j| squares[j] += v[j] * v[j]);
    }
    let rms: [f32; 8] = from_fn(|j| (squares[j] / 32.0).sqrt());
    let weight: [[f32; 8]; 32] = from_fn(|i| from_fn(|j| rms[j] + x[i][j].abs()));
    let (mut least, mut top, mut sum_w) = (x[0], x[0], weight[0]);
    let mut sum_x: [f32; 8] = from_fn(|j| sum_w[j] * x[0][j]);
    for i in 1..32 {
        for j in 0..8 {
            least[j] = if x[i][j] < least[j] { x[i][j] } else { least[j] };
            top[j] = if x[i][j] > top[j] { x[i][j] } else { top[j] };
            sum_w[j] += weight[i][j];
            sum_x[j] += weight[i][j] * x[i][j];
        }
    }
    least = from_fn(|j| if least[j] > 0.0 { 0.0 } else { least[j] });
    let flat: [bool; 8] = from_fn(|j| top[j] == least[j]);
    let floor = least;
    let mut number = [[0i32; 8]; 32];
    let inv: [f32; 8] = from_fn(|j| most as f32 / (top[j] - least[j]));
    let mut scale: [f32; 8] = from_fn(|j| 1.0 / inv[j]);
    numbers(&mut number, x, &inv, &least, most);
    let mut best = error(x, &weight, &number, &scale, &least);
    for step in 0..=steps {
        let wide = first + 0.1f32 * step as f32 + most as f32;
        let inv: [f32; 8] = from_fn(|j| wide / (top[j] - least[j]));
        let mut tried = [[0i32; 8]; 32];
        numbers(&mut tried, x, &inv, &least, most);
        let (new_scale, new_least, solved) = least_squares(x, &weight, &tried, &sum_w, &sum_x);
        let found = error(x, &weight, &tried, &new_scale, &new_least);
        let better: [bool; 8] = from_fn(|j| solved[j] && found[j] < best[j]);
        if !better.iter().any(|&b| b) {
            continue;
        }
        for (n, t) in number.iter_mut().zip(&tried) {
            *n = from_fn(|j| if better[j] { t[j] } else { n[j] });
        }
        best = from_fn(|j| if better[j] { found[j] } else { best[j] });
        scale = from_fn(|j| if better[j] { new_scale[j] } else { scale[j] });
        least = from_fn(|j| if better[j] { new_least[j] } else { least[j] });
    }
    for n in &mut number {
        *n = from_fn(|j| if flat[j] { 0 } else { n[j] });
    }
    Affine {
        scale: from_fn(|j| if flat[j] { 0.0 } else { scale[j] }),
        minus: from_fn(|j| -(if flat[j] { floor[j] } else { least[j] })),
        number,
    }
}

#[inline(always)]
fn numbers(out: &mut [[i32; 8]; 32], x: &[[f32; 8]; 32], inv: &[f32; 8], least: &[f32; 8], most: i32) {
    for (o, v) in out.iter_mut().zip(x) {
        *o = from_fn(|j| nearest(inv[j] * (v[j] - least[j])).max(0).min(most));
    }
}

/// Σ w (scale number + least - x)² of each group.
#[inline(always)]
fn error(
    x: &[[f32; 8]; 32],
    weight: &[[f32; 8]; 32],
    number: &[[i32; 8]; 32],
    scale: &[f32; 8],
    least: &[f32; 8],
) -> [f32; 8] {
    let mut sum = [0.0f32; 8];
    for i in 0..32 {
        for j in 0..8 {
            let off = scale[j] * number[i][j] as f32 + least[j] - x[i][j];
            sum[j] += weight[i][j] * (off * off);
        }
    }
    sum
}

/// Scale and minimum of least weighted squared error for these numbers, and whether the equations have a solution.
#[inline(always)]
fn least_squares(
    x: &[[f32; 8]; 32],
    weight: &[[f32; 8]; 32],
    number: &[[i32; 8]; 32],
    sum_w: &[f32; 8],
    sum_x: &[f32; 8],
) -> ([f32; 8], [f32; 8], [bool; 8]) {
    let (mut l, mut l2, mut xl) = ([0.0f32; 8], [0.0f32; 8], [0.0f32; 8]);
    for i in 0..32 {
        for j in 0..8 {
            let n = number[i][j] as f32;
            let wn = weight[i][j] * n;
            l[j] += wn;
            l2[j] += wn * n;
            xl[j] += wn * x[i][j];
        }
    }
    let det: [f32; 8] = from_fn(|j| sum_w[j] * l2[j] - l[j] * l[j]);
    let scale: [f32; 8] = from_fn(|j| (sum_w[j] * xl[j] - sum_x[j] * l[j]) / det[j]);
    let least: [f32; 8] = from_fn(|j| (l2[j] * sum_x[j] - l[j] * xl[j]) / det[j]);
    (
        from_fn(|j| if least[j] > 0.0 { xl[j] / l2[j] } else { scale[j] }),
        from_fn(|j| if least[j] > 0.0 { 0.0 } else { least[j] }),
        from_fn(|j| det[j] > 0.0),
    )
}

/// The 16 bytes that Q4_K and Q5_K begin with (d, dmin, scales and minima of 6 bits), and the numbers 0..=most by [value][group].
#[inline(always)]
fn affine_block(x: &[f32], b: &mut [u8], most: i32, first: f32, steps: usize) -> [[i32; 8]; 32] {
    let by_group: [[f32; 8]; 32] = from_fn(|i| from_fn(|j| x[32 * j + i]));
    let Affine { scale, minus, mut number } = affine(&by_group, most, first, steps);
    let largest = |of: &[f32; 8]| of.iter().fold(0.0f32, |a, &x| if x > a { x } else { a });
    let (max_scale, max_minus) = (largest(&scale), largest(&minus));
    let inverse = |most: f32| if most > 0.0 { 63.0 / most } else { 0.0 };
    let (inv_scale, inv_minus) = (inverse(max_scale), inverse(max_minus));
    let of_scale: [u8; 8] = from_fn(|j| (nearest(inv_scale * scale[j]) as u8).min(63));
    let of_minus: [u8; 8] = from_fn(|j| (nearest(inv_minus * minus[j]) as u8).min(63));
    for j in 0..4 {
        b[4 + j] = of_scale[j] | of_scale[j + 4] >> 4 << 6;
        b[8 + j] = of_minus[j] | of_minus[j + 4] >> 4 << 6;
        b[12 + j] = of_scale[j + 4] & 15 | of_minus[j + 4] << 4;
    }
    let d = half_to(b, 0, max_scale / 63.0);
    let dmin = half_to(b, 2, max_minus / 63.0);
    let d: [f32; 8] = from_fn(|j| d * of_scale[j] as f32);
    let dm: [f32; 8] = from_fn(|j| dmin * of_minus[j] as f32);
    for (n, v) in number.iter_mut().zip(&by_group) {
        // Where the scale is nothing, the numbers of the search stay.
        *n = from_fn(|j| if d[j] == 0.0 { n[j] } else { nearest((v[j] + dm[j]) / d[j]).max(0).min(most) });
    }
    number
}

#[inline(always)]
fn q4_k(x: &[f32], b: &mut [u8]) {
    let number = affine_block(x, b, 15, -1.0, 20);
    for pair in 0..4 {
        for i in 0..32 {
            b[16 + 32 * pair + i] = number[i][2 * pair] as u8 | (number[i][2 * pair + 1] as u8) << 4;
        }
    }
}

#[inline(always)]
fn q5_k(x: &[f32], b: &mut [u8]) {
    let number = affine_block(x, b, 31, -0.5, 15);
    for i in 0..32 {
        b[16 + i] = (0..8).fold(0, |bits, j| bits | (number[i][j] as u8 >> 4) << j);
        for pair in 0..4 {
            b[48 + 32 * pair + i] =
                number[i][2 * pair] as u8 & 15 | (number[i][2 * pair + 1] as u8 & 15) << 4;
        }
    }
}

/// ggml's `make_qx_quants` of 16 groups of 16 values with numbers -32..=31 and weights x²: the value of largest magnitude would become -32; 18 other scales around that are tried. Gives the scales and
/// the numbers plus 32, [value][group].
#[inline(always)]
fn symmetric(x: &[[f32; 16]; 16]) -> ([f32; 16], [[i32; 16]; 16]) {
    const LEAST: f32 = 1e-15;
    let mut most = [0.0f32; 16];
    for v in x {
        most = from_fn(|j| if v[j].abs() > most[j].abs() { v[j] } else { most[j] });
    }
    let nothing: [bool; 16] = from_fn(|j| most[j].abs() < LEAST);
    let (mut scale, mut best) = ([0.0f32; 16], [0.0f32; 16]);
    let mut number = [[0i32; 16]; 16];
    for step in (0..=18).map(|i| [0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9][i]) {
        let inv: [f32; 16] = from_fn(|j| -(32.0 + 0.1f32 * step as f32) / most[j]);
        let tried: [[i32; 16]; 16] = from_fn(|i| from_fn(|j| nearest(inv[j] * x[i][j]).clamp(-32, 31)));
        let (mut xl, mut l2) = ([0.0f32; 16], [0.0f32; 16]);
        for i in 0..16 {
            for j in 0..16 {
                let (w, l) = (x[i][j] * x[i][j], tried[i][j] as f32);
                xl[j] += w * x[i][j] * l;
                l2[j] += w * l * l;
            }
        }
        // The first is taken as it is.
        let better: [bool; 16] = from_fn(|j| step == 0 || l2[j] > 0.0 && xl[j] * xl[j] > best[j] * l2[j]);
        if !better.iter().any(|&b| b) {
            continue;
        }
        for (n, t) in number.iter_mut().zip(&tried) {
            *n = from_fn(|j| if better[j] { t[j] + 32 } else { n[j] });
        }
        let new: [f32; 16] = from_fn(|j| if l2[j] != 0.0 { xl[j] / l2[j] } else { 0.0 });
        scale = from_fn(|j| if better[j] { new[j] } else { scale[j] });
        best = from_fn(|j| if better[j] { new[j] * xl[j] } else { best[j] });
    }
    for n in &mut number {
        *n = from_fn(|j| if nothing[j] { 0 } else { n[j] });
    }
    (from_fn(|j| if nothing[j] { 0.0 } else { scale[j] }), number)
}

#[inline(always)]
fn q6_k(x: &[f32], b: &mut [u8]) {
    let by_group: [[f32; 16]; 16] = from_fn(|i| from_fn(|j| x[16 * j + i]));
    let (scale, mut number) = symmetric(&by_group);
    let most = scale.iter().fold(0.0f32, |a, &x| if x.abs() > a.abs() { x } else { a });
    if most.abs() < 1e-15 {
        return b.fill(0);
    }
    let inv = -128.0 / most;
    let d = half_to(b, 208, 1.0 / inv);
    let of: [i8; 16] = from_fn(|j| nearest(inv * scale[j]).min(127) as i8);
    b[192..208].iter_mut().zip(of).for_each(|(b, s)| *b = s as u8);
    let d: [f32; 16] = from_fn(|j| d * of[j] as f32);
    for (n, v) in number.iter_mut().zip(&by_group) {
        *n = from_fn(|j| if d[j] == 0.0 { n[j] } else { nearest(v[j] / d[j]).clamp(-32, 31) + 32 });
    }
    let at = |i: usize| number[i % 16][i / 16] as u8;
    for half in 0..2 {
        for i in 0..32 {
            let n: [u8; 4] = from_fn(|quarter| at(128 * half + 32 * quarter + i));
            b[64 * half + i] = n[0] & 15 | n[2] << 4;
            b[64 * half + 32 + i] = n[1] & 15 | n[3] << 4;
            b[128 + 32 * half + i] = n[0] >> 4 | n[1] >> 4 << 2 | n[2] >> 4 << 4 | n[3] >> 4 << 6;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;
    use crate::ops::simd::{Level, run_at};

    fn bytes(hex: &Value) -> Vec<u8> {
        let hex = hex.as_str().unwrap();
        (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
    }

    /// Rows without a scale, without a minimum, with subnormal scales, with groups whose scale rounds to nothing (scripts/golden_quantize.py).
    #[test]
    fn blocks_are_those_that_ggml_makes_at_every_vector_level() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/made.json");
        let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let values: Vec<f32> =
            bytes(&golden["values"]).chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let mut seen = 0;
        for (number, want) in golden["types"].as_object().unwrap() {
            let (kind, want) = (GgmlType::from_number(number.parse().unwrap()).unwrap(), bytes(want));
            assert!(kind.is_made());
            let size = kind.block().1;
            for level in Level::available() {
                let mut got = vec![0u8; want.len()];
                match kind {
                    GgmlType::Q8_0 => kind.quantize(&values, &mut got),
                    _ => run_at(level, Pack { kind, values: &values, bytes: &mut got }),
                }
                let other = got.chunks(size).zip(want.chunks(size)).position(|(a, b)| a != b);
                assert_eq!(other, None, "{kind:?} {level:?}: the first block that differs");
            }
            seen += 1;
        }
        assert_eq!(seen, 6);
    }

    #[test]
    fn numbers_of_one_value_are_rounded_to_nearest() {
        let values = [1.0f32, -0.1, 65519.0, 1e-7, 3.0e38];
        for kind in [GgmlType::F32, GgmlType::F16, GgmlType::Bf16] {
            let (mut bytes, mut back) = (vec![0u8; 5 * kind.block().1], [0.0f32; 5]);
            kind.quantize(&values, &mut bytes);
            kind.dequantize(&bytes, &mut back);
            let want = values.map(|x| match kind {
                GgmlType::F16 => f16::from_f32(x).to_f32(),
                GgmlType::Bf16 => bf16::from_f32(x).to_f32(),
                _ => x,
            });
            assert_eq!(back, want, "{kind:?}");
        }
    }
}
