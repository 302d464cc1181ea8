//! Typed, shaped, contiguous views of one allocation, and the arena that lays them out.
//!
//! A [`Tensor`] is a handle: cloning it aliases the same memory. `&mut Tensor` in an op's signature says what is written;
//! ops refuse outputs that overlap any other operand ([`refuse_overlap`]), which is what makes the slices below sound.
#![allow(unsafe_code)]

use std::{alloc::Layout, fmt, ops::Range, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use half::bf16;
use memmap2::Mmap;

use crate::device::{Arg, Device, Gpu, GpuMemory, TensorLabel};

/// Element types that tensors hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// bfloat16: binary32 without its lower 16 bits.
    Bf16,
    /// Unsigned 32-bit: token ids, positions, offsets.
    U32,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        if self == DType::Bf16 { 2 } else { 4 }
    }
    /// The suffix of a kernel's name: `rmsnorm_forward_bf16`.
    pub fn suffix(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::U32 => "u32",
        }
    }
}

enum Memory {
    /// Measuring: nothing behind it yet.
    Unplaced,
    Host(HostBytes),
    /// A read-only file mapping.
    Mapped(Arc<Mmap>),
    /// On a GPU.
    Gpu(GpuMemory, Arc<Gpu>),
}

struct HostBytes {
    ptr: *mut u8,
    layout: Layout,
}
// SAFETY: the bytes are plain data; a `Tensor` is written only through `&mut Tensor`, and ops refuse overlapping operands.
unsafe impl Send for HostBytes {}
// SAFETY: as above.
unsafe impl Sync for HostBytes {}
impl Drop for HostBytes {
    fn drop(&mut self) {
        // SAFETY: allocated with this very layout in `HostBytes::zeroed`.
        unsafe { std::alloc::dealloc(self.ptr, self.layout) }
    }
}

impl HostBytes {
    /// `bytes` of zeroed memory aligned to [`ALIGN`]. Pages are touched lazily by the operating system.
    fn zeroed(bytes: usize, what: &str) -> Result<HostBytes> {
        let layout = Layout::from_size_align(bytes.max(ALIGN), ALIGN)
            .with_context(|| format!("{what}: {bytes} bytes"))?;
        // SAFETY: the layout is not empty.
        let ptr = unsafe { std::alloc::alloc_zeroed(layout) };
        ensure!(
            !ptr.is_null(),
            "out of memory: {what} needs {:.1} MiB; lower the batch size, the sequence length or the model's dtype",
            bytes as f64 / 1048576.0
        );
        Ok(HostBytes { ptr, layout })
    }
}

/// Alignment of every tensor in an arena, bytes.
pub const ALIGN: usize = 256;
const MAX_RANK: usize = 4;

/// A named view: dtype, shape (row-major, contiguous) and a place in one allocation.
#[derive(Clone)]
pub struct Tensor {
    name: Arc<str>,
    mem: Arc<Memory>,
    offset: usize,
    shape: [usize; MAX_RANK],
    rank: usize,
    dtype: DType,
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {:?} {:?}", self.name, self.dtype, self.shape())
    }
}

impl Tensor {
    fn new(name: Arc<str>, mem: Arc<Memory>, offset: usize, dtype: DType, dims: &[usize]) -> Tensor {
        assert!((1..=MAX_RANK).contains(&dims.len()), "{name}: rank {} is not in 1..={MAX_RANK}", dims.len());
        let mut shape = [1; MAX_RANK];
        shape[..dims.len()].copy_from_slice(dims);
        Tensor { name, mem, offset, shape, rank: dims.len(), dtype }
    }

    /// A zeroed tensor in an allocation of its own.
    pub fn zeros(name: &str, dtype: DType, dims: &[usize]) -> Result<Tensor> {
        let bytes =
            dims.iter().try_fold(dtype.bytes(), |a, &d| a.checked_mul(d)).context("tensor too large")?;
        let mem = Arc::new(Memory::Host(HostBytes::zeroed(bytes, name)?));
        Ok(Tensor::new(name.into(), mem, 0, dtype, dims))
    }

    /// The same on a device.
    pub fn zeros_on(device: &Device, name: &str, dtype: DType, dims: &[usize]) -> Result<Tensor> {
        let Some(gpu) = device.gpu() else { return Tensor::zeros(name, dtype, dims) };
        let bytes =
            dims.iter().try_fold(dtype.bytes(), |a, &d| a.checked_mul(d)).context("tensor too large")?;
        let mem = Arc::new(Memory::Gpu(gpu.allocate(bytes, name)?, gpu.clone()));
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
    pub fn mapped(name: &str, map: Arc<Mmap>, offset: usize, dtype: DType, dims: &[usize]) -> Result<Tensor> {
        ensure!(
            (1..=MAX_RANK).contains(&dims.len()),
            "tensor {name}: rank {} is not in 1..={MAX_RANK}",
            dims.len()
        );
        let bytes =
            dims.iter().try_fold(dtype.bytes(), |a, &d| a.checked_mul(d)).context("tensor too large")?;
        let end = offset.checked_add(bytes).with_context(|| format!("tensor {name}: offset overflows"))?;
        ensure!(end <= map.len(), "tensor {name}: ends at byte {end}, but the file has {} bytes", map.len());
        ensure!(
            (map.as_ptr() as usize + offset).is_multiple_of(dtype.bytes()),
            "tensor {name}: misaligned at byte {offset}"
        );
        Ok(Tensor::new(name.into(), Arc::new(Memory::Mapped(map)), offset, dtype, dims))
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
    /// The address of the first byte on a GPU.
    pub(crate) fn address(&self) -> Result<u64> {
        let Memory::Gpu(memory, _) = &*self.mem else { bail!("{self:?} is not on a GPU") };
        Ok(memory.address() + self.offset as u64)
    }
    /// True if the first byte is at a multiple of `n` (a power of two up to [`ALIGN`]); allocations are.
    pub(crate) fn is_aligned(&self, n: usize) -> bool {
        self.offset.is_multiple_of(n)
    }
    /// The address as a kernel's parameter.
    pub(crate) fn arg(&self) -> Result<Arg> {
        Ok(Arg::Tensor(self.address()?, self.label()))
    }
    /// What it is called in messages about a launch.
    pub(crate) fn label(&self) -> TensorLabel {
        let (name, dtype) = (self.name.clone(), self.dtype.suffix());
        TensorLabel { name, dtype, shape: self.shape, rank: self.rank }
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
        self.clone()
    }

    /// The same memory under another shape with as many elements.
    pub fn view(&self, dims: &[usize]) -> Result<Tensor> {
        let t = Tensor::new(self.name.clone(), self.mem.clone(), self.offset, self.dtype, dims);
        ensure!(t.len() == self.len(), "cannot view {self:?} as {dims:?}");
        Ok(t)
    }

    /// Rows `range` of the first dimension.
    pub fn rows(&self, range: Range<usize>) -> Result<Tensor> {
        ensure!(range.start <= range.end && range.end <= self.shape[0], "rows {range:?} are not in {self:?}");
        let row: usize = self.shape()[1..].iter().product();
        let mut t = self.clone();
        t.offset += range.start * row * self.dtype.bytes();
        t.shape[0] = range.len();
        Ok(t)
    }

    /// The same tensor under another name.
    pub fn renamed(&self, name: &str) -> Tensor {
        Tensor { name: name.into(), ..self.clone() }
    }

    /// True if the two share a byte.
    pub fn overlaps(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.mem, &other.mem)
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
    pub fn f32(&self) -> Result<&[f32]> {
        // SAFETY: in bounds, aligned, initialised (zeroed or a file); see the module's note on aliasing.
        Ok(unsafe { std::slice::from_raw_parts(self.ptr(DType::F32)?.cast(), self.len()) })
    }
    /// The elements, if F32, for writing.
    pub fn f32_mut(&mut self) -> Result<&mut [f32]> {
        // SAFETY: as in `f32`; not a mapping.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.ptr_mut(DType::F32)?.cast(), self.len()) })
    }
    /// The elements, if Bf16.
    pub fn bf16(&self) -> Result<&[bf16]> {
        // SAFETY: as in `f32`.
        Ok(unsafe { std::slice::from_raw_parts(self.ptr(DType::Bf16)?.cast(), self.len()) })
    }
    /// The elements, if Bf16, for writing.
    pub fn bf16_mut(&mut self) -> Result<&mut [bf16]> {
        // SAFETY: as in `f32_mut`.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.ptr_mut(DType::Bf16)?.cast(), self.len()) })
    }
    /// The elements, if U32.
    pub fn u32(&self) -> Result<&[u32]> {
        // SAFETY: as in `f32`.
        Ok(unsafe { std::slice::from_raw_parts(self.ptr(DType::U32)?.cast(), self.len()) })
    }
    /// The elements, if U32, for writing.
    pub fn u32_mut(&mut self) -> Result<&mut [u32]> {
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

/// Refuses outputs that share memory with another operand of the same op.
pub fn refuse_overlap(outs: &[&Tensor], ins: &[&Tensor]) -> Result<()> {
    for (i, out) in outs.iter().enumerate() {
        for other in ins.iter().chain(&outs[..i]) {
            ensure!(!out.overlaps(other), "{out:?} overlaps {other:?}");
        }
    }
    Ok(())
}

/// One allocation, cut into tensors. The same closure runs twice: once to measure, once to place.
///
/// On the emulated GPU every tensor gets an allocation of its own, so that leaving one is noticed.
pub struct Arena {
    mem: Arc<Memory>,
    top: usize,
    separate: Option<Arc<Gpu>>,
    failed: Option<anyhow::Error>,
}

impl Arena {
    fn on(mem: Memory) -> Arena {
        Arena { mem: Arc::new(mem), top: 0, separate: None, failed: None }
    }

    /// Lays out `T` in one zeroed allocation named `what`; returns it with the allocation's size in bytes.
    pub fn build<T>(
        what: &str,
        device: &Device,
        mut lay_out: impl FnMut(&mut Arena) -> T,
    ) -> Result<(T, usize)> {
        let bytes = Arena::measure(|a| {
            lay_out(a);
        });
        let mut place = match device {
            Device::Cpu => Arena::on(Memory::Host(HostBytes::zeroed(bytes, what)?)),
            Device::Cuda(gpu) if gpu.is_emulated() => {
                Arena { separate: Some(gpu.clone()), ..Arena::on(Memory::Unplaced) }
            }
            Device::Cuda(gpu) => Arena::on(Memory::Gpu(gpu.allocate(bytes, what)?, gpu.clone())),
        };
        let laid = lay_out(&mut place);
        if let Some(failed) = place.failed {
            return Err(failed.context(format!("allocate {what}")));
        }
        ensure!(place.top == bytes, "{what}: the layout differs between measuring and placing");
        Ok((laid, bytes))
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
                Ok(memory) => (t.mem, t.offset) = (Arc::new(Memory::Gpu(memory, gpu.clone())), 0),
                Err(e) => self.failed = Some(e),
            }
        }
        t
    }
}
