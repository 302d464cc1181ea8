//! Token embedding: rows of a table, gathered; and its gradient, scattered in a fixed order.
#![allow(unsafe_code)]
use anyhow::{Result, bail};

use crate::tensor::{DType, Tensor, refuse_overlap};

use super::{
    checks::{check, check_ids},
    kernels,
    launch::{Grid, gpu_of},
    parallel::{Shared, for_each_rows, for_each_task},
    quantize::{Blocks, Matrix, gather_on_gpu},
};

/// sqrt(C), by which Gemma multiplies its embeddings, rounded to the type that the model computes in (`Gemma2TextScaledWordEmbedding` of transformers).
pub fn embedding_scale(c: usize, dtype: DType) -> f32 {
    let root = (c as f64).sqrt() as f32;
    if dtype == DType::Bf16 { half::bf16::from_f32(root).to_f32() } else { root }
}

/// [`scaled_embedding_forward`] with a scale of 1: the rows as they are.
pub fn embedding_forward<'a>(out: &mut Tensor, tokens: &Tensor, weight: impl Into<Matrix<'a>>) -> Result<()> {
    scaled_embedding_forward(out, tokens, weight, 1.0)
}

/// out (N, C) = scale weight (V, C) `[tokens (N)]`, rounded once to out's dtype. On the CPU the weight may be F32 or Bf16, on a GPU it has
/// out's dtype; of blocks only the rows of tokens are unpacked (all of them on a GPU if the scale is not 1). Errors name the first token that
/// is not below V; on a GPU such a row is NaN.
pub fn scaled_embedding_forward<'a>(
    out: &mut Tensor,
    tokens: &Tensor,
    weight: impl Into<Matrix<'a>>,
    scale: f32,
) -> Result<()> {
    let (n, c) = out.rows_cols();
    let weight = weight.into();
    let (v, wc) = weight.rows_cols();
    weight.check(wc == c && tokens.len() == n, "embedding_forward", &[out, tokens])?;
    let weight = match weight {
        Matrix::Dense(weight) => weight,
        Matrix::Blocks(blocks) => return rows_of_blocks(out, tokens, blocks, scale),
    };
    refuse_overlap(&[out], &[tokens, weight])?;
    if let Some(gpu) = gpu_of("embedding_forward", &[out, tokens, weight])? {
        // SAFETY: shapes were checked, tokens are checked by the kernel.
        return unsafe { kernels::embedding_forward(&gpu, Grid::new(n), out, tokens, weight, scale, c, v) };
    }
    let ids = tokens.u32()?;
    check_ids("embedding_forward", tokens, ids, v, weight)?;
    match weight.dtype() {
        DType::F32 => gather(out, ids, weight.f32()?, |to, from| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from * scale);
        }),
        DType::Bf16 => gather(out, ids, weight.bf16()?, |to, from| {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32() * scale);
        }),
        DType::U32 => bail!("embedding_forward: {weight:?} holds integers"),
    }
}

fn rows_of_blocks(out: &mut Tensor, tokens: &Tensor, blocks: &Blocks, scale: f32) -> Result<()> {
    if scale != 1.0 {
        let whole = Matrix::Blocks(blocks);
        let scale_rows = |weight: &Tensor| scaled_embedding_forward(out, tokens, weight, scale);
        if whole.dense("embedding_forward", tokens, scale_rows)?.is_some() {
            return Ok(());
        }
    } else if gather_on_gpu(out, tokens, blocks)?.is_some() {
        return Ok(());
    }
    let ids = tokens.u32()?;
    check_ids("embedding_forward", tokens, ids, blocks.format().shape[0], blocks)?;
    let (n, c) = out.rows_cols();
    let (out, blocks) = (Shared::new(out.f32_mut()?), blocks.host()?);
    for_each_rows(n, c, |block| {
        for i in block {
            // SAFETY: each row belongs to one block.
            let row = unsafe { out.part(i * c, c) };
            blocks.row_as_read(ids[i] as usize, row);
            if scale != 1.0 {
                row.iter_mut().for_each(|x| *x *= scale);
            }
        }
    });
    Ok(())
}

fn gather<T: Sync>(
    out: &mut Tensor,
    ids: &[u32],
    table: &[T],
    copy: impl Fn(&mut [f32], &[T]) + Sync + Send,
) -> Result<()> {
    let (n, c) = out.rows_cols();
    let out = Shared::new(out.f32_mut()?);
    for_each_rows(n, c, |block| {
        for i in block {
            // SAFETY: each row belongs to one block.
            let row = unsafe { out.part(i * c, c) };
            copy(row, &table[ids[i] as usize * c..][..c]);
        }
    });
    Ok(())
}

/// [`scaled_embedding_backward`] with a scale of 1.
pub fn embedding_backward(dweight: &mut Tensor, dout: &Tensor, tokens: &Tensor) -> Result<()> {
    scaled_embedding_backward(dweight, dout, tokens, 1.0)
}

/// dweight (V, C) += scale dout (N, C) scattered to rows `tokens` (N), in the order of the rows: the same bits for any thread count.
pub fn scaled_embedding_backward(
    dweight: &mut Tensor,
    dout: &Tensor,
    tokens: &Tensor,
    scale: f32,
) -> Result<()> {
    let (n, c) = dout.rows_cols();
    let (v, wc) = dweight.rows_cols();
    check(wc == c && tokens.len() == n, "embedding_backward", &[dweight, dout, tokens])?;
    refuse_overlap(&[dweight], &[dout, tokens])?;
    if let Some(gpu) = gpu_of("embedding_backward", &[dweight, dout, tokens])? {
        // SAFETY: shapes were checked, tokens are checked by the kernel.
        return unsafe {
            kernels::embedding_backward(&gpu, Grid::new(n), dweight, dout, tokens, scale, n, c, v)
        };
    }
    let ids = tokens.u32()?;
    check_ids("embedding_backward", tokens, ids, v, dweight)?;
    let (dweight, dout) = (Shared::new(dweight.f32_mut()?), dout.f32()?);
    // Strips of columns: each adds its rows in order, and no two strips share an element.
    const STRIP: usize = 64;
    for_each_task(c.div_ceil(STRIP), n * c, |strip| {
        let first = strip * STRIP;
        let width = STRIP.min(c - first);
        for (i, &id) in ids.iter().enumerate() {
            // SAFETY: these columns belong to this strip.
            let to = unsafe { dweight.part(id as usize * c + first, width) };
            to.iter_mut().zip(&dout[i * c + first..]).for_each(|(to, x)| *to += scale * x);
        }
    });
    Ok(())
}

/// The naive oracle, in f64, of a scale of 1.
pub mod reference {
    /// out (N, C) = weight (V, C) `[tokens]`.
    pub fn forward(out: &mut [f64], tokens: &[u32], weight: &[f64], c: usize) {
        for (n, &t) in tokens.iter().enumerate() {
            out[n * c..(n + 1) * c].copy_from_slice(&weight[t as usize * c..][..c]);
        }
    }
    /// dweight (V, C) += dout (N, C) at rows `tokens`.
    pub fn backward(dweight: &mut [f64], dout: &[f64], tokens: &[u32], c: usize) {
        for (n, &t) in tokens.iter().enumerate() {
            for i in 0..c {
                dweight[t as usize * c + i] += dout[n * c + i];
            }
        }
    }
}
