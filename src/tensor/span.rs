//! Tensors that lie side by side as one.
use std::rc::Rc;

use anyhow::{Result, ensure};

use super::{ALIGN, DType, Tensor, byte_count};

impl Tensor {
    /// The elements in one dimension.
    pub(crate) fn flat(&self) -> Tensor {
        let n = self.len();
        Tensor::new(self.name.clone(), self.mem.clone(), self.offset, self.dtype, &[n])
    }

    /// Another handle on some of this memory, from byte `offset` on, under another name, type and shape.
    pub(crate) fn cut(&self, name: &str, offset: usize, dtype: DType, dims: &[usize]) -> Result<Tensor> {
        let end = byte_count(name, dtype, dims)?.checked_add(offset);
        ensure!(
            end.is_some_and(|end| end <= self.bytes()) && offset.is_multiple_of(ALIGN),
            "{name}: {dims:?} of {dtype:?} from byte {offset} on are not in {self:?}"
        );
        Ok(Tensor::new(name.into(), self.mem.clone(), self.offset + offset, dtype, dims))
    }

    /// The bytes of a tensor in main memory.
    pub(crate) fn host_bytes(&self) -> Result<&[u8]> {
        let from = self.ptr(self.dtype)?;
        // SAFETY: in bounds; plain data, of which nothing is written while this slice lives, as in `f32`.
        Ok(unsafe { std::slice::from_raw_parts(from, self.bytes()) })
    }

    /// This tensor and `next`, both F32, in one dimension with the gap between them, if they lie in one allocation with no more than an arena's gap in between.
    pub(crate) fn span(&self, next: &Tensor) -> Option<Tensor> {
        let end = self.offset + self.bytes();
        let gap = next.offset.checked_sub(end)?;
        let f32 = [self, next].iter().all(|t| t.dtype == DType::F32);
        if !f32 || !Rc::ptr_eq(&self.mem, &next.mem) || gap >= ALIGN {
            return None;
        }
        let n = (next.offset + next.bytes() - self.offset) / DType::F32.bytes();
        Some(Tensor::new(self.name.clone(), self.mem.clone(), self.offset, DType::F32, &[n]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{device::Device, tensor::Arena};

    #[test]
    fn neighbours_of_an_arena_are_one_span_and_strangers_are_none() {
        let lay_out = |a: &mut Arena| ["a", "b", "c"].map(|name| a.tensor(name, DType::F32, &[3, 5]));
        let ([a, b, c], _) = Arena::build("three", &Device::Cpu, lay_out).unwrap();
        let ab = a.span(&b).unwrap();
        assert_eq!(ab.shape(), [ALIGN / 4 + 15]);
        assert_eq!(ab.span(&c).unwrap().len(), 2 * ALIGN / 4 + 15);
        assert!(a.span(&c).is_none() && b.span(&a).is_none());
        assert!(a.span(&Tensor::zeros("other", DType::F32, &[4]).unwrap()).is_none());
        assert_eq!(a.flat().shape(), [15]);
    }
}
