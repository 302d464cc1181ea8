//! Which part of a training step a process computes.
//!
//! Data order and normalisation are functions of the whole step, whatever the number of processes: each takes its share of the step's documents
//! and divides by the weight of all of them, so that the sum of the gradients over the processes is the step's gradient.
use anyhow::{Result, ensure};

/// One process of `size` that train one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    rank: usize,
    size: usize,
}

impl Default for World {
    fn default() -> World {
        World { rank: 0, size: 1 }
    }
}

/// Ranks of a world at most: more GPUs than any cluster has.
const MOST: usize = 1 << 16;

impl World {
    /// Process `rank`, counted from 0, of `size`. Errors if there is no such process, or if they are too many.
    pub fn new(rank: usize, size: usize) -> Result<World> {
        ensure!(size <= MOST, "a world of {size} ranks: {MOST} at most");
        ensure!(rank < size, "there is no rank {rank} in a world of {size}");
        Ok(World { rank, size })
    }
    /// This process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }
    /// Processes.
    pub fn size(&self) -> usize {
        self.size
    }
    /// Every process of this world, in order.
    pub fn ranks(&self) -> impl Iterator<Item = World> + use<> {
        let size = self.size;
        (0..size).map(move |rank| World { rank, size })
    }
    /// The documents of a step that this process takes: every `size`th, from the `rank`th on, in their order.
    pub fn share(&self, documents: &[usize]) -> Vec<usize> {
        documents.iter().skip(self.rank).step_by(self.size).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_is_taken_by_one_rank_and_shares_differ_by_one_at_most() {
        for n in [0, 1, 5, 8, 13] {
            let documents: Vec<usize> = (0..n).map(|i| i * 7 % 31).collect();
            for size in 1..=6 {
                let shares: Vec<Vec<usize>> =
                    World { rank: 0, size }.ranks().map(|w| w.share(&documents)).collect();
                assert_eq!(shares.len(), size);
                let interleaved: Vec<usize> = (0..n).map(|i| shares[i % size][i / size]).collect();
                assert_eq!(interleaved, documents);
                assert!(shares.iter().all(|s| s.len() == n / size || s.len() == n / size + 1), "{shares:?}");
            }
        }
        assert_eq!(World::default().share(&[4, 2, 9]), [4, 2, 9]);
        assert!(World::new(2, 2).is_err() && World::new(0, 0).is_err());
        assert_eq!(World::new(1, 2).unwrap().rank(), 1);
    }
}
