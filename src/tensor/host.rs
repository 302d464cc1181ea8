//! Memory of the machine behind a tensor: zeroed, aligned, freed when dropped.

use std::alloc::Layout;

use anyhow::{Context, Result, ensure};

use super::ALIGN;
use crate::error::Error;

pub(super) struct HostBytes {
    pub(super) ptr: *mut u8,
    layout: Layout,
}
impl Drop for HostBytes {
    fn drop(&mut self) {
        // SAFETY: allocated with this very layout in `HostBytes::zeroed`.
        unsafe { std::alloc::dealloc(self.ptr, self.layout) }
    }
}

impl HostBytes {
    /// `bytes` of zeroed memory aligned to [`ALIGN`]. Pages are touched lazily by the operating system.
    pub(super) fn zeroed(bytes: usize, what: &str) -> Result<HostBytes> {
        let layout = Layout::from_size_align(bytes.max(ALIGN), ALIGN)
            .with_context(|| format!("{what}: {bytes} bytes"))?;
        // SAFETY: the layout is not empty.
        let ptr = unsafe { std::alloc::alloc_zeroed(layout) };
        let message = || {
            let mib = bytes as f64 / 1048576.0;
            format!(
                "out of memory: {what} needs {mib:.1} MiB; lower the batch size, the sequence length or the model's dtype"
            )
        };
        ensure!(!ptr.is_null(), Error::out_of_memory(message()));
        Ok(HostBytes { ptr, layout })
    }
}
