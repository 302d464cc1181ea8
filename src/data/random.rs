//! Counter-based randomness: every choice is a pure hash of (seed, stage, row id, counter), so that no order of work, thread
//! count or restart can change it.
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The number of `row` in `stage`, for generators that take a number.
pub fn row_id(stage: &str, row: &str) -> u64 {
    xxh3_64_with_seed(row.as_bytes(), xxh3_64_with_seed(stage.as_bytes(), 0))
}

/// A stream of random numbers that belongs to one row of one stage.
#[derive(Clone, Debug)]
pub struct RowRandom {
    key: u64,
    counter: u64,
}

impl RowRandom {
    /// The stream of `row` in `stage` under `seed`.
    pub fn new(seed: u64, stage: &str, row: &str) -> RowRandom {
        let key = xxh3_64_with_seed(row.as_bytes(), xxh3_64_with_seed(stage.as_bytes(), seed));
        RowRandom { key, counter: 0 }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.counter += 1;
        xxh3_64_with_seed(&self.counter.to_le_bytes(), self.key)
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in 0..n (n > 0), by multiply-shift.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.next_u64() as u128 * n as u128) >> 64) as usize
    }

    /// In place Fisher-Yates shuffle.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_reproducible_and_differ_by_row_and_stage() {
        let first = |stage: &str, row: &str| RowRandom::new(42, stage, row).next_u64();
        assert_eq!(first("a", "r1"), first("a", "r1"));
        assert_ne!(first("a", "r1"), first("a", "r2"));
        assert_ne!(first("a", "r1"), first("b", "r1"));
    }

    #[test]
    fn uniform_has_the_mean_and_range_of_a_uniform() {
        let mut random = RowRandom::new(1, "stage", "row");
        let draws: Vec<f64> = (0..20_000).map(|_| random.uniform()).collect();
        assert!(draws.iter().all(|x| (0.0..1.0).contains(x)));
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
    }
}
