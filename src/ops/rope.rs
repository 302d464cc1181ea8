//! Rotary position embedding, Hugging Face's `rotate_half` layout: element i of a head is paired with element i + HS/2.
use anyhow::Result;

use crate::tensor::{Tensor, refuse_overlap};

use super::checks::{check, check_ids};

/// x (N, NH*HS), in place: each head's pair (x_i, x_{i+HS/2}) turns by the angle of `positions` (N), whose cosines and sines
/// are rows of `cos`, `sin` (T, HS/2). Errors name a position that is not below T.
pub fn rope_forward(
    x: &mut Tensor,
    positions: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    head_size: usize,
) -> Result<()> {
    rotate("rope_forward", x, positions, cos, sin, head_size, 1.0)
}

/// dx (N, NH*HS), in place: the gradient of [`rope_forward`], which is the rotation by the opposite angle.
pub fn rope_backward(
    dx: &mut Tensor,
    positions: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    head_size: usize,
) -> Result<()> {
    rotate("rope_backward", dx, positions, cos, sin, head_size, -1.0)
}

fn rotate(
    op: &str,
    x: &mut Tensor,
    positions: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    head_size: usize,
    sign: f32,
) -> Result<()> {
    let (n, c) = x.rows_cols();
    let (t, half) = cos.rows_cols();
    check(
        head_size > 0
            && head_size % 2 == 0
            && c % head_size == 0
            && half == head_size / 2
            && sin.shape() == cos.shape()
            && positions.len() == n,
        op,
        &[x, positions, cos, sin],
    )?;
    refuse_overlap(&[x], &[positions, cos, sin])?;
    let ids = positions.u32()?;
    check_ids(op, positions, ids, t, cos)?;
    let (cos, sin, x) = (cos.f32()?, sin.f32()?, x.f32_mut()?);
    for (row, &p) in x.chunks_exact_mut(c.max(1)).zip(ids) {
        let (cos, sin) = (&cos[p as usize * half..][..half], &sin[p as usize * half..][..half]);
        for head in row.chunks_exact_mut(head_size) {
            let (a, b) = head.split_at_mut(half);
            for i in 0..half {
                let (u, v, s) = (a[i], b[i], sign * sin[i]);
                a[i] = u * cos[i] - v * s;
                b[i] = v * cos[i] + u * s;
            }
        }
    }
    Ok(())
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
