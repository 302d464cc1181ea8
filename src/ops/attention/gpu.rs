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

/// The largest head that a kernel takes; on the CPU any does.
const LARGEST_HEAD: usize = 256;

/// Errors unless attention, its backward and decode attention take heads of `head_size` elements and this cap of the scores, on a GPU of compute capability
/// `arch` (80 for sm_80; `None`: the CPU). For a model to ask before it loads weights.
pub fn supported(head_size: usize, softcap: Option<f32>, arch: Option<u32>) -> Result<()> {
    let place = arch.map_or("the CPU".to_owned(), |arch| format!("sm_{arch}"));
    ensure!(head_size > 0, "attention on {place}: heads of 0 elements");
    ensure!(
        softcap.is_none_or(|cap| cap > 0.0 && cap.is_finite()),
        "attention on {place}: scores cannot be capped to {softcap:?}; a cap is a number above 0"
    );
    let Some(arch) = arch else { return Ok(()) };
    ensure!(arch >= 80, "attention on {place}: the kernels need sm_80 (Ampere) or later");
    ensure!(
        head_size <= LARGEST_HEAD,
        "attention on {place}: heads of {head_size} elements; the kernels take up to {LARGEST_HEAD}"
    );
    Ok(())
}

/// How a launch is cut: what attention.cu and attention_backward.cu are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tiles {
    /// Elements of a head in shared memory: heads are padded to the next size that there is.
    head: usize,
    /// Rows of a block: queries, or keys where the gradients of keys are made.
    rows: usize,
    /// Threads of a block.
    threads: u32,
    /// Dynamic shared memory, bytes: of the forward and of the backward kernels.
    shared: [usize; 2],
    /// True if dk and dv are made by a kernel each.
    apart: bool,
}

fn tiling(head_size: usize, dtype: DType) -> Tiles {
    let head = [32, 64, 128].into_iter().find(|&h| head_size <= h).unwrap_or(256);
    // Rows that stream by in the backward kernels: fewer of the longest heads, so that all fits.
    let long = head > 128;
    match dtype {
        DType::Bf16 => {
            let (pitch, streamed) = ((head + 8) * 2, if long { 16 } else { 32 });
            // Two resident and two streamed tiles, log-sum-exp and delta.
            let backward = (2 * 64 + 2 * streamed) * pitch + 2 * streamed * 4;
            // Shared memory of up to 48 KiB is the forward kernel's own; a tile of 64 queries and two of 32 keys are not.
            Tiles {
                head,
                rows: 64,
                threads: 128,
                shared: [if long { 128 * pitch } else { 0 }, backward],
                apart: long,
            }
        }
        _ => {
            let (pitch, streamed) = ((head + 4) * 4, if long { 8 } else { 16 });
            // 32 query rows, 16 key rows, 16 value rows, 32 rows of probabilities.
            let forward = 64 * pitch + 32 * 17 * 4;
            // As above, and P and dS.
            let backward = (2 * 32 + 2 * streamed) * pitch + (2 * 32 * (streamed + 1) + 2 * streamed) * 4;
            Tiles { head, rows: 32, threads: 256, shared: [forward, backward], apart: false }
        }
    }
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
        Arg::F32(s.softcap.unwrap_or(0.0)),
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
            128 => kernel!($dtype, $file, concat $name, "_128"),
            _ => kernel!($dtype, $file, concat $name, "_256"),
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
    supported(s.head_size, s.softcap, Some(gpu.arch()))?;
    let (n, n_k, t) = (q.rows_cols().0, k.rows_cols().0, tiling(s.head_size, q.dtype()));
    let kernel: Kernel = by_head_size!(t.head, q.dtype(), "attention", "attention_forward");
    let mut args = vec![out.arg()?, lse.arg()?, q.arg()?, k.arg()?, v.arg()?];
    args.extend(common(d, n, n_k, s)?);
    let at = Geometry::grid([tiles(n, d.cu_q, t.rows), s.heads, 1], t.threads).shared(t.shared[0]);
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
    supported(s.head_size, s.softcap, Some(gpu.arch()))?;
    let (n, n_k, t) = (q.rows_cols().0, k.rows_cols().0, tiling(s.head_size, q.dtype()));
    let delta = Tensor::zeros_on(&q.device(), "attention_delta", DType::F32, &[s.heads, n])?;
    let args =
        [delta.arg()?, dout.arg()?, out.arg()?, Arg::int(n)?, Arg::int(s.heads)?, Arg::int(s.head_size)?];
    let at = Geometry::grid([n.div_ceil(8), s.heads, 1], 256);
    // SAFETY: the kernel's parameters; the caller checked the shapes.
    unsafe { gpu.launch(kernel!(q.dtype(), "attention_backward", "attention_delta"), at, &args)? };
    let inputs = [dout.arg()?, lse.arg()?, delta.arg()?, q.arg()?, k.arg()?, v.arg()?];
    let common = common(d, n, n_k, s)?;
    let args = |outs: &[Arg]| [outs, &inputs, &common].concat();
    let kernel: Kernel = by_head_size!(t.head, q.dtype(), "attention_backward", "attention_backward_q");
    let at = Geometry::grid([tiles(n, d.cu_q, t.rows), s.heads, 1], t.threads).shared(t.shared[1]);
    // SAFETY: as above.
    unsafe { gpu.launch(kernel, at, &args(&[dq.arg()?]))? };
    let at = Geometry::grid([tiles(n_k, d.cu_k, t.rows), s.kv_heads, 1], t.threads).shared(t.shared[1]);
    let kernels: &[Kernel] = match t.apart {
        true => &[
            kernel!("attention_backward", "attention_backward_k_256_bf16"),
            kernel!("attention_backward", "attention_backward_v_256_bf16"),
        ],
        false => &[by_head_size!(t.head, q.dtype(), "attention_backward", "attention_backward_kv")],
    };
    for &kernel in kernels {
        // SAFETY: as above.
        unsafe { gpu.launch(kernel, at, &args(&[dk.arg()?, dv.arg()?]))? };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_of_every_head_fit_every_card_from_ampere_on() {
        // sm_86 and sm_89 have the least: 99 KiB for a block.
        for head_size in 1..=LARGEST_HEAD {
            for dtype in [DType::Bf16, DType::F32] {
                let t = tiling(head_size, dtype);
                assert!(t.head >= head_size && t.shared.iter().all(|&b| b <= 99 << 10), "{head_size} {t:?}");
            }
        }
        let of = |hs, dtype| (tiling(hs, dtype).head, tiling(hs, dtype).shared);
        assert_eq!(of(64, DType::Bf16), (64, [0, 192 * 72 * 2 + 256]));
        assert_eq!(of(80, DType::Bf16), (128, [0, 192 * 136 * 2 + 256]));
        assert_eq!(of(96, DType::F32), (128, [64 * 132 * 4 + 2176, 96 * 132 * 4 + 4352 + 128]));
        assert_eq!(of(256, DType::Bf16), (256, [128 * 264 * 2, 160 * 264 * 2 + 128]));
        assert_eq!(of(129, DType::F32), (256, [64 * 260 * 4 + 2176, 80 * 260 * 4 + 2304 + 64]));
    }

    #[test]
    fn what_no_kernel_serves_is_refused_by_name() {
        let refused = |hs, cap, arch| supported(hs, cap, arch).unwrap_err().to_string();
        for hs in [1, 20, 64, 80, 96, 128, 256] {
            assert!(supported(hs, Some(50.0), Some(80)).is_ok() && supported(hs, None, None).is_ok());
        }
        assert!(supported(512, Some(30.0), None).is_ok(), "the CPU takes any head");
        let e = refused(512, None, Some(90));
        assert!(e.contains("512") && e.contains("sm_90") && e.contains("256"), "{e}");
        assert!(refused(64, None, Some(75)).contains("sm_75"));
        for cap in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(refused(64, Some(cap), None).contains("the CPU"), "{cap}");
        }
        assert!(refused(0, None, None).contains("0 elements"));
    }
}
