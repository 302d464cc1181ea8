//! One GPU: memory, copies and launches, over a driver that is CUDA's or the emulator with the same verbs.
use anyhow::{Context, Result, ensure};

use super::{cuda, emulated};

/// A GPU with one stream: everything runs in the order in which it was asked for.
pub struct Gpu {
    driver: Driver,
    name: String,
    arch: u32,
}

enum Driver {
    Cuda(cuda::Driver),
    Emulated,
}

/// A kernel: the file it stands in (`rmsnorm`, `sm90/gemm`) and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// `kernels/<file>.cu`
    pub file: &'static str,
    /// The `KERNEL` in it.
    pub name: &'static str,
}

/// Blocks, threads, clusters and dynamic shared memory of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks; in x up to 2^31 - 1, in y and z up to 65535.
    pub grid: [u32; 3],
    /// Threads of a block (one dimension).
    pub block: u32,
    /// Blocks of a cluster along x.
    pub cluster: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared_bytes: u32,
}

impl Geometry {
    /// `blocks` blocks of `threads` threads.
    pub fn new(blocks: usize, threads: u32) -> Geometry {
        Geometry::grid([blocks, 1, 1], threads)
    }
    /// A grid of blocks of `threads` threads. A dimension that does not fit 32 bits becomes one that the driver refuses.
    pub fn grid(grid: [usize; 3], threads: u32) -> Geometry {
        let grid = grid.map(|x| u32::try_from(x).unwrap_or(u32::MAX));
        Geometry { grid, block: threads, cluster: 1, shared_bytes: 0 }
    }
    /// With dynamic shared memory.
    pub fn shared(self, bytes: usize) -> Geometry {
        Geometry { shared_bytes: bytes as u32, ..self }
    }
}

/// The bytes of a CUtensorMap.
pub type TensorMap = [u8; 128];

/// A kernel parameter: the closed set of types that cross the launch.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// A device address; 0 is a null pointer.
    Ptr(u64),
    /// `int`
    I32(i32),
    /// `unsigned`
    U32(u32),
    /// `float`
    F32(f32),
    /// `unsigned long long`
    U64(u64),
    /// `const __grid_constant__ TensorMap`
    Map(TensorMap),
}

impl Arg {
    /// A count as an `int`. Ops check that their sizes fit.
    pub fn int(x: usize) -> Result<Arg> {
        Ok(Arg::I32(
            i32::try_from(x).ok().with_context(|| format!("a size of {x} does not fit a kernel's int"))?,
        ))
    }
    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Arg::Ptr(x) | Arg::U64(x) => x.to_le_bytes().to_vec(),
            Arg::I32(x) => x.to_le_bytes().to_vec(),
            Arg::U32(x) => x.to_le_bytes().to_vec(),
            Arg::F32(x) => x.to_le_bytes().to_vec(),
            Arg::Map(m) => m.to_vec(),
        }
    }
}

/// An allocation on the GPU, freed on drop.
pub(crate) enum GpuMemory {
    Cuda(cuda::Buffer),
    Emulated(sdrrl_emulator::Memory),
}

impl GpuMemory {
    pub(crate) fn address(&self) -> u64 {
        match self {
            GpuMemory::Cuda(b) => b.address(),
            GpuMemory::Emulated(m) => m.address(),
        }
    }
}

impl Gpu {
    /// The CUDA device `ordinal`, its kernels loaded. Errors say what is missing: kernels in this build, a driver, a device.
    pub fn cuda(ordinal: usize) -> Result<Gpu> {
        let driver = cuda::Driver::open(ordinal)?;
        Ok(Gpu { name: driver.name.clone(), arch: driver.arch, driver: Driver::Cuda(driver) })
    }

    /// The emulated one: an sm_90.
    pub fn emulated() -> Gpu {
        Gpu { driver: Driver::Emulated, name: "emulated GPU".into(), arch: 90 }
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
        matches!(self.driver, Driver::Emulated)
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
        match &self.driver {
            Driver::Cuda(d) => Ok(GpuMemory::Cuda(d.allocate(bytes.max(1)).with_context(advice)?)),
            Driver::Emulated => {
                let memory = emulated::allocate(bytes).with_context(advice)?;
                memory.zero(0, bytes);
                Ok(GpuMemory::Emulated(memory))
            }
        }
    }
    /// Copies host bytes to `offset`.
    pub(crate) fn write(&self, to: &GpuMemory, offset: usize, from: &[u8]) -> Result<()> {
        match (&self.driver, to) {
            (Driver::Cuda(d), GpuMemory::Cuda(b)) => d.write(b, offset, from),
            (_, GpuMemory::Emulated(m)) => {
                m.write(offset, from);
                Ok(())
            }
            _ => anyhow::bail!("memory of another device"),
        }
    }
    /// Copies from `offset` to the host, after everything that was launched.
    pub(crate) fn read(&self, from: &GpuMemory, offset: usize, to: &mut [u8]) -> Result<()> {
        match (&self.driver, from) {
            (Driver::Cuda(d), GpuMemory::Cuda(b)) => d.read(b, offset, to),
            (_, GpuMemory::Emulated(m)) => {
                m.read(offset, to);
                Ok(())
            }
            _ => anyhow::bail!("memory of another device"),
        }
    }
    /// Sets `n` bytes from `offset` to 0.
    pub(crate) fn zero(&self, to: &GpuMemory, offset: usize, n: usize) -> Result<()> {
        match (&self.driver, to) {
            (Driver::Cuda(d), GpuMemory::Cuda(b)) => d.zero(b, offset, n),
            (_, GpuMemory::Emulated(m)) => {
                m.zero(offset, n);
                Ok(())
            }
            _ => anyhow::bail!("memory of another device"),
        }
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
        match &self.driver {
            // SAFETY: the caller's promise.
            Driver::Cuda(d) => unsafe { d.launch(kernel, at, bytes) },
            // SAFETY: the caller's promise.
            Driver::Emulated => unsafe { emulated::launch(kernel, at, &bytes) },
        }
        .with_context(|| format!("launch {} of kernels/{}.cu, {at:?}", kernel.name, kernel.file))
    }

    /// Waits for everything; errors of earlier launches come out here.
    pub fn synchronize(&self) -> Result<()> {
        match &self.driver {
            Driver::Cuda(d) => d.synchronize(),
            Driver::Emulated => Ok(()),
        }
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
        match &self.driver {
            Driver::Cuda(d) => d.tensor_map(base, &dims, &strides, &tile),
            Driver::Emulated => emulated::tensor_map(base, &dims, &strides, &tile),
        }
    }
}
