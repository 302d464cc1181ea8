//! What sampling and beam search share: exponentials as integers and selection by bits. Both are the kernels' own arithmetic
//! (`kernels/include/choose.cuh`), so that a CPU and a GPU choose the same tokens from the same logits, bit for bit: only single
//! IEEE operations, and sums of integers, which no order can change.

// A comparison that is false for NaN is meant; the polynomial's coefficients are the kernels' literals.
#![allow(clippy::neg_cmp_op_on_partial_ord, clippy::approx_constant, clippy::excessive_precision)]

/// log2(e): weights are powers of two.
pub(crate) const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// Fraction bits of the weights of a row of `vocab`: 40, or as many as let the sum of all weights fit 62 bits.
pub(crate) fn weight_bits(vocab: usize) -> i32 {
    62 - (usize::BITS - vocab.leading_zeros()).clamp(22, 61) as i32
}

/// 2^(t + bits), t <= 0, rounded down; 0 below 2^-bits and for NaN. Within 2e-7 of the exact value, relative, or of 1.
#[inline(always)]
pub(crate) fn weight(t: f32, bits: i32) -> u64 {
    if !(t >= -bits as f32) {
        return 0;
    }
    let toward_zero = t as i32;
    let n = toward_zero - (toward_zero as f32 > t) as i32;
    let f = t - n as f32;
    // 2^f on 0..1, exact at both ends: a least-squares fit of relative error 2e-9 before rounding.
    let mut p = 0.000_217_150_1_f32;
    for c in [0.001_244_088_1, 0.009_678_064, 0.055_484_153, 0.240_229_52, 0.693_147, 1.0] {
        p = p * f + c;
    }
    // n + bits is in 0..=40: a normal power of two, and the product is exact.
    (p * f32::from_bits(((n + bits + 127) as u32) << 23)) as u64
}

/// The largest value, NaN if there is a NaN or +inf among them; -inf of nothing.
pub(crate) fn top(values: &[f32]) -> f32 {
    let mut top = f32::NEG_INFINITY;
    let mut bad = false;
    for &x in values {
        top = if x > top { x } else { top };
        bad |= !(x < f32::INFINITY);
    }
    if bad { f32::NAN } else { top }
}

/// An integer that grows with x; both zeros are one value, NaN is the largest.
#[inline(always)]
pub(crate) fn order_key(x: f32) -> u32 {
    if x.is_nan() {
        return u32::MAX;
    }
    let bits = (x + 0.0).to_bits();
    bits ^ if bits >> 31 == 1 { u32::MAX } else { 1 << 31 }
}

/// Where the weights, added from the largest key down, reach a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// The key at which they do.
    pub key: u32,
    /// The weights of all keys above it.
    pub above: u64,
}

/// The cut at `target` (from 1 to the sum of all weights) of the (key, weight) that `items` gives, four times over.
pub(crate) fn select<I: Iterator<Item = (u32, u64)>>(items: impl Fn() -> I, target: u64) -> Cut {
    let mut cut = Cut { key: 0, above: 0 };
    for shift in [24, 16, 8, 0] {
        let mut sums = [0u64; 256];
        for (key, weight) in items() {
            // Keys that agree with the digits found so far.
            if u64::from(key ^ cut.key) >> (shift + 8) == 0 {
                sums[(key >> shift & 255) as usize] += weight;
            }
        }
        let mut digit = 255;
        while digit > 0 && cut.above + sums[digit] < target {
            cut.above += sums[digit];
            digit -= 1;
        }
        cut.key |= (digit as u32) << shift;
    }
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_exponentials() {
        assert_eq!(weight_bits(1 << 17), 40);
        assert_eq!(weight_bits(1 << 30), 31);
        for bits in [31, 40] {
            let one = 2f64.powi(bits);
            assert_eq!(weight(0.0, bits), 1 << bits);
            for i in 0..200_000 {
                let t = -(i as f32) * (bits as f32 + 2.0) / 200_000.0;
                let (got, want) = (weight(t, bits) as f64 / one, (t as f64).exp2());
                assert!((got - want).abs() <= 2e-7 * want + 1.0 / one, "{t} {got} {want}");
            }
            for t in [-1e-30, -1e-9, -bits as f32, f32::NEG_INFINITY, f32::NAN, -1e30] {
                let want = if t > -1.0 { 1 << bits } else { (t == -bits as f32) as u64 };
                assert_eq!(weight(t, bits), want, "{t}");
            }
        }
    }

    #[test]
    fn keys_order_floats_and_the_cut_is_where_a_sort_says() {
        let ordered = [f32::NEG_INFINITY, -2.0, -1e-40, 0.0, 1e-40, 3.0, f32::INFINITY, f32::NAN];
        assert!(ordered.windows(2).all(|w| order_key(w[0]) < order_key(w[1])));
        assert_eq!(order_key(-0.0), order_key(0.0));
        // 40 different keys in no order, most of them often, some weights 0.
        let items: Vec<(u32, u64)> =
            (0..500u32).map(|i| ((i * 7919 % 40).wrapping_mul(0x0801_0203), (i * 31 % 9) as u64)).collect();
        let total: u64 = items.iter().map(|i| i.1).sum();
        let mut sorted = items.clone();
        sorted.sort_by_key(|i| std::cmp::Reverse(i.0));
        for target in 1..=total {
            let (mut reached, mut key) = (0, 0);
            for i in &sorted {
                if reached < target {
                    key = i.0;
                }
                reached += i.1;
            }
            let above = items.iter().filter(|i| i.0 > key).map(|i| i.1).sum();
            assert_eq!(select(|| items.iter().copied(), target), Cut { key, above });
        }
    }

    #[test]
    fn the_top_shows_what_is_not_a_number() {
        assert_eq!(top(&[1.0, 3.0, f32::NEG_INFINITY]), 3.0);
        assert!(top(&[1.0, f32::NAN]).is_nan() && top(&[f32::INFINITY, 1.0]).is_nan());
        assert_eq!(top(&[]), f32::NEG_INFINITY);
    }
}
