//! A matrix kept as ggml's blocks, as they lie in the file.
//!
//! Blocks interleave codes and scales, and stay so: nothing is copied or unpacked at load, and a format is only known to the code that unpacks a row.
//! Products read values of one type, the run's: on the CPU some rows at a time are unpacked into scratch memory, on a GPU a matrix at a time.
use std::{fmt, ops::Range, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use half::bf16;
use rayon::prelude::*;

use super::{GgmlType, dequantize, int8};
use crate::{
    data::map::Map,
    device::Device,
    tensor::{Activations, DType, Tensor},
};

/// Where the rows of a matrix stand among those of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RowOrder {
    /// In their own order.
    #[default]
    Straight,
    /// As llama.cpp keeps the q and k of a Llama: within each head of so many rows the two halves alternate (x0 y0 x1 y1 ...).
    Interleaved(usize),
}

impl RowOrder {
    /// The file's row of row `row`.
    #[inline]
    pub fn stored(self, row: usize) -> usize {
        match self {
            RowOrder::Straight => row,
            RowOrder::Interleaved(head_size) => {
                let (head, i) = (row / head_size, row % head_size);
                let half = head_size / 2;
                head * head_size + i % half * 2 + i / half
            }
        }
    }

    /// The row that stands as the file's row `stored`: the inverse of [`RowOrder::stored`].
    #[inline]
    pub fn own(self, stored: usize) -> usize {
        match self {
            RowOrder::Straight => stored,
            RowOrder::Interleaved(head_size) => {
                let (head, i) = (stored / head_size, stored % head_size);
                head * head_size + i % 2 * (head_size / 2) + i / 2
            }
        }
    }
}

/// The format of a matrix in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockFormat {
    /// Of the blocks.
    pub kind: GgmlType,
    /// (rows, columns)
    pub shape: [usize; 2],
    /// Of the rows.
    pub order: RowOrder,
    /// What products read: F32 or Bf16, the run's type.
    pub compute: DType,
    /// What they read of their input.
    pub activations: Activations,
}

/// A matrix (rows, columns) as ggml's blocks. Columns are whole blocks.
pub struct Blocks {
    name: Arc<str>,
    pub(super) format: BlockFormat,
    place: Place,
}

enum Place {
    /// In a file mapping, from this byte on.
    Mapped(Arc<Map>, usize),
    /// In memory of its own.
    Owned(Arc<[u8]>),
    /// On a GPU, in the matrix's own order of rows: bytes in a U32 tensor, and what they are unpacked into.
    Gpu(Tensor, Scratch),
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {} {:?}", self.name, self.format.kind.name(), self.format.shape)
    }
}

/// Memory on a GPU that one matrix at a time is unpacked into: made once for all of a model's, as large as the largest. Work on a GPU runs in the order in
/// which one thread asked for it, so that the next matrix may follow as soon as the product with this one was asked for.
pub struct Scratch(Tensor);

impl Scratch {
    /// Room for `values` of type `dtype` on `device`.
    pub fn new(device: &Device, dtype: DType, values: usize) -> Result<Scratch> {
        Ok(Scratch(Tensor::zeros_on(device, "dequantised", dtype, &[values.max(1)])?))
    }
    /// Bytes of it.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
    fn share(&self) -> Scratch {
        Scratch(self.0.alias())
    }
}

impl Blocks {
    /// The blocks in a mapped file, from byte `offset` on; nothing is read yet. Errors if they leave the file or a row is not whole blocks.
    pub fn mapped(name: &str, map: Arc<Map>, offset: usize, format: BlockFormat) -> Result<Blocks> {
        let bytes = format.bytes(name)?;
        let end = offset.checked_add(bytes).with_context(|| format!("tensor {name}: offset overflows"))?;
        ensure!(
            end <= map.len(),
            "tensor {name} ends at byte {end}, but the file has {}: it is truncated",
            map.len()
        );
        Ok(Blocks { name: name.into(), format, place: Place::Mapped(map, offset) })
    }

    /// Blocks in memory of their own.
    pub fn from_bytes(name: &str, bytes: &[u8], format: BlockFormat) -> Result<Blocks> {
        let want = format.bytes(name)?;
        ensure!(bytes.len() == want, "tensor {name}: {} bytes, expected {want}", bytes.len());
        Ok(Blocks { name: name.into(), format, place: Place::Owned(bytes.into()) })
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Format, shape, type of products.
    pub fn format(&self) -> BlockFormat {
        self.format
    }
    /// (rows, columns)
    pub fn shape(&self) -> &[usize] {
        &self.format.shape
    }
    /// Where the blocks are.
    pub fn device(&self) -> Device {
        if let Place::Gpu(words, _) = &self.place { words.device() } else { Device::Cpu }
    }
    /// Bytes of the blocks.
    pub fn bytes(&self) -> usize {
        self.format.shape[0] * self.format.row_bytes()
    }
    /// True if the blocks are the file's own bytes.
    pub fn is_mapped(&self) -> bool {
        matches!(self.place, Place::Mapped(..))
    }

    /// Another handle on the same blocks.
    pub(crate) fn alias(&self) -> Blocks {
        let place = match &self.place {
            Place::Mapped(map, offset) => Place::Mapped(map.clone(), *offset),
            Place::Owned(bytes) => Place::Owned(bytes.clone()),
            Place::Gpu(words, scratch) => Place::Gpu(words.alias(), scratch.share()),
        };
        Blocks { name: self.name.clone(), format: self.format, place }
    }

    /// The blocks in main memory: the same ones if that is where they are.
    pub fn to_host(&self) -> Result<Blocks> {
        let Place::Gpu(words, _) = &self.place else { return Ok(self.alias()) };
        let words = words.to_u32_vec()?;
        Blocks::from_bytes(&self.name, &bytemuck::cast_slice(&words)[..self.bytes()], self.format)
    }

    /// A copy on `device`, whose products unpack into `scratch`, memory there. Errors if that is too small.
    pub fn to_device(&self, device: &Device, scratch: &Scratch) -> Result<Blocks> {
        let [rows, cols] = self.format.shape;
        let room = &scratch.0;
        let fits = room.device() == *device && room.dtype() == self.format.compute;
        ensure!(fits && room.len() >= rows * cols, "{self:?} cannot be unpacked into {room:?}");
        let here = self.to_host()?;
        let host = here.host()?;
        let mut bytes = Vec::with_capacity(self.bytes().next_multiple_of(4));
        (0..rows).for_each(|r| bytes.extend_from_slice(host.row(r)));
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let mut words = Tensor::zeros_on(device, &self.name, DType::U32, &[bytes.len() / 4])?;
        words.write_u32(&bytemuck::pod_collect_to_vec::<u8, u32>(&bytes))?;
        let format = BlockFormat { order: RowOrder::Straight, ..self.format };
        Ok(Blocks { name: self.name.clone(), format, place: Place::Gpu(words, scratch.share()) })
    }

    /// The values as a tensor of type `dtype`, where the blocks are: exact in F32, rounded once in Bf16.
    pub fn to_dense(&self, dtype: DType) -> Result<Tensor> {
        let [rows, cols] = self.format.shape;
        let mut out = Tensor::zeros_on(&self.device(), &self.name, dtype, &[rows, cols])?;
        if let Place::Gpu(words, _) = &self.place {
            dequantize(&mut out, words, self.format.kind)?;
            return Ok(out);
        }
        let host = self.host()?;
        match dtype {
            DType::F32 => {
                let out = out.f32_mut()?.par_chunks_mut(cols.max(1));
                out.enumerate().for_each(|(r, out)| host.row_f32(r, out));
            }
            DType::Bf16 => {
                let out = out.bf16_mut()?.par_chunks_mut(cols.max(1));
                out.enumerate().for_each(|(r, out)| host.row_bf16(r, out));
            }
            DType::U32 => bail!("{self:?} holds no integers"),
        }
        Ok(out)
    }

    /// The blocks in main memory.
    pub(crate) fn host(&self) -> Result<HostBlocks<'_>> {
        let bytes = match &self.place {
            Place::Mapped(map, offset) => &map[*offset..offset + self.bytes()],
            Place::Owned(bytes) => bytes,
            Place::Gpu(words, _) => bail!("{self:?} is on {:?}, not in main memory", words.device()),
        };
        Ok(HostBlocks { bytes, format: self.format, row_bytes: self.format.row_bytes() })
    }

    /// On a GPU: calls `f` with the values, unpacked into the scratch. `None` if the blocks are in main memory.
    pub(crate) fn on_gpu<T>(&self, f: impl FnOnce(&Tensor) -> Result<T>) -> Result<Option<T>> {
        let Place::Gpu(words, scratch) = &self.place else { return Ok(None) };
        let [rows, cols] = self.format.shape;
        let mut dense = scratch.0.rows(0..rows * cols)?.view(&[rows, cols])?.renamed(&self.name);
        dequantize(&mut dense, words, self.format.kind)?;
        f(&dense).map(Some)
    }

    /// The bytes on a GPU.
    pub(super) fn words(&self) -> Option<&Tensor> {
        if let Place::Gpu(words, _) = &self.place { Some(words) } else { None }
    }
}

impl BlockFormat {
    fn row_bytes(&self) -> usize {
        // `bytes` checked that this is a number.
        self.kind.row_bytes(self.shape[1]).unwrap_or(0)
    }

    /// Bytes of the whole matrix.
    fn bytes(&self, name: &str) -> Result<usize> {
        let ([rows, cols], (values, _)) = (self.shape, self.kind.block());
        let row = self.kind.row_bytes(cols).with_context(|| {
            format!("rows of {name} are not whole blocks of {values}: {cols} columns of {}", self.kind.name())
        })?;
        ensure!(self.compute != DType::U32, "tensor {name}: no product reads integers");
        ensure!(
            self.activations == Activations::F32 || int8::group_of(self.kind).is_some(),
            "tensor {name} is {}: {}",
            self.kind.name(),
            int8::only()
        );
        if let RowOrder::Interleaved(head_size) = self.order {
            let whole = head_size > 0 && head_size.is_multiple_of(2) && rows.is_multiple_of(head_size);
            ensure!(whole, "tensor {name}: {rows} rows are not whole heads of {head_size}");
        }
        rows.checked_mul(row).filter(|_| rows.checked_mul(cols).is_some()).context("tensor too large")
    }
}

/// Blocks in main memory.
#[derive(Clone, Copy)]
pub(crate) struct HostBlocks<'a> {
    bytes: &'a [u8],
    format: BlockFormat,
    row_bytes: usize,
}

impl HostBlocks<'_> {
    /// What products read.
    pub(crate) fn compute(&self) -> DType {
        self.format.compute
    }
    /// The type of the blocks.
    pub(super) fn kind(&self) -> GgmlType {
        self.format.kind
    }
    /// The blocks of row `row`.
    #[inline]
    pub(super) fn row(&self, row: usize) -> &[u8] {
        &self.bytes[self.format.order.stored(row) * self.row_bytes..][..self.row_bytes]
    }
    fn row_f32(&self, row: usize, out: &mut [f32]) {
        self.format.kind.dequantize(self.row(row), out)
    }
    fn row_bf16(&self, row: usize, out: &mut [bf16]) {
        self.format.kind.dequantize_bf16(self.row(row), out)
    }
    /// out = rows `rows`, exact.
    pub(crate) fn unpack_f32(&self, rows: Range<usize>, out: &mut [f32]) {
        let cols = self.format.shape[1].max(1);
        rows.zip(out.chunks_exact_mut(cols)).for_each(|(r, out)| self.row_f32(r, out));
    }
    /// out = rows `rows`, rounded.
    pub(crate) fn unpack_bf16(&self, rows: Range<usize>, out: &mut [bf16]) {
        let cols = self.format.shape[1].max(1);
        rows.zip(out.chunks_exact_mut(cols)).for_each(|(r, out)| self.row_bf16(r, out));
    }
    /// out = row `row` as products read it, widened.
    pub(crate) fn row_as_read(&self, row: usize, out: &mut [f32]) {
        self.row_f32(row, out);
        if self.format.compute == DType::Bf16 {
            out.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
        }
    }
}
