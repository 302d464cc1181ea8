//! A launch in words and in bytes: kernel, geometry, parameters, and the error that names them.
use std::{fmt, sync::Arc};

use anyhow::{Context, Result};

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
#[derive(Clone, Debug)]
pub enum Arg {
    /// A pointer to nothing.
    Null,
    /// A pointer to a tensor's first element, and what it is called in messages: name, dtype, dimensions.
    Tensor(u64, TensorLabel),
    /// `int`
    I32(i32),
    /// `unsigned`
    U32(u32),
    /// `float`
    F32(f32),
    /// `unsigned long long`
    U64(u64),
    /// `const __grid_constant__ TensorMap`, and what it describes.
    Map(TensorMap, TensorLabel),
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
            Arg::Null => 0u64.to_le_bytes().to_vec(),
            Arg::Tensor(x, _) | Arg::U64(x) => x.to_le_bytes().to_vec(),
            Arg::I32(x) => x.to_le_bytes().to_vec(),
            Arg::U32(x) => x.to_le_bytes().to_vec(),
            Arg::F32(x) => x.to_le_bytes().to_vec(),
            Arg::Map(m, _) => m.to_vec(),
        }
    }
}

/// A tensor in messages.
#[derive(Clone, Debug)]
pub struct TensorLabel {
    /// A checkpoint path or an activation's name.
    pub name: Arc<str>,
    /// `f32`, `bf16`, ...
    pub dtype: &'static str,
    /// Dimensions, of which the first `rank` count.
    pub shape: [usize; 4],
    /// Number of dimensions.
    pub rank: usize,
}

impl fmt::Display for Arg {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Arg::Null => write!(f, "null"),
            Arg::Tensor(_, t) | Arg::Map(_, t) => {
                write!(f, "{} {} {:?}", t.name, t.dtype, &t.shape[..t.rank.min(t.shape.len())])
            }
            Arg::I32(x) => write!(f, "{x}"),
            Arg::U32(x) => write!(f, "{x}"),
            Arg::U64(x) => write!(f, "{x}"),
            Arg::F32(x) => write!(f, "{x}"),
        }
    }
}

/// One launch: what ran, on which blocks, over what.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel.
    pub kernel: Kernel,
    /// Its blocks and threads.
    pub at: Geometry,
    /// Its parameters in order.
    pub args: Vec<Arg>,
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let args: Vec<String> = self.args.iter().map(Arg::to_string).collect();
        let Geometry { grid: [x, y, z], block, cluster, shared_bytes } = self.at;
        write!(f, "{} of kernels/{}.cu ({}), ", self.kernel.name, self.kernel.file, args.join(", "))?;
        write!(
            f,
            "grid {x} x {y} x {z}, block {block}, cluster {cluster}, {shared_bytes} bytes of shared memory"
        )
    }
}

/// A kernel that the driver refused or that failed while it ran; the cause is this error's source.
#[derive(Debug)]
pub struct KernelError {
    /// The launch, or the latest launches where the driver does not say which one failed; the newest last.
    pub launches: Vec<Launch>,
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.launches[..] {
            [] => write!(f, "before any kernel was launched"),
            [one] => write!(f, "launch {one}"),
            several => {
                let lines: Vec<String> = several.iter().map(|l| format!("\n  {l}")).collect();
                write!(
                    f,
                    "a kernel failed; SDRRL_SYNC_LAUNCHES=1 names it, the latest launches were:{}",
                    lines.concat()
                )
            }
        }
    }
}

impl std::error::Error for KernelError {}
