//! Where a row runs, and its inputs: the same numbers on every device.
use anyhow::Result;
use half::bf16;
use rayon::prelude::*;
use sdrrl::{
    device::Device,
    tensor::{DType, Reader, Tensor},
};

/// Rows at each end of a long result that the CPU computes too.
const ENDS: usize = 16;

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
        self.values(name, self.acts, dims, fan, self.rounded == DType::Bf16, &|i| i)
    }
    /// The same for results whose rows depend on no other: on the CPU, which only holds them against a GPU's, the first and the last `ENDS` rows.
    pub fn normal_ends(&self, name: &str, [n, k]: [usize; 2], fan: usize) -> Result<Tensor> {
        let dims = [self.row_count(n), k];
        let index = |i: usize| self.row(i / k, n) * k + i % k;
        self.values(name, self.acts, &dims, fan, self.rounded == DType::Bf16, &index)
    }
    fn row_count(&self, n: usize) -> usize {
        if self.device == Device::Cpu { n.min(2 * ENDS) } else { n }
    }
    /// Which of `n` rows the `i`th of `normal_ends` is.
    pub fn row(&self, i: usize, n: usize) -> usize {
        if i >= ENDS { i + n - self.row_count(n) } else { i }
    }
    /// What to compare of results (N, ..) of `normal_ends`: all (a shorter one is the beginning of a longer one), then the last rows.
    pub fn ends(&self, results: &[&Tensor], n: usize) -> Result<Vec<Reader>> {
        if n <= 2 * ENDS {
            return Ok(results.iter().map(|&t| t.reader()).collect());
        }
        let rows = self.row_count(n);
        let first = if self.device == Device::Cpu { ENDS } else { n };
        let readers = results.iter().map(|t| t.reader());
        readers.flat_map(|t| [t.rows(0..first), t.rows(rows - ENDS..rows)]).collect()
    }
    /// The same in f32 whatever the activations are: adapters.
    pub fn normal_f32_of(&self, name: &str, dims: &[usize], fan: usize) -> Result<Tensor> {
        self.values(name, DType::F32, dims, fan, false, &|i| i)
    }
    /// The same of variance 1: norms, moments, logits.
    pub fn normal_f32(&self, name: &str, dims: &[usize]) -> Result<Tensor> {
        self.normal_f32_of(name, dims, 1)
    }
    /// `index` says which number of an endless row of them an element is.
    fn values(
        &self,
        name: &str,
        dtype: DType,
        dims: &[usize],
        fan: usize,
        rounded: bool,
        index: &(dyn Fn(usize) -> usize + Sync),
    ) -> Result<Tensor> {
        let seed =
            name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3));
        let factor = (3.0 / fan as f32).sqrt();
        let value = |i: usize| {
            // SplitMix64; the sum of four uniforms of its 16-bit parts is near enough to a normal number.
            let mut z = seed.wrapping_add((index(i) as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
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
