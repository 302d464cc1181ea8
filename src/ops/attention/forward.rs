//! The forward's CPU arm, causal and full: scores of 64 keys and 32 queries at a time, softmax kept online (Milakov and Gimelshein 2018; Dao 2023),
//! so that no document's (T, T) matrix exists. Scores are held transposed: a query is a vector lane, and no sum crosses lanes.
#![allow(unsafe_code)]
use crate::ops::{
    activation::soft_cap,
    parallel::{Shared, for_each_task, with_scratch},
    simd::{Kernel, Level, MAX_LANES, Simd, run_at},
};

use super::{
    AttentionShape,
    tile::{KEYS, Left, QUERIES, Rows, gather_rows, mask, matmul, transpose},
};

/// Queries of one task.
const CHUNK: usize = 4 * QUERIES;

/// Which keys a document's queries see.
#[derive(Clone, Copy)]
pub(super) enum Keys<'a> {
    /// The document's own up to the query's, in the window.
    Causal,
    /// All of `cu_k[d]..cu_k[d + 1]`.
    All(&'a [u32]),
}

/// out, lse = as in [`super::attention_forward`] or [`super::cross_attention_forward`], whose checks have been made; `cu` are the
/// offsets of the queries.
pub(super) fn forward(
    level: Level,
    out: &mut [f32],
    lse: &mut [f32],
    [q, k, v]: [&[f32]; 3],
    cu: &[u32],
    keys: Keys,
    shape: AttentionShape,
) {
    let n = cu.last().map_or(0, |&e| e as usize);
    let (out, lse) = (Shared::new(out), Shared::new(lse));
    let mut tasks = vec![];
    for (d, doc) in cu.windows(2).enumerate() {
        let (start, end) = (doc[0] as usize, doc[1] as usize);
        let (start_k, all) = match keys {
            Keys::Causal => (start, None),
            Keys::All(cu_k) => (cu_k[d] as usize, Some((cu_k[d + 1] - cu_k[d]) as usize)),
        };
        // The later queries have more keys: the heaviest tasks come first.
        for first in (0..end - start).step_by(CHUNK).rev() {
            for head in 0..shape.heads {
                let queries = CHUNK.min(end - start - first);
                tasks.push(Task { shape, out, lse, q, k, v, n, start, start_k, all, first, queries, head });
            }
        }
    }
    let seen = |t: &Task| t.all.unwrap_or((t.first + t.queries).min(shape.window.unwrap_or(n)));
    let work = tasks.iter().map(|t| t.queries * seen(t)).sum::<usize>();
    let width = shape.head_size.next_multiple_of(MAX_LANES);
    let scratch = QUERIES * (KEYS + width + shape.head_size) + KEYS * width;
    for_each_task(tasks.len(), work.saturating_mul(shape.head_size), |i| {
        with_scratch(scratch, |scratch| run_at(level, Work { task: tasks[i], scratch }))
    });
}

/// One head of some queries of one document.
#[derive(Clone, Copy)]
struct Task<'a> {
    shape: AttentionShape,
    out: Shared<'a>,
    lse: Shared<'a>,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    /// Query rows in the whole pack.
    n: usize,
    /// The document's first query row.
    start: usize,
    /// Its first key row.
    start_k: usize,
    /// Its keys, if every query sees all of them.
    all: Option<usize>,
    /// The first query, counted from `start`, and how many.
    first: usize,
    queries: usize,
    head: usize,
}

/// A task with its memory, ready to be compiled for an instruction set.
struct Work<'a> {
    task: Task<'a>,
    scratch: &'a mut [f32],
}

impl Kernel for Work<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let t = self.task;
        let width = t.shape.head_size.next_multiple_of(S::LANES);
        for i in (t.first..t.first + t.queries).step_by(QUERIES) {
            t.tile(s, i, QUERIES.min(t.first + t.queries - i), width, self.scratch);
        }
    }
}

impl Task<'_> {
    /// Queries `i..i + nq` of the document.
    #[inline(always)]
    fn tile<S: Simd>(&self, s: S, i: usize, nq: usize, width: usize, scratch: &mut [f32]) {
        let (hs, q_row, kv_row) = (self.shape.head_size, self.shape.q_row(), self.shape.kv_row());
        let kv_column = self.head / (self.shape.heads / self.shape.kv_heads) * hs;
        let (scores, scratch) = scratch.split_at_mut(KEYS * QUERIES);
        let (sums, scratch) = scratch.split_at_mut(QUERIES * width);
        let (q_t, padded) = scratch.split_at_mut(QUERIES * hs);
        let q = Rows { data: &self.q[(self.start + i) * q_row + self.head * hs..], stride: q_row };
        transpose(q_t, q, nq, hs, self.shape.scale);
        sums.fill(0.0);
        // Far below any score, but finite: a query that has seen no key yet must not give inf - inf.
        let mut softmax = Softmax { max: [-1e30; QUERIES], sum: [0.0; QUERIES], rescale: [0.0; QUERIES] };
        let window = self.shape.window.unwrap_or(usize::MAX);
        let (mut j, end) = self.all.map_or(((i + 1).saturating_sub(window), i + nq), |keys| (0, keys));
        let any = j < end;
        while j < end {
            let nk = KEYS.min(end - j);
            let scores = &mut scores[..nk * QUERIES];
            let at = (self.start_k + j) * kv_row + kv_column;
            let k = Rows { data: &self.k[at..], stride: kv_row };
            matmul(
                s,
                [nk, QUERIES, hs],
                Left::Plain(k),
                Rows { data: q_t, stride: QUERIES },
                scores,
                QUERIES,
                false,
            );
            if let Some(cap) = self.shape.softcap {
                soft_cap(s, scores, cap);
            }
            if self.all.is_none() && (j + nk > i + 1 || i + nq - j > window) {
                mask(scores, j, i, window);
            }
            softmax.add(s, scores);
            for (row, &rescale) in sums.chunks_exact_mut(width).zip(&softmax.rescale[..nq]) {
                row.iter_mut().for_each(|x| *x *= rescale);
            }
            let v = gather_rows(self.v, at, kv_row, nk, hs, width, padded);
            let p = Left::Transposed(Rows { data: scores, stride: QUERIES });
            matmul(s, [nq, width, nk], p, v, sums, width, true);
            j += nk;
        }
        for x in 0..nq {
            let row = self.start + i + x;
            // SAFETY: no other task has this document's query and this head.
            let (out, lse) = unsafe {
                (self.out.part(row * q_row + self.head * hs, hs), self.lse.part(self.head * self.n + row, 1))
            };
            if !any {
                out.fill(0.0);
                lse[0] = f32::NEG_INFINITY;
                continue;
            }
            let inverse = 1.0 / softmax.sum[x];
            out.iter_mut().zip(&sums[x * width..]).for_each(|(o, s)| *o = s * inverse);
            lse[0] = softmax.max[x] + softmax.sum[x].ln();
        }
    }
}

/// The running softmax of the queries of a tile.
struct Softmax {
    max: [f32; QUERIES],
    sum: [f32; QUERIES],
    /// By what the sums so far shrink, because the maximum has grown.
    rescale: [f32; QUERIES],
}

impl Softmax {
    /// Turns scores (keys, QUERIES) into exp(score - maximum).
    #[inline(always)]
    fn add<S: Simd>(&mut self, s: S, scores: &mut [f32]) {
        for c in (0..QUERIES).step_by(S::LANES) {
            let old = s.read(&self.max[c..]);
            let mut max = old;
            for row in scores.chunks_exact(QUERIES) {
                max = s.max(s.read(&row[c..]), max);
            }
            let rescale = s.exp(s.sub(old, max));
            let mut sum = s.mul(s.read(&self.sum[c..]), rescale);
            for row in scores.chunks_exact_mut(QUERIES) {
                let p = s.exp(s.sub(s.read(&row[c..]), max));
                s.write(&mut row[c..], p);
                sum = s.add(sum, p);
            }
            s.write(&mut self.max[c..], max);
            s.write(&mut self.sum[c..], sum);
            s.write(&mut self.rescale[c..], rescale);
        }
    }
}
