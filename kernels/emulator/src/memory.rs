//! Device memory of the emulator.
use std::ptr::NonNull;

use super::{emu_copy_in, emu_fill_zero, emu_free, emu_malloc};

/// Device memory: between guard pages, filled with NaN, its size known to the checks.
pub struct Memory {
    at: NonNull<u8>,
    bytes: usize,
}
// SAFETY: plain bytes; who reads and writes when is the caller's affair, as with any device memory.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `bytes` of fresh memory; `None` if the machine has not that much.
    pub fn new(bytes: usize) -> Option<Memory> {
        // SAFETY: any size is fine.
        NonNull::new(unsafe { emu_malloc(bytes.max(1)) }.cast()).map(|at| Memory { at, bytes })
    }
    /// The address that kernels get.
    pub fn address(&self) -> u64 {
        self.at.as_ptr() as u64
    }
    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    /// Copies `from` to `offset`. Panics outside the buffer.
    pub fn write(&self, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= self.bytes, "write past the end of device memory");
        // SAFETY: in bounds.
        unsafe { emu_copy_in(self.at.as_ptr().add(offset).cast(), from.as_ptr().cast(), from.len()) };
    }
    /// Copies from `offset` to `to`. Panics outside the buffer.
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        assert!(offset + to.len() <= self.bytes, "read past the end of device memory");
        // SAFETY: in bounds; the two do not overlap, being different allocations.
        unsafe { std::ptr::copy_nonoverlapping(self.at.as_ptr().add(offset), to.as_mut_ptr(), to.len()) };
    }
    /// Sets `n` bytes from `offset` to 0. Panics outside the buffer.
    pub fn zero(&self, offset: usize, n: usize) {
        assert!(offset + n <= self.bytes, "fill past the end of device memory");
        // SAFETY: in bounds.
        unsafe { emu_fill_zero(self.at.as_ptr().add(offset).cast(), n) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made by emu_malloc.
        unsafe { emu_free(self.at.as_ptr().cast()) }
    }
}
