//! Ways to look at a tensor that give no second handle to write through.
use std::{fmt, marker::PhantomData, ops::Deref, ops::Range};

use anyhow::Result;

use super::Tensor;

/// A part of a tensor that is borrowed for reading; made by [`Tensor::slice`]. It is never `&mut`, so that the handle in it cannot be moved out.
pub struct View<'a> {
    part: Tensor,
    whole: PhantomData<&'a Tensor>,
}

impl View<'_> {
    pub(super) fn new(part: Tensor) -> View<'static> {
        View { part, whole: PhantomData }
    }
}

impl Deref for View<'_> {
    type Target = Tensor;
    fn deref(&self) -> &Tensor {
        &self.part
    }
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.part.fmt(f)
    }
}

/// A tensor that somebody else writes: it copies out what is there when it is asked; made by [`Tensor::reader`].
pub struct Reader(Tensor);

impl Reader {
    pub(super) fn new(tensor: Tensor) -> Reader {
        Reader(tensor)
    }
    /// Under another name in messages.
    pub fn renamed(&self, name: &str) -> Reader {
        Reader(self.0.renamed(name))
    }
    /// Rows `range` of the first dimension. Errors if there are not so many.
    pub fn rows(&self, range: Range<usize>) -> Result<Reader> {
        Ok(Reader(self.0.rows(range)?))
    }
    /// Its name in messages.
    pub fn name(&self) -> &str {
        self.0.name()
    }
    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        self.0.shape()
    }
    /// Element type.
    pub fn dtype(&self) -> super::DType {
        self.0.dtype()
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// True if a dimension is 0.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// As [`Tensor::to_f32_vec`].
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        self.0.to_f32_vec()
    }
    /// As [`Tensor::to_u32_vec`].
    pub fn to_u32_vec(&self) -> Result<Vec<u32>> {
        self.0.to_u32_vec()
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.fmt(f)
    }
}
