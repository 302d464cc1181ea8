//! Products of blocks with activations of 8 bits (`--activations int8`), in integers.
//!
//! The activations of a row are quantised by groups of as many values as the weight's blocks have: q = round(x / d) with d = max |x| / 127, as GGUF's
//! engines do. A dot product is then, block by block, d times an integer sum, exact, and the few roundings of f32 that join the blocks:
//!
//! - 256 values (the K formats): weight i = d scale[i / 16] code[i] + m offset[i / 16]; dot = Σ d d_a Σ scale code q + m d_a Σ offset (Σ q) (Q6_K: the offset is 32
//!   times the scale, and is taken off in integers);
//! - 32 values: weight i = d code[i] + m; dot = Σ d d_a Σ code q + m d_a Σ q.
//!
//! Block i goes to the sum i mod 4 of four; those of d and of m are apart.
//!
//! Against the product with the activations as they are, the error of one of K terms is at most |w| d_a / 2, that is |w| max |x| / 254 with the largest
//! activation of the group; the errors are independent, so that a dot product's is about sqrt(K / 12) of that. What is rounded is rounded once a block, and the sums of integers are
//! exact in any order: every set of instructions, and any number of rows, gives the same bits.
mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles;

use std::ops::Range;

pub(crate) use activations::IntRows;

use super::{GgmlType, HostBlocks};
use crate::ops::simd::Level;

/// Values that share one scale in the activations of a product with `kind`; `None`: there is no such product.
pub(crate) fn group_of(kind: GgmlType) -> Option<usize> {
    match kind {
        GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q5_0 | GgmlType::Q5_1 | GgmlType::Q8_0 => Some(32),
        GgmlType::Q4K | GgmlType::Q5K | GgmlType::Q6K => Some(256),
        _ => None,
    }
}

/// What to say of a format that has none.
pub(crate) fn only() -> &'static str {
    "products with activations in int8 read Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K; leave --activations out"
}

/// out (rows, cols) = the rows `rows` of `a` times the rows `cols` of `w`, a matrix of a kind that has a group.
pub(crate) fn dots(out: &mut [f32], a: &IntRows, rows: Range<usize>, w: &HostBlocks, cols: Range<usize>) {
    let unit = pays_on_tiles(rows.len()).then_some(Unit::Tiles);
    dots_at(unit.unwrap_or(Unit::Vectors(Level::best())), out, a, rows, w, cols);
}

/// What computes.
#[derive(Clone, Copy, Debug)]
enum Unit {
    Vectors(Level),
    Tiles,
}

/// Whether so many rows are multiplied on the tile unit, which unpacks 16 rows of weights before it begins. Fewer than these read each weight once, from memory, and one row after
/// another is faster there: decoding 8 rows took 1.5 times as long on tiles.
pub(crate) fn pays_on_tiles(rows: usize) -> bool {
    rows >= 32 && crate::device::vectors::has_int8_tiles()
}

fn dots_at(unit: Unit, out: &mut [f32], a: &IntRows, rows: Range<usize>, w: &HostBlocks, cols: Range<usize>) {
    let (values, size) = w.kind().block();
    // What the kernels below take for granted when they read without asking.
    assert!(group_of(w.kind()) == Some(a.group()) && w.row(0).len() == a.len() / values * size);
    assert!(out.len() == rows.len() * cols.len() && rows.end <= a.rows());
    match unit {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Unit::Tiles => tiles::dots(out, a, rows, w, cols),
        #[cfg(target_arch = "x86_64")]
        Unit::Vectors(Level::Avx512 | Level::Avx2) => avx2::dots(out, a, rows, w, cols),
        _ => portable::dots(out, a, rows, w, cols),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        data::random::RowRandom,
        ops::quantize::{BlockFormat, Blocks, RowOrder},
        tensor::{Activations, DType},
    };

    /// Rows of weights: a tile, and one more than another.
    const WEIGHTS: usize = 34;
    const ROWS: usize = 50;

    #[test]
    fn all_units_give_the_same_bits() {
        for kind in GgmlType::ALL.iter().copied().filter(|kind| group_of(*kind).is_some()) {
            let (group, size) = kind.block();
            let k = if group == 32 { 32 * 7 } else { 256 * 6 };
            let mut random = RowRandom::new(1, "levels", kind.name());
            let mut bytes: Vec<u8> =
                (0..WEIGHTS * k / group * size).map(|_| random.below(256) as u8).collect();
            for block in bytes.chunks_exact_mut(size) {
                // Scales that are no infinity and no NaN, wherever they are.
                let floats: &[usize] = if kind == GgmlType::Q6K { &[209] } else { &[1, 3] };
                floats.iter().for_each(|at| block[*at] &= 0xbb);
            }
            let format = BlockFormat {
                kind,
                shape: [WEIGHTS, k],
                order: RowOrder::Straight,
                compute: DType::F32,
                activations: Activations::Int8,
            };
            let blocks = Blocks::from_bytes("w", &bytes, format).unwrap();
            let mut a: Vec<f32> = (0..ROWS * k).map(|_| random.uniform() as f32 - 0.5).collect();
            // Rows of nothing but subnormal numbers, with one giant, of zeros: as any other row.
            a[k..2 * k].iter_mut().for_each(|x| *x *= 1e-38);
            a[2 * k + 3] = 1e30;
            a[3 * k..4 * k].fill(0.0);
            let a = IntRows::new(&a, k, group);
            let w = blocks.host().unwrap();
            let found = |unit, rows: Range<usize>| {
                let mut out = vec![0.0; rows.len() * (WEIGHTS - 1)];
                dots_at(unit, &mut out, &a, rows, &w, 1..WEIGHTS);
                out
            };
            let units = Level::available().map(Unit::Vectors);
            let units: Vec<Unit> =
                units.chain(crate::device::vectors::has_int8_tiles().then_some(Unit::Tiles)).collect();
            // One tile, two, and parts of them.
            for rows in [1..6, 0..16, 2..30, 0..ROWS] {
                let first = found(Unit::Vectors(Level::Portable), rows.clone());
                assert!(first.iter().all(|x| x.is_finite()), "{kind:?}");
                for &unit in &units {
                    assert_eq!(found(unit, rows.clone()), first, "{kind:?} {unit:?} {rows:?}");
                }
            }
        }
    }
}
