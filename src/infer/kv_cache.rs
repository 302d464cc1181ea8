//! The key/value cache: one allocation a layer, cut into slots of one token; a row owns a contiguous range.
use anyhow::{Context, Result};

use crate::{
    device::Device,
    tensor::{Arena, DType, Tensor},
};

/// Keys and values of every layer.
pub struct KvCache {
    /// (slots, NKV * HS) of each layer.
    pub layers: Vec<(Tensor, Tensor)>,
    /// Free ranges (start, length), sorted by start, never touching.
    free: Vec<(usize, usize)>,
    slots: usize,
}

impl KvCache {
    /// Room for `slots` tokens, of type `dtype` on `device`.
    pub fn new(
        layers: usize,
        kv_size: usize,
        slots: usize,
        device: &Device,
        dtype: DType,
    ) -> Result<KvCache> {
        let (layers, _) = Arena::build("key/value cache", device, |a| {
            let mut one = |name: &str| a.tensor(name, dtype, &[slots, kv_size]);
            (0..layers).map(|_| (one("k_cache"), one("v_cache"))).collect::<Vec<_>>()
        })
        .with_context(|| format!("a cache of {slots} tokens"))?;
        Ok(KvCache { layers, free: vec![(0, slots)], slots })
    }

    /// Tokens that fit when empty.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The first slot of a fresh range of `length`, or `None` while no gap is large enough.
    pub fn allocate(&mut self, length: usize) -> Option<usize> {
        let i = self.free.iter().position(|&(_, n)| n >= length)?;
        let (start, n) = self.free[i];
        if n == length {
            self.free.remove(i);
        } else {
            self.free[i] = (start + length, n - length)
        }
        Some(start)
    }

    /// Gives a range back.
    pub fn release(&mut self, start: usize, length: usize) {
        let i = self.free.partition_point(|&(s, _)| s < start);
        self.free.insert(i, (start, length));
        if i + 1 < self.free.len() && start + length == self.free[i + 1].0 {
            self.free[i].1 += self.free.remove(i + 1).1;
        }
        if i > 0 && self.free[i - 1].0 + self.free[i - 1].1 == start {
            self.free[i - 1].1 += self.free.remove(i).1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_never_overlap_and_all_return(lengths in proptest::collection::vec(1usize..20, 1..60)) {
            let mut cache = KvCache::new(1, 1, 64, &Device::Cpu, DType::F32).unwrap();
            let mut held: Vec<(usize, usize)> = vec![];
            for (i, &n) in lengths.iter().enumerate() {
                if i % 3 == 2 && !held.is_empty() {
                    let (start, n) = held.remove(i % held.len());
                    cache.release(start, n);
                }
                if let Some(start) = cache.allocate(n) {
                    prop_assert!(start + n <= 64);
                    prop_assert!(held.iter().all(|&(s, l)| start + n <= s || s + l <= start));
                    held.push((start, n));
                }
            }
            held.into_iter().for_each(|(start, n)| cache.release(start, n));
            prop_assert_eq!(cache.free, vec![(0, 64)]);
        }
    }
}
