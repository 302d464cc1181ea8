//! What the machine can do at best, measured: reading memory, copying it, and large products.
use anyhow::Result;
use rayon::prelude::*;

use super::{Row, Runs, timed};
use crate::{
    data::random::RowRandom,
    device::Device,
    ops::gemm::{self, Layout},
    tensor::{DType, Tensor},
};

/// Bytes that no cache holds.
const LARGE: usize = 256 << 20;

/// GB/s of reading (processor) or copying (GPU, where each byte is read and written) memory that no cache holds.
///
/// # Errors
/// Too little memory.
pub fn memory(device: &Device, runs: Runs) -> Result<Row> {
    if device.gpu().is_none() {
        let data = vec![1u64; LARGE / 8];
        let seconds = timed(device, runs, || {
            let sum: u64 =
                data.par_chunks(1 << 16).map(|c| c.iter().fold(0u64, |a, x| a.wrapping_add(*x))).sum();
            std::hint::black_box(sum);
            Ok(())
        })?;
        return Ok(Row::rate("ceiling: reading memory", "GB/s", LARGE as f64 / 1e9, &seconds));
    }
    let elements = LARGE / 4;
    let from = Tensor::zeros_on(device, "from", DType::F32, &[elements])?;
    let mut to = Tensor::zeros_on(device, "to", DType::F32, &[elements])?;
    let seconds = timed(device, runs, || to.copy_from(&from))?;
    Ok(Row::rate("ceiling: copying memory", "GB/s", 2.0 * LARGE as f64 / 1e9, &seconds))
}

/// GFLOP/s of a large square product of f32 activations with weights of `dtype` (on a GPU activations are of that type too): the best that our own products reach.
///
/// # Errors
/// Too little memory.
pub fn product(device: &Device, dtype: DType, runs: Runs) -> Result<Row> {
    let n = match device {
        Device::Cpu => 1024,
        _ if device.gpu().is_some_and(|g| g.is_emulated()) => 64,
        _ => 4096,
    };
    let activations = if *device == Device::Cpu { DType::F32 } else { dtype };
    let a = random(device, "a", activations, &[n, n])?;
    let b = random(device, "b", dtype, &[n, n])?;
    let mut out = Tensor::zeros_on(device, "out", activations, &[n, n])?;
    let seconds = timed(device, runs, || gemm::gemm(&mut out, &a, &b, Layout::NT, 1.0, false))?;
    let name = format!("ceiling: product {n} x {n} x {n}, {dtype:?} weights").to_lowercase();
    Ok(Row::rate(name, "GFLOP/s", 2.0 * (n * n * n) as f64 / 1e9, &seconds))
}

/// Values between -1 and 1.
pub(crate) fn random(device: &Device, name: &str, dtype: DType, dims: &[usize]) -> Result<Tensor> {
    let mut random = RowRandom::new(1, "bench", name);
    let values: Vec<f32> =
        (0..dims.iter().product()).map(|_| (random.uniform() * 2.0 - 1.0) as f32).collect();
    let mut t = Tensor::zeros(name, dtype, dims)?;
    t.write_f32(&values)?;
    t.to_device(device)
}
