//! Where memory lives and work runs.
#![allow(unsafe_code)]

use std::{fmt, sync::Arc};

use cudarc::driver::{
    DriverError,
    result::{self, device},
    sys,
};

mod choice;
mod counts;
mod cuda;
mod driver;
mod emulated;
mod gpu;
mod launch;
mod memory;
pub mod nccl;
pub mod nvtx;
mod nvtx_injection;
mod scratch;
pub mod vectors;

pub use choice::{DeviceChoice, Several};
pub use counts::Counts;
pub(crate) use driver::Mark;
pub use gpu::Gpu;
pub(crate) use gpu::GpuMemory;
pub use launch::{Arg, Geometry, Kernel, KernelError, Launch, TensorLabel, TensorMap};
pub use memory::host_memory;

/// The device that a tensor lives on and an op runs on.
#[derive(Clone, Default)]
pub enum Device {
    /// The host processor: rayon threads, vector instructions chosen at run time.
    #[default]
    Cpu,
    /// A GPU, real or emulated.
    Cuda(Arc<Gpu>),
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        match (self, other) {
            (Device::Cpu, Device::Cpu) => true,
            (Device::Cuda(a), Device::Cuda(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Device::Cpu => write!(f, "cpu"),
            Device::Cuda(gpu) => write!(f, "{}", gpu.name()),
        }
    }
}

impl Device {
    /// The emulated GPU: the CUDA kernels of this program on the host, slowly.
    pub fn emulated() -> Device {
        Device::Cuda(Arc::new(Gpu::emulated()))
    }
    /// The GPU, if it is one.
    pub fn gpu(&self) -> Option<&Arc<Gpu>> {
        if let Device::Cuda(gpu) = self { Some(gpu) } else { None }
    }
}

/// The nvcc that compiled the kernels in this program, its last line; `None` if there are none.
pub fn nvcc_version() -> Option<&'static str> {
    cuda::NVCC_VERSION.lines().last()
}

/// Registers, shared memory, stack and spills of every kernel as ptxas tells: lines of `kernel arch registers smem stack spill`.
pub fn kernel_usage() -> &'static str {
    cuda::KERNEL_USAGE
}

/// One NVIDIA GPU as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// Marketing name.
    pub name: String,
    /// Compute capability, e.g. (9, 0).
    pub compute_capability: (i32, i32),
    /// Device memory, bytes.
    pub memory: usize,
    /// The driver's name for this very device, hexadecimal.
    pub uuid: String,
}

/// The NVIDIA GPUs of this machine, or in words why there are none to list. Never panics without a driver.
pub fn gpus() -> Result<Vec<GpuInfo>, String> {
    // SAFETY: only tries to open libcuda; cudarc's other calls panic without it, hence this check first.
    if !unsafe { sys::is_culib_present() } {
        return Err("no CUDA driver library (libcuda) on this machine".into());
    }
    // No context is made: that would take memory and time on devices that are other people's.
    let one = |ordinal: i32| -> Result<GpuInfo, DriverError> {
        use sys::CUdevice_attribute as A;
        let device = device::get(ordinal)?;
        // SAFETY: a device of this driver.
        let attribute = |a| unsafe { device::get_attribute(device, a) };
        Ok(GpuInfo {
            name: device::get_name(device)?,
            compute_capability: (
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            // SAFETY: as above.
            memory: unsafe { device::total_mem(device) }?,
            uuid: device::get_uuid(device)?.bytes.iter().map(|b| format!("{:02x}", *b as u8)).collect(),
        })
    };
    let count = result::init()
        .and_then(|()| device::get_count())
        .map_err(|e| format!("the CUDA driver lists no device: {e:?}"))?;
    (0..count).map(|i| one(i).map_err(|e| format!("ask for CUDA device {i}: {e:?}"))).collect()
}

/// Vector extensions that the CPU kernels may choose from, those present on this machine.
pub fn cpu_features() -> Vec<&'static str> {
    #[allow(unused_mut)]
    let mut found = vec![];
    #[cfg(target_arch = "x86_64")]
    for (name, present) in [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
    ] {
        if present {
            found.push(name);
        }
    }
    #[cfg(target_arch = "aarch64")]
    found.push("neon");
    found
}
