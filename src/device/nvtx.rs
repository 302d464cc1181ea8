//! NVTX: named ranges that NVIDIA's profilers (Nsight Systems, Nsight Compute) show beside the kernels. A profiler that attaches itself names its library
//! (NVTX 3); without one, `SDRRL_NVTX=1` opens libnvToolsExt (NVTX 2). Nothing is loaded unless ranges are asked for.
use std::{
    ffi::CString,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use anyhow::{Result, bail};
use cudarc::nvtx::sys;

use super::nvtx_injection as injection;

/// Set by a profiler, to the path of its library.
const PROFILER: &str = "NVTX_INJECTION64_PATH";

/// Whether a profiler has attached itself, rather than libnvToolsExt been opened.
static ATTACHED: AtomicBool = AtomicBool::new(false);

/// Whether ranges are wanted: `SDRRL_NVTX=1`, or a profiler that says so (Nsight Systems sets `NVTX_INJECTION64_PATH`) unless `SDRRL_NVTX=0`.
///
/// # Errors
/// `SDRRL_NVTX=1`, but neither a profiler takes ranges nor is there a libnvToolsExt.
pub fn wanted() -> Result<bool> {
    let asked = std::env::var("SDRRL_NVTX").ok();
    let profiler = std::env::var_os(PROFILER);
    if !asked.as_deref().map_or(profiler.is_some(), |v| v != "0" && !v.is_empty()) {
        return Ok(false);
    }
    let attached = profiler.map(|path| injection::attach(&path));
    if let Some(Ok(())) = attached {
        ATTACHED.store(true, Relaxed);
        return Ok(true);
    }
    // SAFETY: opens a shared library by name; its constructors are NVIDIA's.
    let present = unsafe { sys::is_culib_present() };
    if !present && asked.is_some() {
        let why = attached.and_then(Result::err).map(|e| format!("{PROFILER}: {e:#}; ")).unwrap_or_default();
        bail!(
            "SDRRL_NVTX is set, but {why}there is no libnvToolsExt.so: it comes with CUDA before 13 and with the Python package nvidia-nvtx-cu12; name its \
             folder in LD_LIBRARY_PATH, or run under a profiler"
        );
    }
    Ok(present)
}

/// Begins a range on this thread. Call it only where [`wanted`] said so.
pub fn push(name: &str) {
    let name = CString::new(name.replace('\0', " ")).unwrap_or_default();
    if ATTACHED.load(Relaxed) {
        return injection::push(&name);
    }
    // SAFETY: the library is there (`wanted`); the string lives through the call, which copies it.
    unsafe { sys::nvtxRangePushA(name.as_ptr()) };
}

/// Ends the innermost range of this thread. Call it only where [`wanted`] said so.
pub fn pop() {
    if ATTACHED.load(Relaxed) {
        return injection::pop();
    }
    // SAFETY: the library is there (`wanted`); without a range the call returns an error number, which means nothing here.
    unsafe { sys::nvtxRangePop() };
}
