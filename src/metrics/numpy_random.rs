//! NumPy's `default_rng`: PCG64 (O'Neill 2014) seeded by SeedSequence, and the two draws that sacrebleu makes of it, number for number.

/// A generator of 64-bit numbers, halved where 32 are wanted.
pub struct NumpyRandom {
    state: u128,
    increment: u128,
    half: Option<u32>,
}

const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;

impl NumpyRandom {
    /// `numpy.random.default_rng(seed)`.
    pub fn new(seed: u64) -> NumpyRandom {
        let words = seed_sequence(seed);
        let pair = |i: usize| u128::from(words[i]) << 64 | u128::from(words[i + 1]);
        let increment = pair(2) << 1 | 1;
        let mut out = NumpyRandom { state: 0, increment, half: None };
        out.step();
        out.state = out.state.wrapping_add(pair(0));
        out.step();
        out
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    fn next_u32(&mut self) -> u32 {
        if let Some(half) = self.half.take() {
            return half;
        }
        self.step();
        let next = ((self.state >> 64) as u64 ^ self.state as u64).rotate_right((self.state >> 122) as u32);
        self.half = Some((next >> 32) as u32);
        next as u32
    }

    /// One number of `integers(0, below)` or `choice(below)`, without bias (Lemire 2019). `below` is at least 1.
    pub fn below(&mut self, below: u32) -> u32 {
        if below <= 1 {
            return 0;
        }
        let mut product = u64::from(self.next_u32()) * u64::from(below);
        if (product as u32) < below {
            let threshold = (u32::MAX - (below - 1)) % below;
            while (product as u32) < threshold {
                product = u64::from(self.next_u32()) * u64::from(below);
            }
        }
        (product >> 32) as u32
    }

    /// The numbers of `integers(2, size=count, dtype=bool)`, 32 in each word, the first in the lowest bit.
    pub fn bits(&mut self, count: usize) -> Vec<u32> {
        (0..count.div_ceil(32)).map(|_| self.next_u32()).collect()
    }
}

/// Four 64-bit words of NumPy's SeedSequence.
fn seed_sequence(seed: u64) -> [u64; 4] {
    let mut factor = 0x43b0_d7e5u32;
    let mut hash = |mut value: u32| {
        value ^= factor;
        factor = factor.wrapping_mul(0x931e_8875);
        value = value.wrapping_mul(factor);
        value ^ value >> 16
    };
    let mut pool = [seed as u32, (seed >> 32) as u32, 0, 0].map(&mut hash);
    for from in 0..4 {
        for to in (0..4).filter(|to| *to != from) {
            let mixed =
                pool[to].wrapping_mul(0xca01_f9dd).wrapping_sub(hash(pool[from]).wrapping_mul(0x4973_f715));
            pool[to] = mixed ^ mixed >> 16;
        }
    }
    let mut factor = 0x8b51_f9ddu32;
    let mut word = |i: usize| {
        let mut value = pool[i % 4] ^ factor;
        factor = factor.wrapping_mul(0x58f3_8ded);
        value = value.wrapping_mul(factor);
        u64::from(value ^ value >> 16)
    };
    std::array::from_fn(|i| word(2 * i) | word(2 * i + 1) << 32)
}

#[cfg(test)]
mod tests {
    use super::NumpyRandom;

    /// Drawn by NumPy 2.4.6.
    #[test]
    fn draws_are_numpys() {
        let mut random = NumpyRandom::new(12345);
        let drawn: Vec<u32> = (0..10).map(|_| random.below(1012)).collect();
        assert_eq!(drawn, [707, 230, 798, 320, 206, 806, 650, 684, 1000, 395]);
        let bits = NumpyRandom::new(12345).bits(20);
        let drawn: Vec<u32> = (0..20).map(|i| bits[0] >> i & 1).collect();
        assert_eq!(drawn, [1, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
    }
}
