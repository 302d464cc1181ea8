//! Rows of a weight as products read them: a piece of a tensor, or blocks unpacked into memory that the thread keeps.
use std::{
    cell::Cell,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use anyhow::Result;
use half::bf16;
use rayon::prelude::*;

use crate::{
    ops::quantize::{HostBlocks, Matrix},
    tensor::DType,
};

/// The matrix that is read row by row.
#[derive(Clone, Copy)]
pub(super) enum Weight<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    Blocks(HostBlocks<'a>),
}

/// A weight in main memory.
pub(super) fn weight<'a>(matrix: &Matrix<'a>) -> Result<Weight<'a>> {
    Ok(match matrix {
        Matrix::Dense(t) if t.dtype() == DType::Bf16 => Weight::Bf16(t.bf16()?),
        Matrix::Dense(t) => Weight::F32(t.f32()?),
        Matrix::Blocks(b) => Weight::Blocks(b.host()?),
    })
}

/// What a thread's memory holds: of which call, which of its weights, from which row on.
pub(super) type Tag = (u64, usize, usize);

/// A number that no other call has.
pub(super) fn call_number() -> u64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    CALLS.fetch_add(1, Relaxed)
}

#[derive(Default)]
struct Kept {
    f32: Vec<f32>,
    bf16: Vec<bf16>,
    tag: Option<Tag>,
}

thread_local!(static KEPT: Cell<Kept> = Cell::new(Kept::default()));

/// Some rows; memory that was used for them goes back to the thread on drop.
pub(super) struct Rows<'a> {
    in_place: Option<Weight<'a>>,
    kept: Kept,
    len: usize,
    dtype: DType,
}

impl<'a> Weight<'a> {
    /// True if products read bf16.
    pub(super) fn is_bf16(&self) -> bool {
        match self {
            Weight::F32(_) => false,
            Weight::Bf16(_) => true,
            Weight::Blocks(b) => b.compute() == DType::Bf16,
        }
    }

    /// Rows `rows` of `k` elements. With a tag, rows that this thread unpacked last under the same one are not unpacked again.
    pub(super) fn rows(self, rows: Range<usize>, k: usize, tag: Option<Tag>) -> Rows<'a> {
        let range = rows.start * k..rows.end * k;
        let (len, dtype) = (range.len(), if self.is_bf16() { DType::Bf16 } else { DType::F32 });
        let dense = |weight| Rows { in_place: Some(weight), kept: Kept::default(), len, dtype };
        let blocks = match self {
            Weight::F32(w) => return dense(Weight::F32(&w[range])),
            Weight::Bf16(w) => return dense(Weight::Bf16(&w[range])),
            Weight::Blocks(blocks) => blocks,
        };
        let mut kept = KEPT.take();
        if tag.is_none() || kept.tag != tag {
            kept.make_room(len, dtype);
            match dtype {
                DType::Bf16 => blocks.unpack_bf16(rows, &mut kept.bf16[..len]),
                _ => blocks.unpack_f32(rows, &mut kept.f32[..len]),
            }
        }
        kept.tag = tag;
        Rows { in_place: None, kept, len, dtype }
    }

    /// The same for all threads, unpacked by all of them.
    pub(super) fn shared_rows(self, rows: Range<usize>, k: usize) -> Rows<'a> {
        let Weight::Blocks(blocks) = self else { return self.rows(rows, k, None) };
        let (len, dtype, first) = (rows.len() * k, blocks.compute(), rows.start);
        let mut kept = KEPT.take();
        kept.make_room(len, dtype);
        kept.tag = None;
        if dtype == DType::Bf16 {
            let out = kept.bf16[..len].par_chunks_mut(k.max(1)).enumerate();
            out.for_each(|(r, out)| blocks.unpack_bf16(first + r..first + r + 1, out));
        } else {
            let out = kept.f32[..len].par_chunks_mut(k.max(1)).enumerate();
            out.for_each(|(r, out)| blocks.unpack_f32(first + r..first + r + 1, out));
        }
        Rows { in_place: None, kept, len, dtype }
    }
}

impl Kept {
    fn make_room(&mut self, len: usize, dtype: DType) {
        match dtype {
            DType::Bf16 if self.bf16.len() < len => self.bf16.resize(len, bf16::ZERO),
            DType::F32 if self.f32.len() < len => self.f32.resize(len, 0.0),
            _ => {}
        }
    }
}

impl Rows<'_> {
    /// The rows, the first of them at 0: F32 or Bf16.
    pub(super) fn weight(&self) -> Weight<'_> {
        match (self.in_place, self.dtype) {
            (Some(weight), _) => weight,
            (None, DType::Bf16) => Weight::Bf16(&self.kept.bf16[..self.len]),
            (None, _) => Weight::F32(&self.kept.f32[..self.len]),
        }
    }
}

impl Drop for Rows<'_> {
    fn drop(&mut self) {
        if self.in_place.is_none() {
            KEPT.set(std::mem::take(&mut self.kept));
        }
    }
}
