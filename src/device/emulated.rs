//! The emulator as a driver: everything has happened when a call returns.
use std::time::Instant;

use crate::error::Error;
use anyhow::{Result, anyhow};
use sdrrl_emulator as emulator;

use super::{
    driver::{Driver, DriverMemory, Mark, Stream},
    launch::{Geometry, Kernel, TensorMap},
};

pub(super) struct Emulator;

impl Driver for Emulator {
    fn is_emulated(&self) -> bool {
        true
    }
    fn reports_late(&self) -> bool {
        false
    }
    /// Blocks run one after another: as if it had few, so that persistent blocks take several tiles.
    fn multiprocessors(&self) -> usize {
        2
    }

    fn allocate(&self, bytes: usize, _: Stream) -> Result<Box<dyn DriverMemory>> {
        let memory = emulator::Memory::new(bytes).ok_or_else(|| Error::out_of_memory("out of memory"))?;
        Ok(Box::new(memory))
    }

    unsafe fn launch(&self, kernel: Kernel, at: Geometry, args: Vec<Vec<u8>>, _: Stream) -> Result<()> {
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

    fn stream(&self) -> Result<Stream> {
        Ok(Stream::default())
    }

    fn mark(&self, _: Stream) -> Result<Mark> {
        Ok(Mark(None))
    }

    fn after(&self, _: &Mark, _: Stream) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn time(&self, run: &mut dyn FnMut() -> Result<()>, _: Stream) -> Result<f64> {
        let begun = Instant::now();
        run()?;
        Ok(begun.elapsed().as_secs_f64())
    }

    fn profile(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        run()
    }

    fn tensor_map(&self, base: u64, dims: &[u64], strides: &[u64], tile: &[u32]) -> Result<TensorMap> {
        emulator::tensor_map(base, 2, dims, strides, tile, 3).map_err(|why| anyhow!(why))
    }
}

impl DriverMemory for emulator::Memory {
    fn address(&self) -> u64 {
        emulator::Memory::address(self)
    }
    fn write(&self, offset: usize, from: &[u8], _: Stream) -> Result<()> {
        emulator::Memory::write(self, offset, from);
        Ok(())
    }
    fn read(&self, offset: usize, to: &mut [u8], _: Stream) -> Result<()> {
        emulator::Memory::read(self, offset, to);
        Ok(())
    }
    fn zero(&self, offset: usize, n: usize, _: Stream) -> Result<()> {
        emulator::Memory::zero(self, offset, n);
        Ok(())
    }
}
