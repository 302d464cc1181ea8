//! NVTX: named ranges that NVIDIA's profilers (Nsight Systems, Nsight Compute) show beside the kernels. The library is opened at run time and only
//! where it is asked for; it does nothing unless a profiler has attached itself.
use std::ffi::CString;

use anyhow::{Result, ensure};
use cudarc::nvtx::sys;

/// Whether ranges are wanted: `SDRRL_NVTX=1`, or a profiler that says so (Nsight Systems sets `NVTX_INJECTION64_PATH`) unless `SDRRL_NVTX=0`. Errors where
/// they are asked for by name and there is no libnvToolsExt.
pub fn wanted() -> Result<bool> {
    let asked = std::env::var("SDRRL_NVTX").ok();
    let profiler = std::env::var_os("NVTX_INJECTION64_PATH").is_some();
    if !asked.as_deref().map_or(profiler, |v| v != "0" && !v.is_empty()) {
        return Ok(false);
    }
    // SAFETY: opens a shared library by name; its constructors are NVIDIA's.
    let present = unsafe { sys::is_culib_present() };
    ensure!(
        present || asked.is_none(),
        "SDRRL_NVTX is set, but there is no libnvToolsExt.so: it comes with CUDA before 13 and with the Python package nvidia-nvtx-cu12; name its folder in \
         LD_LIBRARY_PATH"
    );
    Ok(present)
}

/// Begins a range on this thread. Call it only where [`wanted`] said so.
pub fn push(name: &str) {
    let name = CString::new(name.replace('\0', " ")).unwrap_or_default();
    // SAFETY: the library is there (`wanted`); the string lives through the call, which copies it.
    unsafe { sys::nvtxRangePushA(name.as_ptr()) };
}

/// Ends the innermost range of this thread. Call it only where [`wanted`] said so.
pub fn pop() {
    // SAFETY: the library is there (`wanted`); without a range the call returns an error number, which means nothing here.
    unsafe { sys::nvtxRangePop() };
}
