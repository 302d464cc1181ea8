//! The emulator as a driver.
use anyhow::{Context, Result, anyhow};
use sdrrl_emulator as emulator;

use super::launch::{Geometry, Kernel, TensorMap};

pub(super) fn allocate(bytes: usize) -> Result<emulator::Memory> {
    emulator::Memory::new(bytes).context("out of memory")
}

/// # Safety
/// As [`super::gpu::Gpu::launch`].
pub(super) unsafe fn launch(kernel: Kernel, at: Geometry, args: &[Vec<u8>]) -> Result<()> {
    let at = emulator::Geometry {
        grid: at.grid,
        block: [at.block, 1, 1],
        cluster: [at.cluster, 1, 1],
        shared_bytes: at.shared_bytes,
    };
    let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
    // SAFETY: the caller's promise.
    unsafe { emulator::launch_here(kernel.name, at, &args, false) }.map_err(|why| anyhow!(why))
}

pub(super) fn tensor_map(base: u64, dims: &[u64], strides: &[u64], tile: &[u32]) -> Result<TensorMap> {
    emulator::tensor_map(base, 2, dims, strides, tile, 3).map_err(|why| anyhow!(why))
}
