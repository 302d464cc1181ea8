//! The mean of each document's rows: sentence vectors from hidden states, and back.
#![allow(unsafe_code)]
use anyhow::Result;

use super::{
    checks::{check, check_documents},
    kernels,
    launch::{Grid, gpu_of},
    parallel::{Shared, for_each_task, map_chunks},
};
use crate::tensor::{DType, Tensor, refuse_overlap};

/// out (D, C), F32, = the mean over the rows of each of D documents in inp (N, C); `cu_seqlens` (D + 1) are the documents' offsets. A document without rows has the
/// mean 0. inp is F32 or, on a GPU, Bf16. The CPU adds up in f64, a GPU in f32.
///
/// # Errors
/// Shapes that do not fit; on the CPU offsets that fall, or do not end with N. On a GPU no row beyond N is read.
pub fn segment_mean_forward(out: &mut Tensor, inp: &Tensor, cu_seqlens: &Tensor) -> Result<()> {
    const OP: &str = "segment_mean_forward";
    let ((d, c), (n, width)) = (out.rows_cols(), inp.rows_cols());
    let fits = out.dtype() == DType::F32 && cu_seqlens.dtype() == DType::U32 && cu_seqlens.len() == d + 1;
    check(fits && width == c, OP, &[out, inp, cu_seqlens])?;
    refuse_overlap(&[out], &[inp, cu_seqlens])?;
    if let Some(gpu) = gpu_of(OP, &[out, inp, cu_seqlens])? {
        let grid = Grid::tiles([c, d, 1]);
        // SAFETY: shapes were checked, offsets are checked by the kernel.
        return unsafe { kernels::segment_mean_forward(&gpu, grid, out, inp, cu_seqlens, n, c) };
    }
    let (ends, inp) = (check_documents(OP, cu_seqlens, n)?, inp.f32()?);
    map_chunks(out.f32_mut()?, c.max(1), n * c, |i, out| {
        let rows = &inp[ends[i] as usize * c..ends[i + 1] as usize * c];
        let count = (ends[i + 1] - ends[i]).max(1) as f64;
        for (j, mean) in out.iter_mut().enumerate() {
            *mean = (rows.iter().skip(j).step_by(c).map(|&x| f64::from(x)).sum::<f64>() / count) as f32;
        }
    });
    Ok(())
}

/// dinp (N, C) = the gradient of [`segment_mean_forward`] for dout (D, C), F32: of each row its document's, divided by the document's rows.
///
/// # Errors
/// As [`segment_mean_forward`].
pub fn segment_mean_backward(dinp: &mut Tensor, dout: &Tensor, cu_seqlens: &Tensor) -> Result<()> {
    const OP: &str = "segment_mean_backward";
    let ((n, c), (d, width)) = (dinp.rows_cols(), dout.rows_cols());
    let fits = dout.dtype() == DType::F32 && cu_seqlens.dtype() == DType::U32 && cu_seqlens.len() == d + 1;
    check(fits && width == c, OP, &[dinp, dout, cu_seqlens])?;
    refuse_overlap(&[dinp], &[dout, cu_seqlens])?;
    if let Some(gpu) = gpu_of(OP, &[dinp, dout, cu_seqlens])? {
        let grid = Grid::tiles([c, d, 1]);
        // SAFETY: shapes were checked, offsets are checked by the kernel.
        return unsafe { kernels::segment_mean_backward(&gpu, grid, dinp, dout, cu_seqlens, n, c) };
    }
    let (ends, dout) = (check_documents(OP, cu_seqlens, n)?, dout.f32()?);
    let dinp = Shared::new(dinp.f32_mut()?);
    for_each_task(d, n * c, |i| {
        let (begin, end) = (ends[i] as usize, ends[i + 1] as usize);
        // SAFETY: each row belongs to one document.
        let rows = unsafe { dinp.part(begin * c, (end - begin) * c) };
        let each: Vec<f32> = dout[i * c..][..c].iter().map(|x| x / (end - begin).max(1) as f32).collect();
        rows.chunks_exact_mut(c.max(1)).for_each(|row| row.copy_from_slice(&each));
    });
    Ok(())
}

/// The naive oracle, in f64.
pub mod reference {
    /// The means of documents with these ends, (documents, c), of inp (n, c).
    pub fn forward(inp: &[f32], ends: &[usize], c: usize) -> Vec<f64> {
        let mut out = vec![0.0; (ends.len() - 1) * c];
        for d in 0..ends.len() - 1 {
            for i in ends[d]..ends[d + 1] {
                (0..c).for_each(|j| {
                    out[d * c + j] += f64::from(inp[i * c + j]) / (ends[d + 1] - ends[d]) as f64
                });
            }
        }
        out
    }

    /// Its gradient by inp for dout (documents, c).
    pub fn backward(dout: &[f32], ends: &[usize], c: usize) -> Vec<f64> {
        let mut dinp = vec![0.0; ends[ends.len() - 1] * c];
        for d in 0..ends.len() - 1 {
            for i in ends[d]..ends[d + 1] {
                (0..c).for_each(|j| {
                    dinp[i * c + j] = f64::from(dout[d * c + j]) / (ends[d + 1] - ends[d]) as f64
                });
            }
        }
        dinp
    }
}
