//! Common n-grams of two sequences, exactly and without hashing: an n-gram is a number.
use std::collections::HashMap;

/// For one order: n-grams of the hypothesis, of the reference, of both (each as often as in the poorer side).
pub type Matches = [u64; 3];

/// The matches of orders 1 to `N` of two sequences of numbers below `2^(128 / N) - 1`.
///
/// Each position becomes one key: its next `N` items, the first in the highest bits, zeros behind the end. Sorted keys are sorted for every
/// order at once, because the n-grams are their prefixes; equal prefixes meet in a merge.
pub fn matches<const N: usize>(hypothesis: &[u32], reference: &[u32]) -> [Matches; N] {
    let bits = 128 / N as u32;
    let (h, r) = (keys(hypothesis, N, bits), keys(reference, N, bits));
    let mut out = [[0; 3]; N];
    for (i, of) in out.iter_mut().enumerate() {
        let shift = bits * (N - 1 - i) as u32;
        let count = |items: &[u32]| items.len().saturating_sub(i) as u64;
        *of = [count(hypothesis), count(reference), common(&h, &r, shift, bits)];
    }
    out
}

fn keys(items: &[u32], order: usize, bits: u32) -> Vec<u128> {
    let mask = u128::MAX >> (128 - bits * order as u32);
    let mut out = vec![0; items.len()];
    let mut key = 0u128;
    for (i, item) in items.iter().enumerate().rev() {
        key = (key >> bits | u128::from(item + 1) << (bits * (order as u32 - 1))) & mask;
        out[i] = key;
    }
    out.sort_unstable();
    out
}

fn common(h: &[u128], r: &[u128], shift: u32, bits: u32) -> u64 {
    let whole = (1u128 << bits) - 1;
    let (mut i, mut j, mut both) = (0, 0, 0);
    while let (Some(a), Some(b)) = (h.get(i), r.get(j)) {
        let (a, b) = (a >> shift, b >> shift);
        // A prefix that ends in a zero runs over the end of its sequence.
        both += u64::from(a == b && a & whole != 0);
        i += usize::from(a <= b);
        j += usize::from(b <= a);
    }
    both
}

/// Numbers for words, the same for equal words of all texts it is given.
#[derive(Default)]
pub struct WordIds<'a>(HashMap<&'a str, u32, std::hash::BuildHasherDefault<Fnv>>);

impl<'a> WordIds<'a> {
    /// The numbers of these words.
    pub fn of(&mut self, words: impl Iterator<Item = &'a str>) -> Vec<u32> {
        words
            .map(|word| {
                let next = self.0.len() as u32;
                *self.0.entry(word).or_insert(next)
            })
            .collect()
    }
}

/// FNV-1a: for a few short words quicker than the standard hash.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl std::hash::Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::matches;

    fn naive(h: &[u32], r: &[u32], n: usize) -> [u64; 3] {
        let mut known: HashMap<&[u32], u64> = HashMap::new();
        r.windows(n).for_each(|gram| *known.entry(gram).or_default() += 1);
        let mut both = 0;
        for gram in h.windows(n) {
            if let Some(left) = known.get_mut(gram).filter(|left| **left > 0) {
                *left -= 1;
                both += 1;
            }
        }
        [h.windows(n).count() as u64, r.windows(n).count() as u64, both]
    }

    proptest! {
        #[test]
        fn matches_are_those_of_a_map(
            h in proptest::collection::vec(0..4u32, 0..30),
            r in proptest::collection::vec(prop_oneof![0..4u32, Just(0x10_ffff)], 0..30),
        ) {
            let (six, four) = (matches::<6>(&h, &r), matches::<4>(&h, &r));
            for n in 1..=6 {
                prop_assert_eq!(six[n - 1], naive(&h, &r, n));
                prop_assert!(n > 4 || four[n - 1] == naive(&h, &r, n));
            }
        }
    }
}
