//! What the GPU arms of the ops share.
use std::sync::Arc;

use anyhow::{Result, ensure};

use crate::{
    device::{Geometry, Gpu},
    tensor::{DType, Tensor},
};

/// The GPU that all of `tensors` are on; `None` if they are all in main memory. Errors if they are not in one place.
pub(crate) fn gpu_of(op: &str, tensors: &[&Tensor]) -> Result<Option<Arc<Gpu>>> {
    let Some(first) = tensors.first() else { return Ok(None) };
    let device = first.device();
    for t in tensors {
        ensure!(t.device() == device, "{op}: {first:?} is on {device:?}, but {t:?} is on {:?}", t.device());
    }
    Ok(device.gpu().cloned())
}

/// One thread for 16 bytes of `t`.
pub(crate) fn elementwise(t: &Tensor) -> Geometry {
    Geometry::new(t.bytes().div_ceil(16).div_ceil(256), 256)
}

/// Errors unless every tensor has this dtype.
pub(crate) fn check_dtype(op: &str, dtype: DType, tensors: &[&Tensor]) -> Result<()> {
    for t in tensors {
        ensure!(t.dtype() == dtype, "{op}: {t:?} must be {dtype:?} like the others here");
    }
    Ok(())
}

/// The kernel of `file` whose name ends in the dtype: `kernel!(t.dtype(), "swiglu", "swiglu_forward")`.
macro_rules! kernel {
    ($dtype:expr, $file:literal, $name:literal) => {
        $crate::device::Kernel {
            file: $file,
            name: match $dtype {
                $crate::tensor::DType::Bf16 => concat!($name, "_bf16"),
                _ => concat!($name, "_f32"),
            },
        }
    };
    ($dtype:expr, $file:literal, concat $name:literal, $variant:literal) => {
        $crate::device::Kernel {
            file: $file,
            name: match $dtype {
                $crate::tensor::DType::Bf16 => concat!($name, $variant, "_bf16"),
                _ => concat!($name, $variant, "_f32"),
            },
        }
    };
    ($file:literal, $name:literal) => {
        $crate::device::Kernel { file: $file, name: $name }
    };
}
pub(crate) use kernel;
