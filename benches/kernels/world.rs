//! Where a row runs, and its inputs: the same numbers on every device.
use anyhow::Result;
use half::bf16;
use rayon::prelude::*;
use sdrrl::{
    device::Device,
    tensor::{DType, Tensor},
};

/// A device and the type of its activations: the CPU computes in f32 what a GPU may hold in bf16.
pub struct World {
    /// Where tensors are made.
    pub device: Device,
    /// Of activations and weights.
    pub acts: DType,
    /// What inputs are rounded to, so that both sides start from the same numbers.
    pub rounded: DType,
}

impl World {
    /// Normal numbers of variance 1 / `fan`, in the type of the activations. A tensor of fewer rows is the beginning of one of more.
    pub fn normal(&self, name: &str, dims: &[usize], fan: usize) -> Result<Tensor> {
        self.values(name, self.acts, dims, fan, self.rounded == DType::Bf16)
    }
    /// The same in f32 whatever the activations are: adapters.
    pub fn normal_f32_of(&self, name: &str, dims: &[usize], fan: usize) -> Result<Tensor> {
        self.values(name, DType::F32, dims, fan, false)
    }
    /// The same of variance 1: norms, moments, logits.
    pub fn normal_f32(&self, name: &str, dims: &[usize]) -> Result<Tensor> {
        self.normal_f32_of(name, dims, 1)
    }
    fn values(&self, name: &str, dtype: DType, dims: &[usize], fan: usize, rounded: bool) -> Result<Tensor> {
        let seed =
            name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3));
        let factor = (3.0 / fan as f32).sqrt();
        let value = |i: usize| {
            // SplitMix64; the sum of four uniforms of its 16-bit parts is near enough to a normal number.
            let mut z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            let sum: u64 = (0..4).map(|k| z >> (16 * k) & 0xffff).sum();
            let x = (sum as f32 / 65536.0 - 2.0) * factor;
            if rounded { bf16::from_f32(x).to_f32() } else { x }
        };
        let n: usize = dims.iter().product();
        let values: Vec<f32> = (0..n).into_par_iter().map(value).collect();
        let mut t = Tensor::zeros_on(&self.device, name, dtype, dims)?;
        t.write_f32(&values)?;
        Ok(t)
    }
    /// Integers i -> f(i).
    pub fn integers(&self, name: &str, n: usize, f: impl Fn(usize) -> usize) -> Result<Tensor> {
        let values: Vec<u32> = (0..n).map(|i| f(i) as u32).collect();
        Tensor::from_u32(name, &[n], &values)?.to_device(&self.device)
    }
    /// An output in the type of the activations.
    pub fn out(&self, dims: &[usize]) -> Result<Tensor> {
        Tensor::zeros_on(&self.device, "out", self.acts, dims)
    }
    /// An output in f32.
    pub fn out_f32(&self, dims: &[usize]) -> Result<Tensor> {
        Tensor::zeros_on(&self.device, "out", DType::F32, dims)
    }
    /// An output of integers.
    pub fn out_u32(&self, dims: &[usize]) -> Result<Tensor> {
        Tensor::zeros_on(&self.device, "out", DType::U32, dims)
    }
}
