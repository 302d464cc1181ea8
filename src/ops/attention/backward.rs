//! The backward's CPU arm. A task is a pair of chunks, queries and keys, of one document and one key head; it makes that pair's part of
//! dq, dk and dv in one pass (five products). Pairs that share a query or a key chunk stand in different phases: phase r holds the pairs
//! (i, i - r), so that tasks of a phase write to different places and every sum has one order, whatever the number of threads.
#![allow(unsafe_code)]
use crate::ops::{
    activation::{soft_cap, soft_cap_slope},
    parallel::{Shared, for_each_task, with_scratch},
    simd::{Kernel, Level, MAX_LANES, Simd, run_at},
};

use super::{
    AttentionShape,
    tile::{KEYS, Left, QUERIES, Rows, gather_rows, mask, matmul, transpose},
};

/// Queries and keys of one task.
const CHUNK: usize = 256;

/// What the backward reads.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub dout: &'a [f32],
    pub out: &'a [f32],
    pub lse: &'a [f32],
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
}

/// dq, dk, dv = as in [`super::attention_backward`], whose checks have been made.
pub(super) fn backward(
    level: Level,
    [dq, dk, dv]: [&mut [f32]; 3],
    inputs: Inputs,
    cu: &[u32],
    shape: AttentionShape,
) {
    let n = cu.last().map_or(0, |&e| e as usize);
    let (dq, dk, dv) = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
    let longest = cu.windows(2).map(|d| (d[1] - d[0]) as usize).max().unwrap_or(0);
    for phase in 0..longest.div_ceil(CHUNK) {
        let mut tasks = vec![];
        for doc in cu.windows(2) {
            let (start, length) = (doc[0] as usize, (doc[1] - doc[0]) as usize);
            for i in (phase..length.div_ceil(CHUNK)).map(|i| i * CHUNK) {
                let j = i - phase * CHUNK;
                let (queries, keys) = (CHUNK.min(length - i), CHUNK.min(length - j));
                if shape.window.is_some_and(|w| i - j >= w.saturating_add(keys)) {
                    continue;
                }
                for group in 0..shape.kv_heads {
                    tasks.push(Task { shape, dq, dk, dv, inputs, n, start, i, queries, j, keys, group });
                }
            }
        }
        let work = tasks.iter().map(|t| t.queries * t.keys).sum::<usize>();
        let scratch = Scratch::len(shape.head_size, shape.head_size.next_multiple_of(MAX_LANES));
        for_each_task(tasks.len(), work.saturating_mul(shape.head_size), |t| {
            with_scratch(scratch, |scratch| run_at(level, Work { task: tasks[t], scratch }))
        });
    }
}

#[derive(Clone, Copy)]
struct Task<'a> {
    shape: AttentionShape,
    dq: Shared<'a>,
    dk: Shared<'a>,
    dv: Shared<'a>,
    inputs: Inputs<'a>,
    /// Rows in the whole pack.
    n: usize,
    /// The document's first row.
    start: usize,
    /// The first query, counted from `start`, and how many.
    i: usize,
    queries: usize,
    /// The first key, counted from `start`, and how many.
    j: usize,
    keys: usize,
    /// The key head.
    group: usize,
}

/// A task with its memory, ready to be compiled for an instruction set.
struct Work<'a> {
    task: Task<'a>,
    scratch: &'a mut [f32],
}

/// A task's memory, cut; `width` is HS rounded up to whole registers.
struct Scratch<'a> {
    p: &'a mut [f32],
    ds: &'a mut [f32],
    q_t: &'a mut [f32],
    dout_t: &'a mut [f32],
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    /// Copies of k, v, q and dout, where their rows are not whole registers.
    copies: [&'a mut [f32]; 4],
    width: usize,
}

impl<'a> Scratch<'a> {
    #[inline(always)]
    fn sizes(hs: usize, width: usize) -> [usize; 11] {
        let scores = KEYS * QUERIES;
        let [keys, queries] = if width == hs { [0, 0] } else { [CHUNK * width, QUERIES * width] };
        let (turned, sums) = (hs * QUERIES, CHUNK * width);
        [scores, scores, turned, turned, QUERIES * width, sums, sums, keys, keys, queries, queries]
    }
    /// Enough for any instruction set, if `width` is a multiple of `MAX_LANES`.
    fn len(hs: usize, width: usize) -> usize {
        Scratch::sizes(hs, width + 1).iter().sum()
    }
    #[inline(always)]
    fn cut(mut rest: &'a mut [f32], hs: usize, width: usize) -> Scratch<'a> {
        let mut next = |size| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(size);
            rest = tail;
            part
        };
        let [p, ds, q_t, dout_t, dq, dk, dv, a, b, c, d] = Scratch::sizes(hs, width).map(&mut next);
        dk.fill(0.0);
        dv.fill(0.0);
        Scratch { p, ds, q_t, dout_t, dq, dk, dv, copies: [a, b, c, d], width }
    }
}

/// The keys and values of a task's chunk, as right operands.
#[derive(Clone, Copy)]
struct KeyRows<'a> {
    k: Rows<'a>,
    v: Rows<'a>,
}

impl Kernel for Work<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let hs = self.task.shape.head_size;
        self.task.pair(s, &mut Scratch::cut(self.scratch, hs, hs.next_multiple_of(S::LANES)));
    }
}

impl Task<'_> {
    /// Where row `i` of the document begins for a query head and for this key head.
    #[inline(always)]
    fn q_at(&self, i: usize, head: usize) -> usize {
        (self.start + i) * self.shape.q_row() + head * self.shape.head_size
    }
    #[inline(always)]
    fn kv_at(&self, j: usize) -> usize {
        (self.start + j) * self.shape.kv_row() + self.group * self.shape.head_size
    }

    #[inline(always)]
    fn pair<S: Simd>(&self, s: S, m: &mut Scratch) {
        let (hs, width, kv_row) = (self.shape.head_size, m.width, self.shape.kv_row());
        let [k_copy, v_copy, q_copy, dout_copy] = std::mem::take(&mut m.copies);
        let at = self.kv_at(self.j);
        let kv = KeyRows {
            k: gather_rows(self.inputs.k, at, kv_row, self.keys, hs, width, k_copy),
            v: gather_rows(self.inputs.v, at, kv_row, self.keys, hs, width, v_copy),
        };
        let per_group = self.shape.heads / self.shape.kv_heads;
        for head in self.group * per_group..(self.group + 1) * per_group {
            for i in (self.i..self.i + self.queries).step_by(QUERIES) {
                let nq = QUERIES.min(self.i + self.queries - i);
                let (at, q_row) = (self.q_at(i, head), self.shape.q_row());
                let q = gather_rows(self.inputs.q, at, q_row, nq, hs, width, q_copy);
                let dout = gather_rows(self.inputs.dout, at, q_row, nq, hs, width, dout_copy);
                self.queries(s, m, kv, q, dout, head, i, nq);
            }
        }
        for y in 0..self.keys {
            for (sums, grad) in [(&*m.dk, self.dk), (&*m.dv, self.dv)] {
                // SAFETY: no other task of this phase has this key chunk and this key head.
                let grad = unsafe { grad.part(self.kv_at(self.j + y), hs) };
                self.give(grad, &sums[y * width..]);
            }
        }
    }

    /// The diagonal phase comes first and sets the gradients, the others add to them.
    #[inline(always)]
    fn give(&self, grad: &mut [f32], sums: &[f32]) {
        if self.i == self.j {
            grad.copy_from_slice(&sums[..grad.len()]);
        } else {
            grad.iter_mut().zip(sums).for_each(|(g, x)| *g += x);
        }
    }

    /// Queries `i..i + nq` of the document against the keys of the chunk that they see.
    #[inline(always)]
    fn queries<S: Simd>(
        &self,
        s: S,
        m: &mut Scratch,
        kv: KeyRows,
        q: Rows,
        dout: Rows,
        head: usize,
        i: usize,
        nq: usize,
    ) {
        let (hs, width) = (self.shape.head_size, m.width);
        let window = self.shape.window.unwrap_or(usize::MAX);
        let mut j = self.j.max((i + 1).saturating_sub(window));
        let end = (self.j + self.keys).min(i + nq);
        if j >= end && self.i != self.j {
            return;
        }
        transpose(m.q_t, q, nq, hs, self.shape.scale);
        transpose(m.dout_t, dout, nq, hs, 1.0);
        m.dq.fill(0.0);
        let (mut lse, mut delta) = ([0.0; QUERIES], [0.0; QUERIES]);
        lse[..nq].copy_from_slice(&self.inputs.lse[head * self.n + self.start + i..][..nq]);
        for x in 0..nq {
            let at = self.q_at(i + x, head);
            delta[x] = s.dot(&self.inputs.dout[at..at + hs], &self.inputs.out[at..at + hs]);
        }
        let (q_t, dout_t) = (Rows { data: m.q_t, stride: QUERIES }, Rows { data: m.dout_t, stride: QUERIES });
        while j < end {
            let nk = KEYS.min(end - j);
            let (k, v) = (kv.k.skip(j - self.j), kv.v.skip(j - self.j));
            let (p, ds) = (&mut m.p[..nk * QUERIES], &mut m.ds[..nk * QUERIES]);
            matmul(s, [nk, QUERIES, hs], Left::Plain(k), q_t, p, QUERIES, false);
            matmul(s, [nk, QUERIES, hs], Left::Plain(v), dout_t, ds, QUERIES, false);
            if let Some(cap) = self.shape.softcap {
                soft_cap(s, p, cap);
            }
            if j + nk > i + 1 || i + nq - j > window {
                mask(p, j, i, window);
            }
            softmax_backward(s, p, ds, &lse, &delta, self.shape);
            let (p, ds) = (Rows { data: p, stride: QUERIES }, Rows { data: ds, stride: QUERIES });
            let at = (j - self.j) * width;
            matmul(s, [nq, width, nk], Left::Transposed(ds), k, m.dq, width, true);
            matmul(s, [nk, width, nq], Left::Plain(p), dout, &mut m.dv[at..], width, true);
            matmul(s, [nk, width, nq], Left::Plain(ds), q, &mut m.dk[at..], width, true);
            j += nk;
        }
        for x in 0..nq {
            // SAFETY: no other task of this phase has this query chunk and this head.
            let grad = unsafe { self.dq.part(self.q_at(i + x, head), hs) };
            self.give(grad, &m.dq[x * width..]);
        }
    }
}

/// p (keys, QUERIES) = exp(p - lse), ds = p * (ds - delta) * scale, times the slope of the cap at p.
#[inline(always)]
fn softmax_backward<S: Simd>(
    s: S,
    p: &mut [f32],
    ds: &mut [f32],
    lse: &[f32; QUERIES],
    delta: &[f32; QUERIES],
    shape: AttentionShape,
) {
    let (scale, inverse) = (s.splat(shape.scale), shape.softcap.map(|cap| 1.0 / cap));
    for (p, ds) in p.chunks_exact_mut(QUERIES).zip(ds.chunks_exact_mut(QUERIES)) {
        for c in (0..QUERIES).step_by(S::LANES) {
            let score = s.read(&p[c..]);
            let prob = s.exp(s.sub(score, s.read(&lse[c..])));
            let grad = s.mul(s.mul(prob, scale), s.sub(s.read(&ds[c..]), s.read(&delta[c..])));
            let grad = inverse.map_or(grad, |inverse| s.mul(grad, soft_cap_slope(s, score, inverse)));
            s.write(&mut p[c..], prob);
            s.write(&mut ds[c..], grad);
        }
    }
}
