//! The global gradient norm: the root of the sum of squares over all tensors.
#![allow(unsafe_code)]
use anyhow::{Result, ensure};

use super::{
    kernels,
    launch::{Grid, check_dtype, gpu_of},
};
use crate::{
    device::Device,
    ops::parallel::map_tasks,
    tensor::{DType, Tensor},
};

const BLOCK: usize = 1 << 14;

/// Gradients laid out for taking their norm again and again.
pub struct GradNorm {
    grads: Vec<Tensor>,
    gpu: Option<OnGpu>,
}

struct OnGpu {
    /// (tensors, 6) words of grad_norm.cu's `Entry`.
    entries: Tensor,
    /// (blocks, 2) words: an f64 for each block.
    partial: Tensor,
    /// 2 words: an f64.
    total: Tensor,
    blocks: usize,
}

impl GradNorm {
    /// All F32 and on one device.
    pub fn new(grads: Vec<Tensor>) -> Result<GradNorm> {
        let all: Vec<&Tensor> = grads.iter().collect();
        check_dtype("global_norm", DType::F32, &all)?;
        let Some(gpu) = gpu_of("global_norm", &all)? else { return Ok(GradNorm { grads, gpu: None }) };
        let (mut words, mut blocks): (Vec<u32>, usize) = (vec![], 0);
        for g in &grads {
            for x in [g.address()?, g.len() as u64, blocks as u64] {
                words.extend([x as u32, (x >> 32) as u32]);
            }
            blocks += g.len().div_ceil(kernels::squares_block());
        }
        ensure!(
            words.len() * 4 == grads.len() * kernels::squares_entry_bytes(),
            "grad_norm.cu's Entry is another"
        );
        let device = Device::Cuda(gpu);
        let new = |name: &str, n: usize| Tensor::zeros_on(&device, name, DType::U32, &[n.max(1)]);
        let mut entries = new("grad_norm_table", words.len())?;
        entries.write_u32(&words)?;
        let (partial, total) = (new("grad_norm_partial", 2 * blocks)?, new("grad_norm_total", 2)?);
        Ok(GradNorm { grads, gpu: Some(OnGpu { entries, partial, total, blocks }) })
    }

    /// ‖grads‖₂ over all elements. Fixed blocks are summed in f64 and added in order: no thread count changes a bit.
    pub fn norm(&mut self) -> Result<f64> {
        let Some(g) = &mut self.gpu else { return global_norm(&self.grads.iter().collect::<Vec<_>>()) };
        let Some(gpu) = g.entries.gpu() else { return Ok(0.0) };
        // SAFETY: `new` made the table, whose tensors are kept alive by `grads`.
        unsafe {
            kernels::squares_many(gpu, Grid::new(g.blocks), &mut g.partial, &g.entries, self.grads.len())?;
            kernels::sum_partials(gpu, Grid::new(1), &mut g.total, &g.partial, g.blocks)?;
        }
        let words = g.total.to_u32_vec()?;
        Ok(f64::from_bits(words[0] as u64 | (words[1] as u64) << 32).sqrt())
    }
}

/// ‖grads‖₂ over all elements, on the CPU.
pub fn global_norm(grads: &[&Tensor]) -> Result<f64> {
    let mut total = 0.0;
    for grad in grads {
        let values = grad.f32()?;
        let block = |i: usize| sum_of_squares(&values[i * BLOCK..values.len().min((i + 1) * BLOCK)]);
        let sums = map_tasks(values.len().div_ceil(BLOCK), values.len(), block);
        total += sums.iter().sum::<f64>();
    }
    Ok(total.sqrt())
}

fn sum_of_squares(block: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let (body, tail) = block.split_at(block.len() / 8 * 8);
    for x in body.chunks_exact(8) {
        for i in 0..8 {
            lanes[i] += x[i] as f64 * x[i] as f64;
        }
    }
    lanes.iter().sum::<f64>() + tail.iter().map(|&x| x as f64 * x as f64).sum::<f64>()
}
