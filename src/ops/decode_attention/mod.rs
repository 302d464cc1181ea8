//! Attention of one new query per row over that row's cached keys and values.
#![allow(unsafe_code)]
use anyhow::{Result, ensure};

use crate::tensor::{Tensor, refuse_overlap};

use super::{
    activation::soft_cap,
    attention::{
        AttentionShape,
        tile::{Left, Rows, gather_rows, matmul},
    },
    checks::check,
    launch::gpu_of,
    parallel::{Shared, for_each_task, with_scratch},
    simd::{Kernel, MAX_LANES, Simd, run},
};

pub mod gpu;

/// out (B, NH*HS) = softmax(scale q k^T) v, where row b of q (B, NH*HS) reads slots `starts[b]..starts[b] + lengths[b]` of
/// k_cache, v_cache (S, NKV*HS); the last of them is the new token's own. With a window only the last `window` slots are read.
/// A row's result does not depend on the other rows, nor on the thread count. On a GPU heads are of up to 256 elements, and a row whose slots leave the cache gives NaN.
pub fn decode_attention_forward(
    out: &mut Tensor,
    q: &Tensor,
    k_cache: &Tensor,
    v_cache: &Tensor,
    starts: &Tensor,
    lengths: &Tensor,
    shape: AttentionShape,
) -> Result<()> {
    let inputs = [q, k_cache, v_cache, starts, lengths];
    check_shapes(out, inputs, shape)?;
    if let Some(gpu) = gpu_of("decode_attention_forward", &[out, q, k_cache, v_cache, starts, lengths])? {
        let split = gpu::split(q.rows_cols().0, shape, gpu.multiprocessors());
        return gpu::launch(&gpu, out, inputs, shape, split);
    }
    let (slots, qrow) = (k_cache.rows_cols().0, shape.q_row());
    let (starts_, lengths_) = (starts.u32()?, lengths.u32()?);
    for (row, (&s, &l)) in starts_.iter().zip(lengths_).enumerate() {
        ensure!(
            l > 0 && s as usize + l as usize <= slots,
            "decode_attention_forward: row {row} reads {l} slots from slot {s}; it must read at least 1, within {k_cache:?} \
             ({starts:?}, {lengths:?})"
        );
    }
    let mut chunks = vec![];
    let mut of_row = vec![0];
    for (row, (&start, &length)) in starts_.iter().zip(lengths_).enumerate() {
        let end = start as usize + length as usize;
        let first = end - (length as usize).min(shape.window.unwrap_or(usize::MAX));
        chunks.extend((first..end).step_by(CHUNK).map(|first| (row, first, CHUNK.min(end - first))));
        of_row.push(chunks.len());
    }
    let part = shape.heads * (shape.head_size + 2);
    let mut parts = vec![0.0; chunks.len() * part];
    let (q, k, v) = (q.f32()?, k_cache.f32()?, v_cache.f32()?);
    let work = chunks.iter().map(|c| c.2).sum::<usize>().saturating_mul(qrow);
    let shared = Shared::new(&mut parts);
    let scratch = scratch_len(shape, shape.head_size.next_multiple_of(MAX_LANES));
    for_each_task(chunks.len(), work, |i| {
        let (row, first, keys) = chunks[i];
        // SAFETY: each chunk has a part of its own.
        let part = unsafe { shared.part(i * part, part) };
        with_scratch(scratch, |scratch| run(Chunk { shape, part, q, k, v, row, first, keys, scratch }));
    });
    let out = out.f32_mut()?;
    for (row, out) in out.chunks_exact_mut(qrow).enumerate() {
        join(out, &parts[of_row[row] * part..of_row[row + 1] * part], shape.head_size);
    }
    Ok(())
}

fn check_shapes(out: &Tensor, inputs: [&Tensor; 5], shape: AttentionShape) -> Result<()> {
    let [q, k, v, starts, lengths] = inputs;
    let (b, slots) = (q.rows_cols().0, k.rows_cols().0);
    check(
        shape.is_valid()
            && [q, out].iter().all(|t| t.rows_cols() == (b, shape.q_row()))
            && [k, v].iter().all(|t| t.rows_cols() == (slots, shape.kv_row()))
            && starts.len() == b
            && lengths.len() == b,
        &format!("decode_attention_forward {shape:?}"),
        &[out, q, k, v, starts, lengths],
    )?;
    refuse_overlap(&[out], &inputs)
}

/// Keys of one task, counted from the first that the row reads: a long row keeps several threads busy, and a chunk of its keys is
/// in the cache for all heads. Fixed, so that a row's bits do not depend on the threads.
const CHUNK: usize = 256;

/// One row's attention over some of its keys, all heads.
struct Chunk<'a> {
    shape: AttentionShape,
    /// For each head: sum of exp(score - max) v (HS), max, sum of exp(score - max).
    part: &'a mut [f32],
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    row: usize,
    /// The first slot that is read, and how many are.
    first: usize,
    keys: usize,
    scratch: &'a mut [f32],
}

fn scratch_len(shape: AttentionShape, width: usize) -> usize {
    let copies = if width == shape.head_size { 0 } else { CHUNK };
    shape.heads / shape.kv_heads * (CHUNK + width) + copies * width
}

impl Kernel for Chunk<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (hs, kv_row, keys) = (self.shape.head_size, self.shape.kv_row(), self.keys);
        let (per_group, width) = (self.shape.heads / self.shape.kv_heads, hs.next_multiple_of(S::LANES));
        let (scores, rest) = self.scratch.split_at_mut(per_group * CHUNK);
        let (sums, padded) = rest.split_at_mut(per_group * width);
        for group in 0..self.shape.kv_heads {
            let kv_at = self.first * kv_row + group * hs;
            let q = &self.q[self.row * self.shape.q_row() + group * per_group * hs..][..per_group * hs];
            let part = &mut self.part[group * per_group * (hs + 2)..][..per_group * (hs + 2)];
            for h in 0..per_group {
                let (q, scores) = (&q[h * hs..][..hs], &mut scores[h * CHUNK..][..CHUNK]);
                for (j, four) in scores[..keys].chunks_mut(4).enumerate() {
                    let dots = four_dots(s, q, &self.k[kv_at + j * 4 * kv_row..], kv_row, four.len());
                    four.iter_mut().zip(dots).for_each(|(x, dot)| *x = dot * self.shape.scale);
                }
                if let Some(cap) = self.shape.softcap {
                    soft_cap(s, &mut scores[..keys], cap);
                }
                let [max, sum] = softmax(s, scores, keys);
                part[h * (hs + 2) + hs] = max;
                part[h * (hs + 2) + hs + 1] = sum;
            }
            let v = gather_rows(self.v, kv_at, kv_row, keys, hs, width, padded);
            let p = Left::Plain(Rows { data: scores, stride: CHUNK });
            matmul(s, [per_group, width, keys], p, v, sums, width, false);
            for (part, sums) in part.chunks_exact_mut(hs + 2).zip(sums.chunks_exact(width)) {
                part[..hs].copy_from_slice(&sums[..hs]);
            }
        }
    }
}

/// out (NH*HS) = the attention over all of a row's chunks, each of them as in [`Chunk::part`], joined in order.
fn join(out: &mut [f32], parts: &[f32], hs: usize) {
    let stride = out.len() / hs * (hs + 2);
    for (h, out) in out.chunks_exact_mut(hs).enumerate() {
        let parts = || parts.chunks_exact(stride).map(|part| &part[h * (hs + 2)..][..hs + 2]);
        let max = parts().map(|p| p[hs]).fold(f32::NEG_INFINITY, f32::max);
        let total: f32 = parts().map(|p| (p[hs] - max).exp() * p[hs + 1]).sum();
        out.fill(0.0);
        for part in parts() {
            let factor = (part[hs] - max).exp() / total;
            out.iter_mut().zip(part).for_each(|(o, x)| *o += x * factor);
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

/// The first `n` scores become exp(score - max); returns the maximum and the sum. Those after them, up to whole registers, are lost.
#[inline(always)]
fn softmax<S: Simd>(s: S, scores: &mut [f32], n: usize) -> [f32; 2] {
    let scores = &mut scores[..n.next_multiple_of(S::LANES)];
    let max = scores[..n].iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores[n..].fill(f32::NEG_INFINITY);
    let (shift, mut sum) = (s.splat(max), s.splat(0.0));
    for x in scores.chunks_exact_mut(S::LANES) {
        let p = s.exp(s.sub(s.read(x), shift));
        sum = s.add(sum, p);
        s.write(x, p);
    }
    [max, s.sum(sum)]
}

/// The naive oracle, in f64.
pub mod reference {
    use crate::ops::attention::{AttentionShape, reference::capped};

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
                let dot = |j: usize| (0..hs).map(|d| q[at + d] * k[key(j) + d]).sum::<f64>();
                let scores: Vec<f64> = (0..keys).map(|j| capped(s.scale as f64 * dot(j), s)).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
                for d in 0..hs {
                    out[at + d] = (0..keys).map(|j| (scores[j] - max).exp() / sum * v[key(j) + d]).sum();
                }
            }
        }
    }
}
