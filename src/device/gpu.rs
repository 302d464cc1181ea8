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
    counts::{Counters, Counts, count},
    cuda,
    driver::{Driver, DriverMemory, Mark, Stream},
    emulated::Emulator,
    launch::{Arg, Geometry, Kernel, KernelError, Launch, TensorMap},
    scratch::{Home, Idle, Taken},
};

/// A GPU with one stream, in which everything runs in the order in which it was asked for, but for what ranks exchange meanwhile.
pub struct Gpu {
    driver: Arc<dyn Driver>,
    stream: Stream,
    /// The stream of exchanges, from the first one on.
    beside: Mutex<Option<Stream>>,
    name: String,
    arch: u32,
    /// Wait after every launch, so that a fault names its kernel (`SDRRL_SYNC_LAUNCHES=1`).
    wait: bool,
    held: Arc<Held>,
    idle: Arc<Idle>,
    counters: Counters,
    /// True if every tensor of an arena gets an allocation of its own.
    separate: bool,
    /// The latest launches, which an error that comes later may belong to.
    recent: Mutex<VecDeque<Launch>>,
}

/// Launches that an error found later still names.
const REMEMBERED: usize = 4;

/// An allocation on the GPU, freed on drop; scratch goes to what is idle.
pub(crate) struct GpuMemory {
    /// Always there, until it is dropped.
    place: Option<Box<dyn DriverMemory>>,
    bytes: usize,
    held: Arc<Held>,
    home: Option<Home>,
}

/// Bytes that are held, and were at the most.
#[derive(Default)]
struct Held {
    now: AtomicUsize,
    peak: AtomicUsize,
}

impl GpuMemory {
    pub(crate) fn address(&self) -> u64 {
        self.place.as_ref().map_or(0, |place| place.address())
    }
    fn place(&self) -> Result<&dyn DriverMemory> {
        self.place.as_deref().context("this memory was given back")
    }
}

impl Drop for GpuMemory {
    fn drop(&mut self) {
        match (&self.home, self.place.take()) {
            (Some(home), Some(place)) => home.give_back(place),
            _ => {
                self.held.now.fetch_sub(self.bytes, Ordering::Relaxed);
            }
        }
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

    /// The emulated one with arenas in one allocation each, as on a real one: for counting what a step asks of a driver. A kernel that leaves a tensor is
    /// noticed where it leaves the arena.
    pub fn emulated_in_arenas() -> Gpu {
        Gpu { separate: false, ..Gpu::emulated() }
    }

    fn over(driver: Arc<dyn Driver>, name: String, arch: u32, wait: bool) -> Gpu {
        let (stream, separate) = (Stream::default(), driver.is_emulated());
        Gpu {
            driver,
            stream,
            beside: Mutex::default(),
            name,
            arch,
            wait,
            held: Arc::default(),
            idle: Arc::default(),
            counters: Counters::default(),
            separate,
            recent: Mutex::default(),
        }
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

    /// True if every tensor of an arena gets an allocation of its own.
    pub(crate) fn separates(&self) -> bool {
        self.separate
    }

    /// What was asked of the driver since it was opened.
    pub fn counts(&self) -> Counts {
        self.counters.read()
    }

    /// `bytes` of zeroed memory.
    pub(crate) fn allocate(&self, bytes: usize, what: &str) -> Result<GpuMemory> {
        let place = self.new_place(bytes, what)?;
        count(&self.counters.allocations);
        count(&self.counters.memsets);
        place.zero(0, bytes, self.stream)?;
        Ok(GpuMemory { place: Some(place), bytes, held: self.hold(bytes), home: None })
    }

    /// `bytes` of memory for a moment; what is in it is undefined.
    pub(crate) fn scratch(&self, bytes: usize, what: &str) -> Result<GpuMemory> {
        count(&self.counters.scratch);
        let home = |bytes| Some(Home { idle: self.idle.clone(), bytes, keep: !self.is_emulated() });
        let held = self.held.clone();
        match self.idle.take(bytes) {
            Some(Taken::Memory(place, size)) => {
                Ok(GpuMemory { place: Some(place), bytes, held, home: home(size) })
            }
            Some(Taken::Room(size)) => {
                let place = Some(self.driver.allocate(bytes, self.stream)?);
                Ok(GpuMemory { place, bytes, held, home: home(size) })
            }
            None => {
                let place = Some(self.new_place(bytes, what)?);
                count(&self.counters.allocations);
                Ok(GpuMemory { place, bytes, held: self.hold(bytes), home: home(bytes) })
            }
        }
    }

    fn hold(&self, bytes: usize) -> Arc<Held> {
        let now = self.held.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.held.peak.fetch_max(now, Ordering::Relaxed);
        self.held.clone()
    }

    /// From the driver; idle scratch makes room where there is none.
    fn new_place(&self, bytes: usize, what: &str) -> Result<Box<dyn DriverMemory>> {
        let advice = || {
            format!(
                "{what} needs {:.1} MiB on {}; lower the batch size, the sequence length or the model's dtype",
                bytes as f64 / 1048576.0,
                self.name
            )
        };
        self.driver
            .allocate(bytes, self.stream)
            .or_else(|full| match self.idle.clear() {
                0 => Err(full),
                freed => {
                    self.held.now.fetch_sub(freed, Ordering::Relaxed);
                    self.driver.synchronize()?;
                    self.driver.allocate(bytes, self.stream)
                }
            })
            .with_context(advice)
    }
    /// Bytes of device memory that this program holds.
    pub fn held_bytes(&self) -> usize {
        self.held.now.load(Ordering::Relaxed)
    }
    /// Bytes of device memory that this program held at the most.
    pub fn peak_bytes(&self) -> usize {
        self.held.peak.load(Ordering::Relaxed)
    }
    /// Copies host bytes to `offset`.
    pub(crate) fn write(&self, to: &GpuMemory, offset: usize, from: &[u8]) -> Result<()> {
        count(&self.counters.copies_in);
        self.or_latest(to.place()?.write(offset, from, self.stream))
    }
    /// Copies from `offset` to the host, after everything that was launched.
    pub(crate) fn read(&self, from: &GpuMemory, offset: usize, to: &mut [u8]) -> Result<()> {
        count(&self.counters.copies_out);
        count(&self.counters.waits);
        self.or_latest(from.place()?.read(offset, to, self.stream))
    }
    /// Sets `n` bytes from `offset` to 0.
    pub(crate) fn zero(&self, to: &GpuMemory, offset: usize, n: usize) -> Result<()> {
        count(&self.counters.memsets);
        self.or_latest(to.place()?.zero(offset, n, self.stream))
    }

    /// Starts a kernel.
    ///
    /// # Safety
    /// `args` are the kernel's parameters in number, order and type, and pointers cover what it touches.
    pub(crate) unsafe fn launch(&self, kernel: Kernel, at: Geometry, args: &[Arg]) -> Result<()> {
        if at.grid.contains(&0) {
            return Ok(());
        }
        count(&self.counters.launches);
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

    /// The stream of exchanges; what is put into it from here on comes after everything that was asked for so far.
    pub(crate) fn beside(&self) -> Result<Stream> {
        let mut known = self.beside.lock().unwrap_or_else(PoisonError::into_inner);
        let beside = known.map_or_else(|| self.driver.stream(), Ok)?;
        *known = Some(beside);
        let so_far = self.or_latest(self.driver.mark(self.stream))?;
        self.or_latest(self.driver.after(&so_far, beside)).map(|()| beside)
    }

    /// Stands behind every exchange so far.
    pub(crate) fn mark(&self) -> Result<Mark> {
        let known = *self.beside.lock().unwrap_or_else(PoisonError::into_inner);
        known.map_or(Ok(Mark(None)), |beside| self.or_latest(self.driver.mark(beside)))
    }

    /// What is asked for from here on comes after the mark.
    pub(crate) fn after(&self, mark: &Mark) -> Result<()> {
        self.or_latest(self.driver.after(mark, self.stream))
    }

    /// Waits for everything; errors of earlier launches come out here.
    pub fn synchronize(&self) -> Result<()> {
        count(&self.counters.waits);
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
        count(&self.counters.tensor_maps);
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
    fn scratch_is_used_again_and_its_contents_are_nobodys() {
        let gpu = Gpu::emulated();
        let first = gpu.scratch(1000, "a").unwrap();
        gpu.zero(&first, 0, 1000).unwrap();
        drop(first);
        let second = gpu.scratch(900, "b").unwrap();
        let counts = gpu.counts();
        assert_eq!((counts.allocations, counts.scratch, counts.memsets), (1, 2, 1));
        let mut bytes = vec![0; 900];
        gpu.read(&second, 0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&b| b == 0xff), "the emulator fills it with NaN each time");
        let third = gpu.scratch(900, "c").unwrap();
        assert_eq!(gpu.counts().allocations, 2, "the first is in use");
        assert_eq!(gpu.peak_bytes(), 1900);
        drop((second, third));
        gpu.scratch(1000, "d").unwrap();
        assert_eq!(gpu.peak_bytes(), 1900);
    }

    #[test]
    fn a_kernel_that_reads_scratch_before_anyone_wrote_it_is_found() {
        let device = crate::device::Device::emulated();
        let gpu = device.gpu().unwrap();
        let (written, scratch) = (gpu.allocate(16, "out").unwrap(), gpu.scratch(16, "partial sums").unwrap());
        let label =
            |name: &str| TensorLabel { name: name.into(), dtype: "f32", shape: [4, 1, 1, 1], rank: 1 };
        let kernel = Kernel { file: "rows", name: "add_f32" };
        let args = [
            Arg::Tensor(written.address(), label("out")),
            Arg::Tensor(scratch.address(), label("inp")),
            Arg::U64(4),
        ];
        let checked = sdrrl_emulator::Config { checks: true, ..sdrrl_emulator::Config::default() };
        // SAFETY: both hold 16 bytes; what the second holds was never written, which the emulator reports.
        let run = || unsafe { gpu.launch(kernel, Geometry::new(1, 256), &args) };
        let (done, _) = sdrrl_emulator::with_config(checked, run);
        let error = format!("{:#}", done.unwrap_err());
        assert!(error.contains("uninitialised"), "{error}");
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
