//! The global gradient norm: the root of the sum of squares over all tensors.
use anyhow::Result;
use rayon::prelude::*;

use crate::tensor::Tensor;

const BLOCK: usize = 1 << 14;

/// ‖grads‖₂ over all elements. Blocks of a fixed size are summed in f64 and added in order: no thread count changes a bit.
pub fn global_norm(grads: &[&Tensor]) -> Result<f64> {
    let mut total = 0.0;
    for grad in grads {
        let sums: Vec<f64> = grad.f32()?.par_chunks(BLOCK).map(sum_of_squares).collect();
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
