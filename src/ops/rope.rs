//! Rotary position embedding, Hugging Face's `rotate_half` layout: element i of a head is paired with element i + HS/2.
#![allow(unsafe_code)]
use anyhow::Result;

use crate::tensor::{Tensor, refuse_overlap};

use super::{
    checks::{check, check_ids},
    kernels,
    launch::{Grid, gpu_of},
    parallel::{Shared, for_each_rows},
    simd::{Kernel, Simd, run},
};

/// x (N, NH*HS), in place: each head's pair (x_i, x_{i+HS/2}) turns by the angle of `positions` (N), whose cosines and sines
/// are rows of `cos`, `sin` (T, HS/2). Errors name a position that is not below T.
pub fn rope_forward(
    x: &mut Tensor,
    positions: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    head_size: usize,
) -> Result<()> {
    rotate("rope_forward", [x], positions, cos, sin, head_size, 1.0)
}

/// [`rope_forward`] of queries and keys (or, with `back`, [`rope_backward`] of their gradients): on a GPU in one launch.
pub fn rope_both(
    q: &mut Tensor,
    k: &mut Tensor,
    positions: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    head_size: usize,
    back: bool,
) -> Result<()> {
    refuse_overlap(&[q], &[k])?;
    rotate("rope_both", [q, k], positions, cos, sin, head_size, if back { -1.0 } else { 1.0 })
}

/// dx (N, NH*HS), in place: the gradient of [`rope_forward`], which is the rotation by the opposite angle.
pub fn rope_backward(
    dx: &mut Tensor,
    positions: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    head_size: usize,
) -> Result<()> {
    rotate("rope_backward", [dx], positions, cos, sin, head_size, -1.0)
}

/// One tensor or two, each by itself on the CPU.
fn rotate<const TENSORS: usize>(
    op: &str,
    mut all: [&mut Tensor; TENSORS],
    positions: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    head_size: usize,
    sign: f32,
) -> Result<()> {
    let mut gpu = None;
    for x in &all {
        check_shapes(op, x, positions, cos, sin, head_size)?;
        gpu = gpu_of(op, &[x, positions, cos, sin])?;
    }
    let (t, half) = cos.rows_cols();
    let Some(gpu) = gpu else {
        return all.iter_mut().try_for_each(|x| rotate_here(op, x, positions, cos, sin, sign));
    };
    let n = positions.len();
    let mut all = all.iter_mut().map(|x| (x.rows_cols().1, &mut **x));
    let Some((c, x)) = all.next() else { return Ok(()) };
    let (c2, second) = all.next().map_or((0, None), |(c, x)| (c, Some(x)));
    // SAFETY: shapes were checked, positions are checked by the kernel.
    unsafe { kernels::rope(&gpu, Grid::new(n), x, second, positions, cos, sin, c, c2, half, t, sign) }
}

fn check_shapes(
    op: &str,
    x: &Tensor,
    positions: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    head_size: usize,
) -> Result<()> {
    let (n, c) = x.rows_cols();
    let half = cos.rows_cols().1;
    check(
        head_size > 0
            && head_size.is_multiple_of(2)
            && c.is_multiple_of(head_size)
            && half == head_size / 2
            && sin.shape() == cos.shape()
            && positions.len() == n,
        op,
        &[x, positions, cos, sin],
    )?;
    refuse_overlap(&[x], &[positions, cos, sin])
}

fn rotate_here(
    op: &str,
    x: &mut Tensor,
    positions: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    sign: f32,
) -> Result<()> {
    let ((n, c), (t, half)) = (x.rows_cols(), cos.rows_cols());
    let ids = positions.u32()?;
    check_ids(op, positions, ids, t, cos)?;
    let (cos, sin, x) = (cos.f32()?, sin.f32()?, x.f32_mut()?);
    let x = Shared::new(x);
    for_each_rows(n, c, |block| {
        // SAFETY: blocks of rows do not overlap.
        let x = unsafe { x.part(block.start * c, block.len() * c) };
        run(Rotate { x, row: c, positions: &ids[block], cos, sin, half, sign })
    });
    Ok(())
}

struct Rotate<'a> {
    x: &'a mut [f32],
    row: usize,
    positions: &'a [u32],
    cos: &'a [f32],
    sin: &'a [f32],
    half: usize,
    sign: f32,
}

impl Kernel for Rotate<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.half;
        for (n, &p) in self.positions.iter().enumerate() {
            let table = p as usize * half;
            for head in self.x[n * self.row..][..self.row].chunks_exact_mut(2 * half) {
                let (a, b) = head.split_at_mut(half);
                for i in (0..half).step_by(S::LANES) {
                    let cos = s.read_some(&self.cos[table + i..table + half]);
                    let sin = s.mul(s.read_some(&self.sin[table + i..table + half]), s.splat(self.sign));
                    let (u, v) = (s.read_some(&a[i..]), s.read_some(&b[i..]));
                    s.write_some(&mut a[i..], s.sub(s.mul(u, cos), s.mul(v, sin)));
                    s.write_some(&mut b[i..], s.fma(v, cos, s.mul(u, sin)));
                }
            }
        }
    }
}

/// The naive oracle, in f64.
pub mod reference {
    /// x (N, NH*HS) in place; `sign` 1 turns forward, -1 back.
    pub fn rotate(
        x: &mut [f64],
        positions: &[u32],
        cos: &[f64],
        sin: &[f64],
        head_size: usize,
        row: usize,
        sign: f64,
    ) {
        let half = head_size / 2;
        for (n, &p) in positions.iter().enumerate() {
            for head in (n * row..(n + 1) * row).step_by(head_size) {
                for i in 0..half {
                    let (c, s) = (cos[p as usize * half + i], sign * sin[p as usize * half + i]);
                    let (u, v) = (x[head + i], x[head + half + i]);
                    x[head + i] = u * c - v * s;
                    x[head + half + i] = v * c + u * s;
                }
            }
        }
    }
}
