//! Attention of one new query per row over that row's cached keys and values.
#![allow(unsafe_code)]
use anyhow::{Result, ensure};

use crate::tensor::{Tensor, refuse_overlap};

use super::{
    attention::{
        AttentionShape,
        tile::{Left, Rows, gather_rows, matmul},
    },
    checks::check,
    parallel::{Shared, for_each_task, with_scratch},
    simd::{Kernel, MAX_LANES, Simd, run},
};

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
    let (q, k, v) = (q.f32()?, k_cache.f32()?, v_cache.f32()?);
    let out = Shared::new(out.f32_mut()?);
    let keys = |row: usize| (lengths_[row] as usize).min(shape.window.unwrap_or(usize::MAX));
    let work = (0..b).map(keys).sum::<usize>().saturating_mul(qrow);
    for_each_task(b * shape.kv_heads, work, |i| {
        let (row, group, keys) = (i / shape.kv_heads, i % shape.kv_heads, keys(i / shape.kv_heads));
        let first = (starts_[row] + lengths_[row]) as usize - keys;
        let width = shape.head_size.next_multiple_of(MAX_LANES);
        let per_group = shape.heads / shape.kv_heads;
        with_scratch(per_group * (keys.next_multiple_of(MAX_LANES) + width) + KEYS * width, |scratch| {
            run(Row { shape, out, q, k, v, row, group, first, keys, scratch })
        });
    });
    Ok(())
}

/// Keys whose values are copied at a time where HS is not a multiple of the vector's lanes.
const KEYS: usize = 64;

/// The query heads of one row that share a key head.
struct Row<'a> {
    shape: AttentionShape,
    out: Shared<'a>,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    row: usize,
    group: usize,
    /// The first slot that is read, and how many are.
    first: usize,
    keys: usize,
    scratch: &'a mut [f32],
}

impl Kernel for Row<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (hs, kv_row, keys) = (self.shape.head_size, self.shape.kv_row(), self.keys);
        let (per_group, width) = (self.shape.heads / self.shape.kv_heads, hs.next_multiple_of(S::LANES));
        let stride = keys.next_multiple_of(S::LANES);
        let (scores, rest) = self.scratch.split_at_mut(per_group * stride);
        let (sums, padded) = rest.split_at_mut(per_group * width);
        let q_at = self.row * self.shape.q_row() + self.group * per_group * hs;
        let kv_at = self.first * kv_row + self.group * hs;
        for h in 0..per_group {
            let (q, scores) = (&self.q[q_at + h * hs..][..hs], &mut scores[h * stride..][..keys]);
            for (j, four) in scores.chunks_mut(4).enumerate() {
                let dots = four_dots(s, q, &self.k[kv_at + j * 4 * kv_row..], kv_row, four.len());
                four.iter_mut().zip(dots).for_each(|(x, dot)| *x = dot * self.shape.scale);
            }
        }
        // SAFETY: no other task has this row and these heads.
        let out = unsafe { self.out.part(q_at, per_group * hs) };
        for scores in scores.chunks_exact_mut(stride) {
            softmax(s, scores, keys);
        }
        let block = if width == hs { keys } else { KEYS };
        for j in (0..keys).step_by(block) {
            let n = block.min(keys - j);
            let v = gather_rows(self.v, kv_at + j * kv_row, kv_row, n, hs, width, padded);
            let p = Left::Plain(Rows { data: &scores[j..], stride });
            matmul(s, [per_group, width, n], p, v, sums, width, j > 0);
        }
        for (out, sums) in out.chunks_exact_mut(hs).zip(sums.chunks_exact(width)) {
            out.copy_from_slice(&sums[..hs]);
        }
    }
}

/// The products of q with `n` rows (at most 4) of k, `stride` apart.
#[inline(always)]
fn four_dots<S: Simd>(s: S, q: &[f32], k: &[f32], stride: usize, n: usize) -> [f32; 4] {
    let (hs, last) = (q.len(), n - 1);
    let row = |j: usize| &k[j.min(last) * stride..][..hs];
    let rows = [row(0), row(1), row(2), row(3)];
    let mut sums = [s.splat(0.0); 4];
    for d in (0..hs).step_by(S::LANES) {
        let q = s.read_some(&q[d..]);
        for (sum, row) in sums.iter_mut().zip(rows) {
            *sum = s.fma(q, s.read_some(&row[d..]), *sum);
        }
    }
    s.sum4(sums)
}

/// The first `n` scores become their softmax; those after them, up to whole registers, are ignored.
#[inline(always)]
fn softmax<S: Simd>(s: S, scores: &mut [f32], n: usize) {
    scores[n..].fill(f32::NEG_INFINITY);
    let max = scores[..n].iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (max, mut sum) = (s.splat(max), s.splat(0.0));
    for x in scores.chunks_exact_mut(S::LANES) {
        let p = s.exp(s.sub(s.read(x), max));
        sum = s.add(sum, p);
        s.write(x, p);
    }
    let inverse = s.splat(1.0 / s.sum(sum));
    for x in scores.chunks_exact_mut(S::LANES) {
        s.write(x, s.mul(s.read(x), inverse));
    }
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
