//! Many tensors in one allocation.
use std::{rc::Rc, sync::Arc};

use anyhow::{Result, ensure};

use super::{ALIGN, DType, Memory, Tensor, host::HostBytes};
use crate::device::{Device, Gpu};

/// One allocation, cut into tensors. The same closure runs twice: once to measure, once to place.
///
/// On the emulated GPU every tensor gets an allocation of its own, so that leaving one is noticed.
pub struct Arena {
    mem: Rc<Memory>,
    top: usize,
    separate: Option<Arc<Gpu>>,
    /// The tensors, where each has an allocation of its own.
    pieces: Vec<Tensor>,
    failed: Option<anyhow::Error>,
}

/// What [`Arena::lay`] laid out, and the memory below it.
pub struct Laid<T> {
    /// The tensors.
    pub parts: T,
    /// One tensor over the whole allocation, gaps between the parts included, for one memset or one all-reduce; on the emulated GPU, where each part
    /// has its own allocation, one for each.
    pub(crate) flat: Vec<Tensor>,
    /// The size of it all.
    pub bytes: usize,
}

impl Arena {
    fn on(mem: Memory) -> Arena {
        Arena { mem: Rc::new(mem), top: 0, separate: None, pieces: vec![], failed: None }
    }

    /// Lays out `T` in one zeroed allocation named `what`; returns it with the allocation's size in bytes.
    pub fn build<T>(what: &str, device: &Device, lay_out: impl FnMut(&mut Arena) -> T) -> Result<(T, usize)> {
        let laid = Arena::lay(what, device, lay_out)?;
        Ok((laid.parts, laid.bytes))
    }

    /// As [`Arena::build`], with the allocation as a whole. Errors if it does not fit the device's memory.
    pub fn lay<T>(what: &str, device: &Device, mut lay_out: impl FnMut(&mut Arena) -> T) -> Result<Laid<T>> {
        let bytes = Arena::measure(|a| {
            lay_out(a);
        });
        let mut place = match device {
            Device::Cpu => Arena::on(Memory::Host(HostBytes::zeroed(bytes, what)?)),
            Device::Cuda(gpu) if gpu.separates() => {
                Arena { separate: Some(gpu.clone()), ..Arena::on(Memory::Unplaced) }
            }
            Device::Cuda(gpu) => Arena::on(Memory::Gpu(gpu.allocate(bytes, what)?, gpu.clone())),
        };
        let parts = lay_out(&mut place);
        if let Some(failed) = place.failed {
            return Err(failed.context(format!("allocate {what}")));
        }
        ensure!(place.top == bytes, "{what}: the layout differs between measuring and placing");
        let whole = || Tensor::new(what.into(), place.mem.clone(), 0, DType::U32, &[bytes / 4]);
        let flat = if place.separate.is_some() { place.pieces } else { vec![whole()] };
        Ok(Laid { parts, flat, bytes })
    }

    /// Bytes that `lay_out` would take.
    pub fn measure(lay_out: impl FnOnce(&mut Arena)) -> usize {
        let mut measure = Arena::on(Memory::Unplaced);
        lay_out(&mut measure);
        measure.top
    }

    /// The next tensor, aligned to [`ALIGN`] bytes.
    pub fn tensor(&mut self, name: &str, dtype: DType, dims: &[usize]) -> Tensor {
        let mut t = Tensor::new(name.into(), self.mem.clone(), self.top, dtype, dims);
        self.top += t.bytes().next_multiple_of(ALIGN);
        if let Some(gpu) = &self.separate {
            match gpu.allocate(t.bytes(), name) {
                Ok(memory) => {
                    (t.mem, t.offset) = (Rc::new(Memory::Gpu(memory, gpu.clone())), 0);
                    self.pieces.push(t.alias());
                }
                Err(e) => self.failed = Some(e),
            }
        }
        t
    }
}
