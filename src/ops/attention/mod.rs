//! Causal attention over packed documents of any length: grouped-query heads, sliding window, log-sum-exp saved.
use anyhow::Result;

use crate::tensor::{Tensor, refuse_overlap};

use super::checks::{check, check_documents};

pub mod reference;

/// What the shapes of the tensors do not say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// NH, query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// NKV, key and value heads; query head h reads key head h / (NH / NKV).
    pub kv_heads: usize,
    /// HS, elements of one head.
    pub head_size: usize,
    /// Factor of the scores, usually 1 / sqrt(HS).
    pub scale: f32,
    /// Sliding window: query i sees key j if i - j < window (and j <= i).
    pub window: Option<usize>,
}

impl AttentionShape {
    /// True if the numbers make sense together: nothing is 0 and the heads divide.
    pub(crate) fn is_valid(&self) -> bool {
        self.head_size > 0
            && self.kv_heads > 0
            && self.heads > 0
            && self.heads % self.kv_heads == 0
            && self.window != Some(0)
    }
    /// NH * HS, the width of a query row.
    pub(crate) fn q_row(&self) -> usize {
        self.heads * self.head_size
    }
    /// NKV * HS, the width of a key or value row.
    pub(crate) fn kv_row(&self) -> usize {
        self.kv_heads * self.head_size
    }
}

/// out (N, NH*HS) = softmax(scale q k^T) v and lse (NH, N) = its log-sum-exp, for q (N, NH*HS), k, v (N, NKV*HS): causal,
/// and confined to each document `cu_seqlens[d]..cu_seqlens[d + 1]` (U32, D+1 offsets; empty documents are fine).
/// A document's result does not depend on the documents packed with it, nor on the thread count.
pub fn attention_forward(
    out: &mut Tensor,
    lse: &mut Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_seqlens: &Tensor,
    shape: AttentionShape,
) -> Result<()> {
    let (n, qrow) = q.rows_cols();
    let kv = (n, shape.kv_row());
    check(
        shape.is_valid()
            && qrow == shape.q_row()
            && out.rows_cols() == (n, qrow)
            && k.rows_cols() == kv
            && v.rows_cols() == kv
            && lse.shape() == [shape.heads, n],
        &format!("attention_forward {shape:?}"),
        &[out, lse, q, k, v, cu_seqlens],
    )?;
    refuse_overlap(&[out, lse], &[q, k, v, cu_seqlens])?;
    let cu = check_documents("attention_forward", cu_seqlens, n)?;
    let (mut o, mut l) = (vec![0.0; n * qrow], vec![0.0; shape.heads * n]);
    reference::forward(&mut o, &mut l, &wide(q)?, &wide(k)?, &wide(v)?, cu, shape);
    narrow(out, &o)?;
    narrow(lse, &l)
}

/// dq (N, NH*HS) =, dk (N, NKV*HS) =, dv (N, NKV*HS) = the gradients of [`attention_forward`] for dout (N, NH*HS), from its
/// inputs and its results out and lse. The same bits for any thread count and any packing.
pub fn attention_backward(
    dq: &mut Tensor,
    dk: &mut Tensor,
    dv: &mut Tensor,
    dout: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_seqlens: &Tensor,
    shape: AttentionShape,
) -> Result<()> {
    let (n, qrow) = q.rows_cols();
    let kv = (n, shape.kv_row());
    check(
        shape.is_valid()
            && qrow == shape.q_row()
            && [&*dq, dout, out].iter().all(|t| t.rows_cols() == (n, qrow))
            && [&*dk, &*dv, k, v].iter().all(|t| t.rows_cols() == kv)
            && lse.shape() == [shape.heads, n],
        &format!("attention_backward {shape:?}"),
        &[dq, dk, dv, dout, out, lse, q, k, v, cu_seqlens],
    )?;
    refuse_overlap(&[dq, dk, dv], &[dout, out, lse, q, k, v, cu_seqlens])?;
    let cu = check_documents("attention_backward", cu_seqlens, n)?;
    let (mut a, mut b, mut c) = (vec![0.0; dq.len()], vec![0.0; dk.len()], vec![0.0; dv.len()]);
    reference::backward(
        &mut a,
        &mut b,
        &mut c,
        &wide(dout)?,
        &wide(out)?,
        &wide(lse)?,
        &wide(q)?,
        &wide(k)?,
        &wide(v)?,
        cu,
        shape,
    );
    narrow(dq, &a)?;
    narrow(dk, &b)?;
    narrow(dv, &c)
}

fn wide(t: &Tensor) -> Result<Vec<f64>> {
    Ok(t.f32()?.iter().map(|&x| x as f64).collect())
}
fn narrow(t: &mut Tensor, x: &[f64]) -> Result<()> {
    t.f32_mut()?.iter_mut().zip(x).for_each(|(a, &b)| *a = b as f32);
    Ok(())
}
