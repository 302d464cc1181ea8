//! Attention over packed documents of any length: causal with a sliding window, or full with keys from elsewhere; grouped-query heads,
//! log-sum-exp saved.
#![allow(unsafe_code)]
use anyhow::Result;

use crate::tensor::{Tensor, refuse_overlap};

pub use self::cross::{cross_attention_backward, cross_attention_forward};
use self::{backward::Inputs, forward::Keys, gpu::Documents};
use super::{
    checks::{check, check_documents},
    launch::gpu_of,
    simd::Level,
};

mod backward;
mod cross;
mod forward;
mod gpu;

pub use gpu::supported;
pub mod reference;
pub(crate) mod tile;

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
    /// Scaled scores x become cap tanh(x / cap) before they are masked (Gemma 2's `attn_logit_softcapping`).
    pub softcap: Option<f32>,
}

impl AttentionShape {
    /// True if the numbers make sense together: nothing is 0 and the heads divide.
    pub(crate) fn is_valid(&self) -> bool {
        self.head_size > 0
            && self.kv_heads > 0
            && self.heads > 0
            && self.heads.is_multiple_of(self.kv_heads)
            && self.window != Some(0)
            && self.softcap.is_none_or(|cap| cap > 0.0 && cap.is_finite())
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
/// A document's result does not depend on the documents packed with it, nor on the thread count. On a GPU `cu_seqlens` is trusted.
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
    if let Some(gpu) = gpu_of("attention_forward", &[out, lse, q, k, v, cu_seqlens])? {
        let documents = Documents { cu_q: cu_seqlens, cu_k: cu_seqlens, causal: true };
        return gpu::forward(&gpu, out, lse, [q, k, v], documents, shape);
    }
    let cu = check_documents("attention_forward", cu_seqlens, n)?;
    let level = Level::best();
    let inputs = [q.f32()?, k.f32()?, v.f32()?];
    forward::forward(level, out.f32_mut()?, lse.f32_mut()?, inputs, cu, Keys::Causal, shape);
    Ok(())
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
    if let Some(gpu) = gpu_of("attention_backward", &[dq, dk, dv, dout, out, lse, q, k, v, cu_seqlens])? {
        let documents = Documents { cu_q: cu_seqlens, cu_k: cu_seqlens, causal: true };
        return gpu::backward(&gpu, [dq, dk, dv], [dout, out, lse, q, k, v], documents, shape);
    }
    let cu = check_documents("attention_backward", cu_seqlens, n)?;
    let inputs =
        Inputs { dout: dout.f32()?, out: out.f32()?, lse: lse.f32()?, q: q.f32()?, k: k.f32()?, v: v.f32()? };
    backward::backward(Level::best(), [dq.f32_mut()?, dk.f32_mut()?, dv.f32_mut()?], inputs, cu, shape);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Documents with as many keys as queries, more, fewer and none.
    fn full(level: Level, [q, k, v]: [&[f32]; 3], shape: AttentionShape) {
        let (cu_q, cu_k) = ([0u32, 1, 71, 80, 354], [0u32, 1, 131, 131, 354]);
        let (mut o, mut l) = (vec![f32::NAN; q.len()], vec![f32::NAN; 354 * 4]);
        forward::forward(level, &mut o, &mut l, [q, k, v], &cu_q, Keys::All(&cu_k), shape);
        let (mut out, mut lse) = (vec![f64::NAN; q.len()], vec![f64::NAN; 354 * 4]);
        let [q, k, v] = [q, k, v].map(|x| x.iter().map(|&x| x as f64).collect::<Vec<_>>());
        reference::full_forward(&mut out, &mut lse, [&q, &k, &v], &cu_q, &cu_k, shape);
        for (name, got, want) in [("out", &o, &out), ("lse", &l, &lse)] {
            for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
                let equal = g as f64 == w || (g as f64 - w).abs() <= 1e-5 * (1.0 + w.abs());
                assert!(equal, "{level:?} full {name}[{i}]: {g} for {w}");
            }
        }
    }

    #[test]
    fn every_instruction_set_equals_the_oracle() {
        let cu = [0u32, 1, 1, 71, 354];
        for (head_size, window, softcap) in
            [(64, None, None), (20, Some(33), None), (64, None, Some(5.0)), (20, Some(33), Some(2.0))]
        {
            let shape = AttentionShape { heads: 4, kv_heads: 2, head_size, scale: 0.3, window, softcap };
            // A linear congruential generator: `data::random` stands above `ops`.
            let random = |seed: u32, n: usize| -> Vec<f32> {
                let next = |x: &mut u32| {
                    *x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    Some((*x >> 8) as f32 / (1 << 22) as f32 - 2.0)
                };
                (0..n).scan(seed, |x, _| next(x)).collect()
            };
            let (nq, nk) = (354 * shape.q_row(), 354 * shape.kv_row());
            let (q, k, v, dout) = (random(1, nq), random(2, nk), random(3, nk), random(4, nq));
            let wide = |x: &[f32]| x.iter().map(|&x| x as f64).collect::<Vec<_>>();
            let (mut out, mut lse) = (vec![0.0; nq], vec![0.0; 354 * 4]);
            let (mut dq, mut dk, mut dv) = (vec![0.0; nq], vec![0.0; nk], vec![0.0; nk]);
            let (wq, wk, wv, wdout) = (wide(&q), wide(&k), wide(&v), wide(&dout));
            reference::forward(&mut out, &mut lse, &wq, &wk, &wv, &cu, shape);
            reference::backward(&mut dq, &mut dk, &mut dv, &wdout, &out, &lse, &wq, &wk, &wv, &cu, shape);
            for level in Level::available() {
                let (mut o, mut l) = (vec![f32::NAN; nq], vec![f32::NAN; 354 * 4]);
                forward::forward(level, &mut o, &mut l, [&q, &k, &v], &cu, Keys::Causal, shape);
                let (mut a, mut b, mut c) = (vec![f32::NAN; nq], vec![f32::NAN; nk], vec![f32::NAN; nk]);
                let inputs = Inputs { dout: &dout, out: &o, lse: &l, q: &q, k: &k, v: &v };
                backward::backward(level, [&mut a, &mut b, &mut c], inputs, &cu, shape);
                for (name, got, want) in
                    [("out", &o, &out), ("lse", &l, &lse), ("dq", &a, &dq), ("dk", &b, &dk), ("dv", &c, &dv)]
                {
                    let error: f64 = got.iter().zip(want).map(|(&g, w)| (g as f64 - w).powi(2)).sum();
                    let norm: f64 = want.iter().map(|w| w * w).sum();
                    assert!((error / norm).sqrt() < 3e-6, "{level:?} {name}: {:e}", (error / norm).sqrt());
                }
                if window.is_none() {
                    full(level, [&q, &k, &v], shape);
                }
            }
        }
    }
}
