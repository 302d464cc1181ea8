//! Token embedding: rows of a table, gathered; and its gradient, scattered in a fixed order.
use anyhow::Result;

use crate::tensor::{DType, Tensor, refuse_overlap};

use super::checks::{check, check_ids};

/// out (N, C) = weight (V, C) `[tokens (N)]`. The weight may be F32 or Bf16; errors name the first token that is not below V.
pub fn embedding_forward(out: &mut Tensor, tokens: &Tensor, weight: &Tensor) -> Result<()> {
    let (n, c) = out.rows_cols();
    let (v, wc) = weight.rows_cols();
    check(wc == c && tokens.len() == n, "embedding_forward", &[out, tokens, weight])?;
    refuse_overlap(&[out], &[tokens, weight])?;
    let ids = tokens.u32()?;
    check_ids("embedding_forward", tokens, ids, v, weight)?;
    let table: Vec<f64> = weight.to_f32_vec()?.iter().map(|&x| x as f64).collect();
    let mut o = vec![0.0; n * c];
    reference::forward(&mut o, ids, &table, c);
    out.f32_mut()?.iter_mut().zip(o).for_each(|(a, b)| *a = b as f32);
    Ok(())
}

/// dweight (V, C) += dout (N, C) scattered to rows `tokens` (N), in the order of the rows: the same bits for any thread count.
pub fn embedding_backward(dweight: &mut Tensor, dout: &Tensor, tokens: &Tensor) -> Result<()> {
    let (n, c) = dout.rows_cols();
    let (v, wc) = dweight.rows_cols();
    check(wc == c && tokens.len() == n, "embedding_backward", &[dweight, dout, tokens])?;
    refuse_overlap(&[dweight], &[dout, tokens])?;
    let ids = tokens.u32()?;
    check_ids("embedding_backward", tokens, ids, v, dweight)?;
    debug_assert_eq!(dweight.dtype(), DType::F32);
    let (dw, dout) = (dweight.f32_mut()?, dout.f32()?);
    for (row, &id) in dout.chunks_exact(c.max(1)).zip(ids) {
        dw[id as usize * c..][..c].iter_mut().zip(row).for_each(|(a, b)| *a += b);
    }
    Ok(())
}

/// The naive oracle, in f64.
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
