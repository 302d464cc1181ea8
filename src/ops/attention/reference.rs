//! The naive oracle of attention, in f64: one score at a time, every document on its own.
use super::AttentionShape;

/// Calls `f(query row, head, kv head, first key row, keys)` for every query of every document; the keys end with the query's own row.
fn each_query(cu: &[u32], shape: AttentionShape, mut f: impl FnMut(usize, usize, usize, usize, usize)) {
    for doc in cu.windows(2) {
        for i in doc[0] as usize..doc[1] as usize {
            let visible = i + 1 - doc[0] as usize;
            let keys = shape.window.map_or(visible, |w| visible.min(w));
            for h in 0..shape.heads {
                f(i, h, h / (shape.heads / shape.kv_heads), i + 1 - keys, keys);
            }
        }
    }
}

/// cap tanh(score / cap), where there is a cap.
pub(crate) fn capped(score: f64, s: AttentionShape) -> f64 {
    s.softcap.map_or(score, |cap| cap as f64 * (score / cap as f64).tanh())
}

/// out (N, NH*HS), lse (NH, N) from q (N, NH*HS), k, v (N, NKV*HS).
pub fn forward(
    out: &mut [f64],
    lse: &mut [f64],
    q: &[f64],
    k: &[f64],
    v: &[f64],
    cu: &[u32],
    s: AttentionShape,
) {
    let n = cu.last().map_or(0, |&e| e as usize);
    each_query(cu, s, |i, h, g, first, keys| one([out, lse], [q, k, v], n, [i, h, g, first, keys], s));
}

/// The same with every query `cu_q[d]..cu_q[d + 1]` seeing the keys `cu_k[d]..cu_k[d + 1]`; without keys 0 and -infinity.
pub fn full_forward(
    out: &mut [f64],
    lse: &mut [f64],
    qkv: [&[f64]; 3],
    cu_q: &[u32],
    cu_k: &[u32],
    s: AttentionShape,
) {
    let n = cu_q.last().map_or(0, |&e| e as usize);
    for (q, k) in cu_q.windows(2).zip(cu_k.windows(2)) {
        for i in q[0] as usize..q[1] as usize {
            for h in 0..s.heads {
                let keys = [i, h, h / (s.heads / s.kv_heads), k[0] as usize, (k[1] - k[0]) as usize];
                one([out, lse], qkv, n, keys, s);
            }
        }
    }
}

/// One head of one query; the arguments of [`each_query`]'s callback.
fn one(
    [out, lse]: [&mut [f64]; 2],
    [q, k, v]: [&[f64]; 3],
    n: usize,
    [i, h, g, first, keys]: [usize; 5],
    s: AttentionShape,
) {
    let (hs, qrow, krow) = (s.head_size, s.heads * s.head_size, s.kv_heads * s.head_size);
    let q = &q[i * qrow + h * hs..][..hs];
    let key = |j: usize| (first + j) * krow + g * hs;
    let score = |j: usize| s.scale as f64 * (0..hs).map(|d| q[d] * k[key(j) + d]).sum::<f64>();
    let scores: Vec<f64> = (0..keys).map(|j| capped(score(j), s)).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
    lse[h * n + i] = max + sum.ln();
    for d in 0..hs {
        out[i * qrow + h * hs + d] = (0..keys).map(|j| (scores[j] - max).exp() / sum * v[key(j) + d]).sum();
    }
}

/// dq (N, NH*HS) =, dk, dv (N, NKV*HS) = from dout and the saved out, lse.
pub fn backward(
    dq: &mut [f64],
    dk: &mut [f64],
    dv: &mut [f64],
    dout: &[f64],
    out: &[f64],
    lse: &[f64],
    q: &[f64],
    k: &[f64],
    v: &[f64],
    cu: &[u32],
    s: AttentionShape,
) {
    let (hs, qrow, krow) = (s.head_size, s.heads * s.head_size, s.kv_heads * s.head_size);
    let (n, scale) = (cu.last().map_or(0, |&e| e as usize), s.scale as f64);
    [&mut *dq, &mut *dk, &mut *dv].into_iter().for_each(|d| d.fill(0.0));
    each_query(cu, s, |i, h, g, first, keys| {
        let at = i * qrow + h * hs;
        let delta: f64 = (0..hs).map(|d| dout[at + d] * out[at + d]).sum();
        for j in first..first + keys {
            let key = j * krow + g * hs;
            let score: f64 = scale * (0..hs).map(|d| q[at + d] * k[key + d]).sum::<f64>();
            let score = capped(score, s);
            let slope = s.softcap.map_or(1.0, |cap| 1.0 - (score / cap as f64).powi(2));
            let p = (score - lse[h * n + i]).exp();
            let dp: f64 = (0..hs).map(|d| dout[at + d] * v[key + d]).sum();
            let ds = p * (dp - delta) * scale * slope;
            for d in 0..hs {
                dq[at + d] += ds * k[key + d];
                dk[key + d] += ds * q[at + d];
                dv[key + d] += p * dout[at + d];
            }
        }
    });
}
