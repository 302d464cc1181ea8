//! What a driver does below a [`Gpu`](super::Gpu): CUDA's and the emulator's are alike from here on up.
use anyhow::Result;

use super::{
    cuda::Event,
    launch::{Geometry, Kernel, TensorMap},
};

/// What runs in the order in which it was asked for: a device's default stream, in which it computes, and one beside it for what ranks exchange meanwhile. Copies, launches and frees
/// name it.
///
/// Copies wait for it and have ended on return, so that host memory need not outlive them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stream(usize);

impl Stream {
    /// A driver's own.
    pub(super) fn of<T>(handle: *mut T) -> Stream {
        Stream(handle as usize)
    }
    /// The driver's handle, null for the default stream.
    pub(super) fn handle<T>(self) -> *mut T {
        self.0 as *mut T
    }
}

/// A place in a stream; none where everything has happened when a call returns.
pub(crate) struct Mark(pub(super) Option<Event>);

/// A kind of GPU.
pub(super) trait Driver: Send + Sync {
    /// True if kernels run on the host.
    fn is_emulated(&self) -> bool;
    /// True if a kernel's error may come out of a later call.
    fn reports_late(&self) -> bool;
    /// Streaming multiprocessors.
    fn multiprocessors(&self) -> usize;

    /// `bytes` of memory, at least one; what is in it is undefined.
    fn allocate(&self, bytes: usize, stream: Stream) -> Result<Box<dyn DriverMemory>>;

    /// Starts a kernel with its parameters' bytes.
    ///
    /// # Safety
    /// As [`Gpu::launch`](super::Gpu).
    unsafe fn launch(&self, kernel: Kernel, at: Geometry, args: Vec<Vec<u8>>, stream: Stream) -> Result<()>;

    /// A stream that runs beside the default one, for as long as the program runs; the default one itself where everything has happened when a call returns.
    fn stream(&self) -> Result<Stream>;

    /// Stands behind everything that `stream` holds by now.
    fn mark(&self, stream: Stream) -> Result<Mark>;

    /// What is put into `stream` from here on comes after the mark.
    fn after(&self, mark: &Mark, stream: Stream) -> Result<()>;

    /// Waits for everything on the device.
    fn synchronize(&self) -> Result<()>;

    /// Seconds that what `run` puts into `stream` takes, by the device's clock.
    fn time(&self, run: &mut dyn FnMut() -> Result<()>, stream: Stream) -> Result<f64>;

    /// Runs `run` inside a profiler's range.
    fn profile(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<()>;

    /// Describes a matrix of bf16 in boxes of `tile`, 128-byte swizzle; dimensions innermost first, strides in bytes.
    fn tensor_map(&self, base: u64, dims: &[u64], strides: &[u64], tile: &[u32]) -> Result<TensorMap>;
}

/// An allocation of a driver, freed on drop. Offsets and lengths lie inside it by the caller's shapes.
pub(super) trait DriverMemory: Send {
    /// Of its first byte.
    fn address(&self) -> u64;
    /// Copies host bytes to `offset`.
    fn write(&self, offset: usize, from: &[u8], stream: Stream) -> Result<()>;
    /// Copies from `offset` to the host, after everything in `stream`.
    fn read(&self, offset: usize, to: &mut [u8], stream: Stream) -> Result<()>;
    /// Sets `n` bytes from `offset` to 0.
    fn zero(&self, offset: usize, n: usize, stream: Stream) -> Result<()>;
}
