//! Attention of one new query per row over that row's cached keys and values.
use anyhow::{Result, ensure};

use crate::tensor::{Tensor, refuse_overlap};

use super::{attention::AttentionShape, checks::check};

/// out (B, NH*HS) = softmax(scale q k^T) v, where row b of q (B, NH*HS) reads slots `starts[b]..starts[b] + lengths[b]` of
/// k_cache, v_cache (S, NKV*HS); the last of them is the new token's own. With a window only the last `window` slots are read.
/// A row's result does not depend on the other rows, nor on the thread count.
pub fn decode_attention_forward(
    out: &mut Tensor,
    q: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    starts: &Tensor,
    lengths: &Tensor,
    shape: AttentionShape,
) -> Result<()> {
    let (b, qrow) = q.rows_cols();
    let (slots, kvrow) = k_cache.rows_cols();
    check(
        shape.is_valid()
            && qrow == shape.q_row()
            && kvrow == shape.kv_row()
            && out.rows_cols() == (b, qrow)
            && v_cache.rows_cols() == (slots, kvrow)
            && starts.len() == b
            && lengths.len() == b,
        &format!("decode_attention_forward {shape:?}"),
        &[out, q, k_cache, v_cache, starts, lengths],
    )?;
    refuse_overlap(&[out], &[q, k_cache, v_cache, starts, lengths])?;
    let (starts_, lengths_) = (starts.u32()?, lengths.u32()?);
    for (row, (&s, &l)) in starts_.iter().zip(lengths_).enumerate() {
        ensure!(
            l > 0 && s as usize + l as usize <= slots,
            "decode_attention_forward: row {row} reads {l} slots from slot {s}; it must read at least 1, within {k_cache:?} \
             ({starts:?}, {lengths:?})"
        );
    }
    let wide = |t: &Tensor| -> Result<Vec<f64>> { Ok(t.f32()?.iter().map(|&x| x as f64).collect()) };
    let mut o = vec![0.0; b * qrow];
    reference::forward(&mut o, &wide(q)?, &wide(k_cache)?, &wide(v_cache)?, starts_, lengths_, shape);
    out.f32_mut()?.iter_mut().zip(o).for_each(|(a, b)| *a = b as f32);
    Ok(())
}

/// The naive oracle, in f64.
pub mod reference {
    use crate::ops::attention::AttentionShape;

    /// out (B, NH*HS) from q (B, NH*HS) and the slots of k, v (S, NKV*HS) that each row reads.
    pub fn forward(
        out: &mut [f64],
        q: &[f64],
        k: &[f64],
        v: &[f64],
        starts: &[u32],
        lengths: &[u32],
        s: AttentionShape,
    ) {
        let (hs, qrow, krow) = (s.head_size, s.heads * s.head_size, s.kv_heads * s.head_size);
        for (b, (&start, &length)) in starts.iter().zip(lengths).enumerate() {
            let (start, length) = (start as usize, length as usize);
            let keys = s.window.map_or(length, |w| length.min(w));
            let first = start + length - keys;
            for h in 0..s.heads {
                let (at, g) = (b * qrow + h * hs, h / (s.heads / s.kv_heads));
                let key = |j: usize| (first + j) * krow + g * hs;
                let scores: Vec<f64> = (0..keys)
                    .map(|j| s.scale as f64 * (0..hs).map(|d| q[at + d] * k[key(j) + d]).sum::<f64>())
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
                for d in 0..hs {
                    out[at + d] = (0..keys).map(|j| (scores[j] - max).exp() / sum * v[key(j) + d]).sum();
                }
            }
        }
    }
}
