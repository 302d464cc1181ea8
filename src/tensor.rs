//! Typed, shaped, contiguous views of one allocation, and the arena that lays them out.
//!
//! A [`Tensor`] is a handle on memory that other handles of this crate may share: a layer's activations are cut out of one
//! arena, an optimizer holds the parameters that a model reads. No program without `unsafe` can make that unsound:
//!
//! 1. **References stay inside.** What makes a slice of tensor memory (`f32`, `f32_mut`, ...) is crate-private, and nothing public returns such
//!    a slice or shows it to a caller's closure. Public reading and writing copies ([`Tensor::to_f32_vec`], [`Tensor::write_f32`]), like a `Cell`:
//!    when a public call has returned, no reference into tensor memory is left.
//! 2. **One thread.** Handles on one allocation share an [`Rc`], so that they neither leave the thread that made them nor are seen by another
//!    ([`Tensor`] is neither `Send` nor `Sync`, and so is nothing that holds one). An op's helper threads get slices, never tensors, and they are the crate's
//!    own (`ops::fork_join`): under rayon a thread that waits may run other code of the caller's, so that rayon serves only where no other
//!    handle can exist yet, such as in loading.
//! 3. **Inside one call** an op asks [`refuse_overlap`] before it takes slices: an output that shares a byte with another operand is an error, on
//!    every device.
//!
//! A second handle on the same memory is made by `alias`, `rows`, `view`, `renamed` and by arenas, all crate-private; the public [`Tensor::slice`]
//! borrows, [`Tensor::into_rows`] and [`Tensor::into_shape`] consume, and a [`Reader`] can only copy out.
//!
//! ```
//! use sdrrl::tensor::{DType, Tensor};
//! let mut t = Tensor::from_f32("t", &[2, 2], &[1.0, 2.0, 3.0, 4.0])?;
//! assert_eq!(t.slice(1..2)?.to_f32_vec()?, [3.0, 4.0]);
//! let reader = t.reader();
//! t.write_f32(&[5.0; 4])?;
//! assert_eq!(reader.to_f32_vec()?, [5.0; 4]);
//! assert_eq!(t.into_rows(0..1)?.shape(), [1, 2]);
//! # anyhow::Ok(())
//! ```
#![allow(unsafe_code)]

use std::{fmt, ops::Range, rc::Rc, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use half::bf16;

use crate::{
    data::map::Map,
    device::{Device, Gpu, GpuMemory},
};

mod arena;
mod dtype;
mod host;
mod operand;
mod refused;
mod span;
mod view;
pub use arena::{Arena, Laid};
pub use dtype::{Activations, DType};
use host::HostBytes;
pub use operand::refuse_overlap;
pub use view::{Reader, View};

enum Memory {
    /// Measuring: nothing behind it yet.
    Unplaced,
    Host(HostBytes),
    /// A read-only file mapping.
    Mapped(Arc<Map>),
    /// On a GPU.
    Gpu(GpuMemory, Arc<Gpu>),
}

/// Alignment of every tensor in an arena, bytes.
pub const ALIGN: usize = 256;
const MAX_RANK: usize = 4;

/// A named view: dtype, shape (row-major, contiguous) and a place in one allocation. Reading and writing copies; see the module for why.
pub struct Tensor {
    name: Arc<str>,
    mem: Rc<Memory>,
    offset: usize,
    shape: [usize; MAX_RANK],
    rank: usize,
    dtype: DType,
}

/// Bytes of a tensor of this type and shape.
fn byte_count(name: &str, dtype: DType, dims: &[usize]) -> Result<usize> {
    let bytes = dims.iter().try_fold(dtype.bytes(), |a, &d| a.checked_mul(d));
    bytes.with_context(|| format!("{name}: {dims:?} of {dtype:?} are more bytes than this machine can count"))
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {:?} {:?}", self.name, self.dtype, self.shape())
    }
}

impl Tensor {
    fn new(name: Arc<str>, mem: Rc<Memory>, offset: usize, dtype: DType, dims: &[usize]) -> Tensor {
        assert!((1..=MAX_RANK).contains(&dims.len()), "{name}: rank {} is not in 1..={MAX_RANK}", dims.len());
        let mut shape = [1; MAX_RANK];
        shape[..dims.len()].copy_from_slice(dims);
        Tensor { name, mem, offset, shape, rank: dims.len(), dtype }
    }

    /// A zeroed tensor in an allocation of its own.
    pub fn zeros(name: &str, dtype: DType, dims: &[usize]) -> Result<Tensor> {
        let bytes = byte_count(name, dtype, dims)?;
        let mem = Rc::new(Memory::Host(HostBytes::zeroed(bytes, name)?));
        Ok(Tensor::new(name.into(), mem, 0, dtype, dims))
    }

    /// The same on a device.
    pub fn zeros_on(device: &Device, name: &str, dtype: DType, dims: &[usize]) -> Result<Tensor> {
        let Some(gpu) = device.gpu() else { return Tensor::zeros(name, dtype, dims) };
        let bytes = byte_count(name, dtype, dims)?;
        let mem = Rc::new(Memory::Gpu(gpu.allocate(bytes, name)?, gpu.clone()));
        Ok(Tensor::new(name.into(), mem, 0, dtype, dims))
    }

    /// A tensor for a moment: on a GPU its contents are undefined, and its memory is another op's when it is dropped.
    pub(crate) fn scratch_on(device: &Device, name: &str, dtype: DType, dims: &[usize]) -> Result<Tensor> {
        let Some(gpu) = device.gpu() else { return Tensor::zeros(name, dtype, dims) };
        let bytes = byte_count(name, dtype, dims)?;
        let mem = Rc::new(Memory::Gpu(gpu.scratch(bytes, name)?, gpu.clone()));
        Ok(Tensor::new(name.into(), mem, 0, dtype, dims))
    }

    /// A tensor of its own with these f32 values.
    pub fn from_f32(name: &str, dims: &[usize], values: &[f32]) -> Result<Tensor> {
        let mut t = Tensor::zeros(name, DType::F32, dims)?;
        ensure!(t.len() == values.len(), "{t:?}: got {} values", values.len());
        t.f32_mut()?.copy_from_slice(values);
        Ok(t)
    }

    /// A tensor of its own with these u32 values.
    pub fn from_u32(name: &str, dims: &[usize], values: &[u32]) -> Result<Tensor> {
        let mut t = Tensor::zeros(name, DType::U32, dims)?;
        ensure!(t.len() == values.len(), "{t:?}: got {} values", values.len());
        t.u32_mut()?.copy_from_slice(values);
        Ok(t)
    }

    /// A read-only tensor inside a file mapping, `offset` bytes from its start. Errors if it leaves the file or is misaligned.
    pub fn mapped(name: &str, map: Arc<Map>, offset: usize, dtype: DType, dims: &[usize]) -> Result<Tensor> {
        ensure!(
            (1..=MAX_RANK).contains(&dims.len()),
            "tensor {name}: rank {} is not in 1..={MAX_RANK}",
            dims.len()
        );
        let bytes = byte_count(name, dtype, dims)?;
        let end = offset.checked_add(bytes).with_context(|| format!("tensor {name}: offset overflows"))?;
        ensure!(end <= map.len(), "tensor {name}: ends at byte {end}, but the file has {} bytes", map.len());
        ensure!(
            (map.as_ptr() as usize + offset).is_multiple_of(dtype.bytes()),
            "tensor {name}: misaligned at byte {offset}"
        );
        Ok(Tensor::new(name.into(), Rc::new(Memory::Mapped(map)), offset, dtype, dims))
    }

    /// The tensor's name in messages: a checkpoint path or an activation's name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Where the bytes live.
    pub fn device(&self) -> Device {
        self.gpu().map_or(Device::Cpu, |gpu| Device::Cuda(gpu.clone()))
    }
    /// The GPU, if the bytes are on one.
    pub fn gpu(&self) -> Option<&Arc<Gpu>> {
        if let Memory::Gpu(_, gpu) = &*self.mem { Some(gpu) } else { None }
    }
    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape[..self.rank]
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }
    /// True if a dimension is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes covered.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.bytes()
    }
    /// (product of the leading dimensions, last dimension).
    pub fn rows_cols(&self) -> (usize, usize) {
        let c = self.shape[self.rank - 1];
        (self.shape[..self.rank - 1].iter().product(), c)
    }

    /// Another handle on the same memory: what is written through one is read through the other.
    pub(crate) fn alias(&self) -> Tensor {
        Tensor { name: self.name.clone(), mem: self.mem.clone(), ..*self }
    }

    /// Another handle: the same memory under another shape with as many elements.
    pub(crate) fn view(&self, dims: &[usize]) -> Result<Tensor> {
        self.alias().into_shape(dims)
    }

    /// Another handle: rows `range` of the first dimension.
    pub(crate) fn rows(&self, range: Range<usize>) -> Result<Tensor> {
        self.alias().into_rows(range)
    }

    /// Another handle under another name.
    pub(crate) fn renamed(&self, name: &str) -> Tensor {
        Tensor { name: name.into(), ..self.alias() }
    }

    /// The tensor under another shape with as many elements. Errors if it has others.
    pub fn into_shape(self, dims: &[usize]) -> Result<Tensor> {
        let count = dims.iter().try_fold(1usize, |a, &d| a.checked_mul(d));
        ensure!(
            (1..=MAX_RANK).contains(&dims.len()) && count == Some(self.len()),
            "cannot view {self:?} as {dims:?}"
        );
        Ok(Tensor::new(self.name, self.mem, self.offset, self.dtype, dims))
    }

    /// Rows `range` of the first dimension, instead of the whole. Errors if it has not so many.
    pub fn into_rows(mut self, range: Range<usize>) -> Result<Tensor> {
        ensure!(range.start <= range.end && range.end <= self.shape[0], "rows {range:?} are not in {self:?}");
        let row: usize = self.shape()[1..].iter().product();
        self.offset += range.start * row * self.dtype.bytes();
        self.shape[0] = range.len();
        Ok(self)
    }

    /// Rows `range` of the first dimension, for reading while the whole is borrowed. Errors if it has not so many.
    pub fn slice(&self, range: Range<usize>) -> Result<View<'_>> {
        Ok(View::new(self.rows(range)?))
    }

    /// A handle that copies out what is in this memory at the time, whoever writes it: for looking at the results of a call that owns its outputs.
    pub fn reader(&self) -> Reader {
        Reader::new(self.alias())
    }

    /// True if the two share a byte.
    pub fn overlaps(&self, other: &Tensor) -> bool {
        Rc::ptr_eq(&self.mem, &other.mem)
            && self.offset < other.offset + other.bytes()
            && other.offset < self.offset + self.bytes()
    }

    fn ptr(&self, want: DType) -> Result<*const u8> {
        ensure!(self.dtype == want, "{self:?} is not {want:?}");
        match &*self.mem {
            // SAFETY: offset + bytes() lies inside the allocation by construction.
            Memory::Host(h) => Ok(unsafe { h.ptr.add(self.offset) }),
            // SAFETY: checked against the mapping's length in `mapped`.
            Memory::Mapped(m) => Ok(unsafe { m.as_ptr().add(self.offset) }),
            Memory::Unplaced => bail!("{self:?} was only measured, not placed"),
            Memory::Gpu(_, gpu) => bail!("{self:?} is on {}, not in main memory", gpu.name()),
        }
    }
    fn ptr_mut(&mut self, want: DType) -> Result<*mut u8> {
        ensure!(!matches!(&*self.mem, Memory::Mapped(_)), "{self:?} is a read-only file mapping");
        Ok(self.ptr(want)? as *mut u8)
    }

    /// The elements, if F32.
    pub(crate) fn f32(&self) -> Result<&[f32]> {
        // SAFETY: in bounds, aligned, initialised (zeroed or a file). No other slice of these bytes is written while this one lives: both would be in
        // one call on this thread, which refuses overlapping operands (see the module).
        Ok(unsafe { std::slice::from_raw_parts(self.ptr(DType::F32)?.cast(), self.len()) })
    }
    /// The elements, if F32, for writing.
    pub(crate) fn f32_mut(&mut self) -> Result<&mut [f32]> {
        // SAFETY: as in `f32`; not a mapping.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.ptr_mut(DType::F32)?.cast(), self.len()) })
    }
    /// The elements, if Bf16.
    pub(crate) fn bf16(&self) -> Result<&[bf16]> {
        // SAFETY: as in `f32`.
        Ok(unsafe { std::slice::from_raw_parts(self.ptr(DType::Bf16)?.cast(), self.len()) })
    }
    /// The elements, if Bf16, for writing.
    pub(crate) fn bf16_mut(&mut self) -> Result<&mut [bf16]> {
        // SAFETY: as in `f32_mut`.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.ptr_mut(DType::Bf16)?.cast(), self.len()) })
    }
    /// The elements, if U32.
    pub(crate) fn u32(&self) -> Result<&[u32]> {
        // SAFETY: as in `f32`.
        Ok(unsafe { std::slice::from_raw_parts(self.ptr(DType::U32)?.cast(), self.len()) })
    }
    /// The elements, if U32, for writing.
    pub(crate) fn u32_mut(&mut self) -> Result<&mut [u32]> {
        // SAFETY: as in `f32_mut`.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.ptr_mut(DType::U32)?.cast(), self.len()) })
    }
    /// The elements' bytes, read back from a GPU if they are there.
    fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut out = vec![0; self.bytes()];
        match &*self.mem {
            Memory::Gpu(memory, gpu) => gpu.read(memory, self.offset, &mut out)?,
            _ => {
                let from = self.ptr(self.dtype)?;
                // SAFETY: in bounds; plain data.
                out.copy_from_slice(unsafe { std::slice::from_raw_parts(from, self.bytes()) });
            }
        }
        Ok(out)
    }
    fn set_bytes(&mut self, from: &[u8]) -> Result<()> {
        ensure!(from.len() == self.bytes(), "{self:?}: got {} bytes", from.len());
        if let Memory::Gpu(memory, gpu) = &*self.mem {
            return gpu.write(memory, self.offset, from);
        }
        let to = self.ptr_mut(self.dtype)?;
        // SAFETY: in bounds, not a mapping; `from` is a slice of its own.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    /// A copy of the elements widened to f32 (F32 and Bf16 only), from wherever they are.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        match (self.dtype, self.gpu()) {
            (DType::U32, _) => bail!("{self:?} holds integers"),
            (DType::F32, None) => Ok(self.f32()?.to_vec()),
            (DType::Bf16, None) => Ok(self.bf16()?.iter().map(|x| x.to_f32()).collect()),
            (DType::F32, Some(_)) => Ok(bytemuck::pod_collect_to_vec(&self.to_bytes()?)),
            (DType::Bf16, Some(_)) => Ok(self
                .to_bytes()?
                .chunks_exact(2)
                .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect()),
        }
    }
    /// A copy of the elements, if U32, from wherever they are.
    pub fn to_u32_vec(&self) -> Result<Vec<u32>> {
        ensure!(self.dtype == DType::U32, "{self:?} is not U32");
        Ok(bytemuck::pod_collect_to_vec(&self.to_bytes()?))
    }
    /// Sets the elements from f32 values, rounded if Bf16, wherever they are.
    pub fn write_f32(&mut self, values: &[f32]) -> Result<()> {
        match self.dtype {
            DType::F32 => self.set_bytes(bytemuck::cast_slice(values)),
            DType::Bf16 => {
                let rounded: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
                self.set_bytes(bytemuck::cast_slice(&rounded))
            }
            DType::U32 => bail!("{self:?} holds integers"),
        }
    }
    /// Sets the elements, if Bf16, wherever they are.
    pub fn write_bf16(&mut self, values: &[bf16]) -> Result<()> {
        ensure!(self.dtype == DType::Bf16, "{self:?} is not Bf16");
        self.set_bytes(bytemuck::cast_slice(values))
    }
    /// Sets the elements, if U32, wherever they are.
    pub fn write_u32(&mut self, values: &[u32]) -> Result<()> {
        ensure!(self.dtype == DType::U32, "{self:?} is not U32");
        self.set_bytes(bytemuck::cast_slice(values))
    }
    /// Sets every element to 0, wherever it is.
    pub fn fill_zero(&mut self) -> Result<()> {
        if let Memory::Gpu(memory, gpu) = &*self.mem {
            return gpu.zero(memory, self.offset, self.bytes());
        }
        let (to, n) = (self.ptr_mut(self.dtype)?, self.bytes());
        // SAFETY: in bounds, not a mapping; zero is a value of every dtype.
        unsafe { std::ptr::write_bytes(to, 0, n) };
        Ok(())
    }
    /// A copy in an allocation of its own on `device`, with the same name and dtype.
    pub fn to_device(&self, device: &Device) -> Result<Tensor> {
        let mut copy = Tensor::zeros_on(device, &self.name, self.dtype, self.shape())?;
        copy.set_bytes(&self.to_bytes()?)?;
        Ok(copy)
    }
    /// Sets the elements from a tensor of as many elements and the same dtype, through main memory.
    pub fn copy_from(&mut self, from: &Tensor) -> Result<()> {
        ensure!(self.dtype == from.dtype, "{self:?} and {from:?} differ in type");
        self.set_bytes(&from.to_bytes()?)
    }
}
