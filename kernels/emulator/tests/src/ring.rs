//! The Hopper product of kernels/ring.cu and its faults.
use sdrrl_emulator::Config;

use crate::{Memory, arg, fresh, geometry, memory, run, tensor_map, values};

const STEPS: usize = 5;

/// The faults in the order of their numbers, as the kernels' names end; 0 is the correct kernel.
pub const FAULTS: [&str; 23] = [
    "NONE",
    "WRONG_PARITY",
    "FEW_BYTES",
    "NO_INIT",
    "MANY_ARRIVALS",
    "SKIP_FULL",
    "FREE_EARLY",
    "NO_WGMMA_FENCE",
    "NO_WGMMA_WAIT",
    "OTHER_DESCRIPTOR",
    "WRONG_SBO",
    "WRONG_SWIZZLE",
    "NO_PROXY_FENCE",
    "NO_BARRIER_AFTER_FENCE",
    "REUSED_BUFFER",
    "STORE_IN_FLIGHT",
    "MISALIGNED",
    "NOT_A_MAP",
    "OUTSIDE",
    "BARRIER_BEFORE_FENCE",
    "MANY_BYTES",
    "NO_INIT_FENCE",
    "OFF_ATOM",
];

fn bf16s(n: usize, seed: usize) -> Vec<half::bf16> {
    (0..n).map(|i| half::bf16::from_f32(((i * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0)).collect()
}

/// The product as the kernel of this fault computes it.
pub fn ring(fault: usize, config: &Config) -> Result<Vec<half::bf16>, String> {
    let k = 64 * STEPS;
    let (a, b) = (memory(&bf16s(64 * k, 1)), memory(&bf16s(64 * k, 2)));
    let c = fresh::<half::bf16>(64 * 64);
    let map = |m: &Memory, cols: usize| {
        tensor_map(m.address(), 2, &[cols as u64, 64], &[2 * cols as u64], &[64, 64], 3)
    };
    let args = [arg(map(&a, k)?), arg(map(&b, k)?), arg(map(&c, 64)?), arg(STEPS as i32)];
    run(&format!("wgmma_ring_{}", FAULTS[fault]), geometry(1, 256, 41984), &args, config)?;
    Ok(values(&c))
}

/// The largest difference from f64, relative to 1 + |value|; infinity if there is a NaN.
pub fn ring_error(got: &[half::bf16]) -> f64 {
    let k = 64 * STEPS;
    let (a, b) = (bf16s(64 * k, 1), bf16s(64 * k, 2));
    let mut worst = 0.0f64;
    for i in 0..64 {
        for j in 0..64 {
            let want: f64 = (0..k).map(|p| a[i * k + p].to_f64() * b[j * k + p].to_f64()).sum();
            let error = (got[i * 64 + j].to_f64() - want).abs() / (1.0 + want.abs());
            worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
        }
    }
    worst
}

/// What [`ring_error`] stays below if the product is right.
pub const RING_TOLERANCE: f64 = 5e-3;
