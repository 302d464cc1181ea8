//! The launches of attention.cu and attention_backward.cu.
use anyhow::{Result, ensure};

use super::AttentionShape;
use crate::{
    device::{Arg, Geometry, Gpu, Kernel},
    ops::launch::{check_dtype, kernel},
    tensor::{DType, Tensor},
};

/// Which rows belong together: offsets of query and key rows (U32, documents + 1), and whether keys after a query are hidden.
#[derive(Clone, Copy)]
pub(super) struct Documents<'a> {
    pub cu_q: &'a Tensor,
    pub cu_k: &'a Tensor,
    pub causal: bool,
}

/// Heads are padded to the next of these in shared memory.
fn padded(op: &str, head_size: usize) -> Result<usize> {
    ensure!(head_size <= 128, "{op}: heads of {head_size} elements; the GPU kernels take up to 128");
    Ok(if head_size <= 32 {
        32
    } else if head_size <= 64 {
        64
    } else {
        128
    })
}

/// The parameters that all kernels end with.
fn common(d: Documents, n_q: usize, n_k: usize, s: AttentionShape) -> Result<Vec<Arg>> {
    Ok(vec![
        d.cu_q.arg()?,
        d.cu_k.arg()?,
        Arg::int(d.cu_q.len() - 1)?,
        Arg::int(n_q)?,
        Arg::int(n_k)?,
        Arg::int(s.heads)?,
        Arg::int(s.kv_heads)?,
        Arg::int(s.head_size)?,
        Arg::F32(s.scale),
        Arg::I32(d.causal as i32),
        Arg::int(s.window.unwrap_or(0).min(i32::MAX as usize))?,
    ])
}

/// Blocks that cover every document with tiles of `rows`.
fn tiles(n: usize, cu: &Tensor, rows: usize) -> usize {
    n / rows + cu.len() - 1
}

macro_rules! by_head_size {
    ($d:expr, $dtype:expr, $file:literal, $name:literal) => {
        match $d {
            32 => kernel!($dtype, $file, concat $name, "_32"),
            64 => kernel!($dtype, $file, concat $name, "_64"),
            _ => kernel!($dtype, $file, concat $name, "_128"),
        }
    };
}

pub(super) fn forward(
    gpu: &Gpu,
    out: &mut Tensor,
    lse: &mut Tensor,
    [q, k, v]: [&Tensor; 3],
    d: Documents,
    s: AttentionShape,
) -> Result<()> {
    check_dtype("attention_forward", q.dtype(), &[out, k, v])?;
    check_dtype("attention_forward", DType::F32, &[lse])?;
    let (n, n_k, pad) = (q.rows_cols().0, k.rows_cols().0, padded("attention_forward", s.head_size)?);
    let kernel: Kernel = by_head_size!(pad, q.dtype(), "attention", "attention_forward");
    let (rows, threads, shared) = match q.dtype() {
        DType::Bf16 => (64, 128, 0),
        // 32 query rows, 16 key rows, 16 value rows, 32 rows of probabilities.
        _ => (32, 256, (64 * (pad + 4) + 32 * 17) * 4),
    };
    let mut args = vec![out.arg()?, lse.arg()?, q.arg()?, k.arg()?, v.arg()?];
    args.extend(common(d, n, n_k, s)?);
    let at = Geometry::grid([tiles(n, d.cu_q, rows), s.heads, 1], threads).shared(shared);
    // SAFETY: the kernel's parameters; the caller checked the shapes.
    unsafe { gpu.launch(kernel, at, &args) }
}

pub(super) fn backward(
    gpu: &Gpu,
    [dq, dk, dv]: [&mut Tensor; 3],
    [dout, out, lse, q, k, v]: [&Tensor; 6],
    d: Documents,
    s: AttentionShape,
) -> Result<()> {
    const OP: &str = "attention_backward";
    check_dtype(OP, q.dtype(), &[dq, dk, dv, dout, out, k, v])?;
    check_dtype(OP, DType::F32, &[lse])?;
    let (n, n_k, pad) = (q.rows_cols().0, k.rows_cols().0, padded(OP, s.head_size)?);
    let delta = Tensor::zeros_on(&q.device(), "attention_delta", DType::F32, &[s.heads, n])?;
    let args =
        [delta.arg()?, dout.arg()?, out.arg()?, Arg::int(n)?, Arg::int(s.heads)?, Arg::int(s.head_size)?];
    let at = Geometry::grid([n.div_ceil(8), s.heads, 1], 256);
    // SAFETY: the kernel's parameters; the caller checked the shapes.
    unsafe { gpu.launch(kernel!(q.dtype(), "attention_backward", "attention_delta"), at, &args)? };
    // The Smem structs of attention_backward.cu: two resident and two streamed tiles, log-sum-exp and delta; f32 also P and dS.
    let (rows, threads, shared) = match q.dtype() {
        DType::Bf16 => (64, 128, (2 * 64 + 2 * 32) * (pad + 8) * 2 + 2 * 32 * 4),
        _ => (32, 256, ((2 * 32 + 2 * 16) * (pad + 4) + 2 * 32 * 17 + 2 * 16) * 4),
    };
    let inputs = [dout.arg()?, lse.arg()?, delta.arg()?, q.arg()?, k.arg()?, v.arg()?];
    let common = common(d, n, n_k, s)?;
    let args = |outs: &[Arg]| [outs, &inputs, &common].concat();
    let kernel: Kernel = by_head_size!(pad, q.dtype(), "attention_backward", "attention_backward_q");
    let at = Geometry::grid([tiles(n, d.cu_q, rows), s.heads, 1], threads).shared(shared);
    // SAFETY: as above.
    unsafe { gpu.launch(kernel, at, &args(&[dq.arg()?]))? };
    let kernel: Kernel = by_head_size!(pad, q.dtype(), "attention_backward", "attention_backward_kv");
    let at = Geometry::grid([tiles(n_k, d.cu_k, rows), s.kv_heads, 1], threads).shared(shared);
    // SAFETY: as above.
    unsafe { gpu.launch(kernel, at, &args(&[dk.arg()?, dv.arg()?])) }
}
