//! Full attention: every query sees every key of its document, whose keys may be another sequence's (cross attention).
use anyhow::{Result, ensure};

use super::{
    AttentionShape,
    forward::{Keys, forward},
    gpu::{self, Documents},
};
use crate::{
    ops::{
        checks::{check, check_documents},
        launch::gpu_of,
        simd::Level,
    },
    tensor::{Tensor, refuse_overlap},
};

/// out (N, NH*HS) = softmax(scale q k^T) v and lse (NH, N) = its log-sum-exp, for q (N, NH*HS), k, v (M, NKV*HS); the queries
/// `cu_q[d]..cu_q[d + 1]` see the keys `cu_k[d]..cu_k[d + 1]`. A query without keys gets 0 and -infinity. The window must be `None`.
/// A document's result does not depend on the documents packed with it, nor on the thread count.
pub fn cross_attention_forward(
    out: &mut Tensor,
    lse: &mut Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_q: &Tensor,
    cu_k: &Tensor,
    shape: AttentionShape,
) -> Result<()> {
    const OP: &str = "cross_attention_forward";
    let ((n, qrow), (m, _)) = (q.rows_cols(), k.rows_cols());
    let fits =
        shape.is_valid() && shape.window.is_none() && qrow == shape.q_row() && cu_q.len() == cu_k.len();
    let kv = (m, shape.kv_row());
    let fits = fits && out.rows_cols() == (n, qrow) && k.rows_cols() == kv && v.rows_cols() == kv;
    check(fits && lse.shape() == [shape.heads, n], OP, &[out, lse, q, k, v, cu_q, cu_k])?;
    refuse_overlap(&[out, lse], &[q, k, v, cu_q, cu_k])?;
    if let Some(gpu) = gpu_of(OP, &[out, lse, q, k, v, cu_q, cu_k])? {
        return gpu::forward(&gpu, out, lse, [q, k, v], Documents { cu_q, cu_k, causal: false }, shape);
    }
    let (cu_q, cu_k) = (check_documents(OP, cu_q, n)?, check_documents(OP, cu_k, m)?);
    let inputs = [q.f32()?, k.f32()?, v.f32()?];
    forward(Level::best(), out.f32_mut()?, lse.f32_mut()?, inputs, cu_q, Keys::All(cu_k), shape);
    Ok(())
}

/// dq (N, NH*HS) =, dk, dv (M, NKV*HS) = the gradients of [`cross_attention_forward`] for dout, from its inputs and its results out and lse.
pub fn cross_attention_backward(
    dq: &mut Tensor,
    dk: &mut Tensor,
    dv: &mut Tensor,
    dout: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_q: &Tensor,
    cu_k: &Tensor,
    shape: AttentionShape,
) -> Result<()> {
    const OP: &str = "cross_attention_backward";
    let ((n, qrow), (m, _)) = (q.rows_cols(), k.rows_cols());
    let kv = (m, shape.kv_row());
    ensure!(shape.window.is_none(), "{OP}: full attention has no window");
    let fits = shape.is_valid()
        && qrow == shape.q_row()
        && cu_q.len() == cu_k.len()
        && [&*dq, dout, out].iter().all(|t| t.rows_cols() == (n, qrow))
        && [&*dk, &*dv, k, v].iter().all(|t| t.rows_cols() == kv);
    check(fits && lse.shape() == [shape.heads, n], OP, &[dq, dk, dv, dout, out, lse, q, k, v, cu_q, cu_k])?;
    refuse_overlap(&[dq, dk, dv], &[dout, out, lse, q, k, v, cu_q, cu_k])?;
    if let Some(gpu) = gpu_of(OP, &[dq, dk, dv, dout, out, lse, q, k, v, cu_q, cu_k])? {
        let documents = Documents { cu_q, cu_k, causal: false };
        return gpu::backward(&gpu, [dq, dk, dv], [dout, out, lse, q, k, v], documents, shape);
    }
    let (cu_q, cu_k) = (check_documents(OP, cu_q, n)?, check_documents(OP, cu_k, m)?);
    let keys = keys_of(cu_q, cu_k);
    let (dq, dk, dv) = (dq.f32_mut()?, dk.f32_mut()?, dv.f32_mut()?);
    let (dout, out, lse, q, k, v) = (dout.f32()?, out.f32()?, lse.f32()?, q.f32()?, k.f32()?, v.f32()?);
    [&mut *dq, &mut *dk, &mut *dv].into_iter().for_each(|d| d.fill(0.0));
    let (hs, kv_row) = (shape.head_size, shape.kv_row());
    for i in 0..n {
        for h in 0..shape.heads {
            let (at, group) = (i * qrow + h * hs, h / (shape.heads / shape.kv_heads) * hs);
            let (q, dout) = (&q[at..][..hs], &dout[at..][..hs]);
            let delta: f32 = dout.iter().zip(&out[at..][..hs]).map(|(a, b)| a * b).sum();
            for (j, s) in keys[i].clone().zip(scores(q, k, &keys[i], h, shape)) {
                let key = j * kv_row + group;
                let p = (s - lse[h * n + i]).exp();
                let dp: f32 = dout.iter().zip(&v[key..][..hs]).map(|(a, b)| a * b).sum();
                let slope = shape.softcap.map_or(1.0, |cap| 1.0 - (s / cap) * (s / cap));
                let ds = p * (dp - delta) * shape.scale * slope;
                for d in 0..hs {
                    dq[at + d] += ds * k[key + d];
                    dk[key + d] += ds * q[d];
                    dv[key + d] += p * dout[d];
                }
            }
        }
    }
    Ok(())
}

/// The keys of each query.
fn keys_of(cu_q: &[u32], cu_k: &[u32]) -> Vec<std::ops::Range<usize>> {
    let one = |d: usize| {
        let keys = cu_k[d] as usize..cu_k[d + 1] as usize;
        std::iter::repeat_n(keys, (cu_q[d + 1] - cu_q[d]) as usize)
    };
    (0..cu_q.len() - 1).flat_map(one).collect()
}

fn scores(q: &[f32], k: &[f32], keys: &std::ops::Range<usize>, head: usize, s: AttentionShape) -> Vec<f32> {
    let group = head / (s.heads / s.kv_heads) * s.head_size;
    let dot = |j: usize| -> f32 {
        let k = &k[j * s.kv_row() + group..][..s.head_size];
        q.iter().zip(k).map(|(a, b)| a * b).sum()
    };
    let cap = |x: f32| s.softcap.map_or(x, |cap| cap * (x / cap).tanh());
    keys.clone().map(|j| cap(dot(j) * s.scale)).collect()
}
