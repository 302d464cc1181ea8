//! One GPU: memory, copies and launches, over a driver that is CUDA's or the emulator.
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result, ensure};

use super::{
    cuda,
    driver::{Driver, DriverMemory, Stream},
    emulated::Emulator,
    launch::{Arg, Geometry, Kernel, KernelError, Launch, TensorMap},
};

/// A GPU with one stream: everything runs in the order in which it was asked for.
pub struct Gpu {
    driver: Arc<dyn Driver>,
    stream: Stream,
    name: String,
    arch: u32,
    /// Wait after every launch, so that a fault names its kernel (`SDRRL_SYNC_LAUNCHES=1`).
    wait: bool,
    held: Arc<Held>,
    /// The latest launches, which an error that comes later may belong to.
    recent: Mutex<VecDeque<Launch>>,
}

/// Launches that an error found later still names.
const REMEMBERED: usize = 4;

/// An allocation on the GPU, freed on drop.
pub(crate) struct GpuMemory {
    place: Box<dyn DriverMemory>,
    bytes: usize,
    held: Arc<Held>,
}

/// Bytes that are held, and were at the most.
#[derive(Default)]
struct Held {
    now: AtomicUsize,
    peak: AtomicUsize,
}

impl GpuMemory {
    pub(crate) fn address(&self) -> u64 {
        self.place.address()
    }
}

impl Drop for GpuMemory {
    fn drop(&mut self) {
        self.held.now.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Gpu {
    /// The CUDA device `ordinal`, its kernels loaded. Errors say what is missing: kernels in this build, a driver, a device.
    pub fn cuda(ordinal: usize) -> Result<Gpu> {
        let driver = cuda::Cuda::open(ordinal)?;
        let (name, arch) = (driver.name.clone(), driver.arch);
        let wait = std::env::var_os("SDRRL_SYNC_LAUNCHES").is_some_and(|v| v != "0");
        Ok(Gpu::over(driver, name, arch, wait))
    }

    /// The emulated one: an sm_90.
    pub fn emulated() -> Gpu {
        Gpu::over(Arc::new(Emulator), "emulated GPU".into(), 90, false)
    }

    fn over(driver: Arc<dyn Driver>, name: String, arch: u32, wait: bool) -> Gpu {
        let stream = Stream::default();
        Gpu { driver, stream, name, arch, wait, held: Arc::default(), recent: Mutex::default() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// 80, 90, ...: compute capability without the point.
    pub fn arch(&self) -> u32 {
        self.arch
    }
    /// True if kernels run on the host.
    pub fn is_emulated(&self) -> bool {
        self.driver.is_emulated()
    }
    /// Streaming multiprocessors.
    pub fn multiprocessors(&self) -> usize {
        self.driver.multiprocessors()
    }

    /// `bytes` of zeroed memory.
    pub(crate) fn allocate(&self, bytes: usize, what: &str) -> Result<GpuMemory> {
        let advice = || {
            format!(
                "{what} needs {:.1} MiB on {}; lower the batch size, the sequence length or the model's dtype",
                bytes as f64 / 1048576.0,
                self.name
            )
        };
        let place = self.driver.allocate(bytes, self.stream).with_context(advice)?;
        let now = self.held.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.held.peak.fetch_max(now, Ordering::Relaxed);
        Ok(GpuMemory { place, bytes, held: self.held.clone() })
    }
    /// Bytes of device memory that this program held at the most.
    pub fn peak_bytes(&self) -> usize {
        self.held.peak.load(Ordering::Relaxed)
    }
    /// Copies host bytes to `offset`.
    pub(crate) fn write(&self, to: &GpuMemory, offset: usize, from: &[u8]) -> Result<()> {
        self.or_latest(to.place.write(offset, from, self.stream))
    }
    /// Copies from `offset` to the host, after everything that was launched.
    pub(crate) fn read(&self, from: &GpuMemory, offset: usize, to: &mut [u8]) -> Result<()> {
        self.or_latest(from.place.read(offset, to, self.stream))
    }
    /// Sets `n` bytes from `offset` to 0.
    pub(crate) fn zero(&self, to: &GpuMemory, offset: usize, n: usize) -> Result<()> {
        self.or_latest(to.place.zero(offset, n, self.stream))
    }

    /// Starts a kernel.
    ///
    /// # Safety
    /// `args` are the kernel's parameters in number, order and type, and pointers cover what it touches.
    pub(crate) unsafe fn launch(&self, kernel: Kernel, at: Geometry, args: &[Arg]) -> Result<()> {
        if at.grid.contains(&0) {
            return Ok(());
        }
        let bytes: Vec<Vec<u8>> = args.iter().map(Arg::bytes).collect();
        let launch = Launch { kernel, at, args: args.to_vec() };
        // SAFETY: the caller's promise.
        let done = unsafe { self.driver.launch(kernel, at, bytes, self.stream) }
            .and_then(|()| if self.wait { self.driver.synchronize() } else { Ok(()) });
        match done {
            Ok(()) if !self.driver.reports_late() => Ok(()),
            Ok(()) => {
                let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
                if recent.len() == REMEMBERED {
                    recent.pop_front();
                }
                recent.push_back(launch);
                Ok(())
            }
            Err(why) => Err(why.context(KernelError { launches: vec![launch] })),
        }
    }

    /// An error of a call that waits for the GPU may be an earlier kernel's.
    fn or_latest<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|why| {
            if !self.driver.reports_late() {
                return why;
            }
            let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            why.context(KernelError { launches: recent.iter().cloned().collect() })
        })
    }

    /// The time that the work which `run` launches takes, s: by the device's own clock, from the end of earlier work to its end.
    pub fn time(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        self.or_latest(self.driver.time(run, self.stream))
    }

    /// Runs `run` inside a profiler's range, for `ncu --profile-from-start off`.
    pub fn profile(&self, run: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.or_latest(self.driver.profile(run))
    }

    /// Waits for everything; errors of earlier launches come out here.
    pub fn synchronize(&self) -> Result<()> {
        self.or_latest(self.driver.synchronize())
    }

    /// Describes a row-major matrix of bf16, `rows` by `cols`, `stride` elements from row to row, for copies of boxes of `tile` = (rows, cols) with
    /// 128-byte swizzle.
    pub(crate) fn tensor_map_2d(
        &self,
        base: u64,
        rows: usize,
        cols: usize,
        stride: usize,
        tile: [u32; 2],
    ) -> Result<TensorMap> {
        ensure!(stride >= cols, "a row of {cols} elements does not fit a stride of {stride}");
        let (dims, strides, tile) = ([cols as u64, rows as u64], [stride as u64 * 2], [tile[1], tile[0]]);
        self.driver.tensor_map(base, &dims, &strides, &tile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::TensorLabel;

    #[test]
    fn memory_that_is_not_there_is_an_error_with_advice() {
        let gpu = Gpu::emulated();
        let error = format!("{:#}", gpu.allocate(usize::MAX / 4, "activations").err().unwrap());
        assert!(error.contains("activations needs") && error.contains("lower the batch size"), "{error}");
        drop(gpu.allocate(1000, "a").unwrap());
        let _held = gpu.allocate(500, "b").unwrap();
        assert_eq!(gpu.peak_bytes(), 1000);
    }

    #[test]
    fn a_kernel_that_leaves_its_buffers_is_named_with_its_tensors() {
        let gpu = Gpu::emulated();
        let memory = gpu.allocate(16, "small").unwrap();
        let label =
            |name: &str| TensorLabel { name: name.into(), dtype: "f32", shape: [2, 2, 1, 1], rank: 2 };
        let kernel = Kernel { file: "rows", name: "add_f32" };
        let [out, inp] = ["out", "inp"].map(|n| Arg::Tensor(memory.address(), label(n)));
        let args = [out, inp, Arg::U64(400)];
        // SAFETY: not kept on purpose: the emulator reports the access behind the buffer.
        let error = unsafe { gpu.launch(kernel, Geometry::new(1, 256), &args) }.unwrap_err();
        assert!(error.downcast_ref::<KernelError>().is_some());
        let text = format!("{error:#}");
        for part in
            ["add_f32 of kernels/rows.cu", "out f32 [2, 2]", "grid 1 x 1 x 1, block 256", "out of bounds"]
        {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }
}
