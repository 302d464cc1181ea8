//! The key/value cache: one allocation a layer, cut into slots of one token; a row owns a contiguous range.
use anyhow::{Context, Result};

use crate::{
    device::Device,
    models::slots::Slots,
    tensor::{Arena, DType, Tensor},
};

/// Keys and values of every layer.
pub struct KvCache {
    /// (slots, NKV * HS) of each layer.
    pub(crate) layers: Vec<(Tensor, Tensor)>,
    free: Slots,
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
        let lay_out = |a: &mut Arena| KvCache::lay_out(a, layers, kv_size, slots, dtype);
        let (layers, _) = Arena::build("key/value cache", device, lay_out)
            .with_context(|| format!("a cache of {slots} tokens"))?;
        Ok(KvCache { layers, free: Slots::new(slots) })
    }

    /// What [`KvCache::new`] allocates, bytes.
    pub fn bytes(layers: usize, kv_size: usize, slots: usize, dtype: DType) -> usize {
        Arena::measure(|a| drop(KvCache::lay_out(a, layers, kv_size, slots, dtype)))
    }

    fn lay_out(
        a: &mut Arena,
        layers: usize,
        kv_size: usize,
        slots: usize,
        dtype: DType,
    ) -> Vec<(Tensor, Tensor)> {
        let mut one = |name: &str| a.tensor(name, dtype, &[slots, kv_size]);
        (0..layers).map(|_| (one("k_cache"), one("v_cache"))).collect()
    }

    /// The first slot of a fresh range of `length`, or `None` while no gap is large enough.
    pub fn allocate(&mut self, length: usize) -> Option<usize> {
        self.free.take(length)
    }

    /// Gives a range back.
    pub fn release(&mut self, start: usize, length: usize) {
        self.free.give_back(start, length);
    }
}
