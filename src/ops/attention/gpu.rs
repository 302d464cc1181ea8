//! The launches of attention.cu and attention_backward.cu.
use anyhow::{Result, ensure};

use super::AttentionShape;
use crate::{
    device::Gpu,
    ops::{kernels, launch::Grid},
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

/// Which kernel: what attention.cu and attention_backward.cu are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tiles {
    /// Elements of a head in shared memory: heads are padded to the next size that there is.
    head: usize,
    /// True if dk and dv are made by a kernel each.
    apart: bool,
}

fn tiling(head_size: usize, dtype: DType) -> Tiles {
    let head = [32, 64, 128].into_iter().find(|&h| head_size <= h).unwrap_or(256);
    let narrow = dtype == DType::Bf16;
    Tiles { head, apart: narrow && head > 128 }
}

/// Blocks that cover the rows of every document, for `heads` heads.
fn grid(rows: usize, cu: &Tensor, heads: usize) -> Grid {
    Grid::documents(rows, cu.len() - 1, heads)
}

/// Calls a launch function with the parameters that all kernels end with.
macro_rules! attend {
    ($launch:expr, $gpu:expr, $grid:expr, [$($own:expr),*], $d:expr, [$q:expr, $k:expr], $s:expr) => {
        $launch(
            $gpu,
            $grid,
            $($own,)*
            $d.cu_q,
            $d.cu_k,
            $d.cu_q.len() - 1,
            $q,
            $k,
            $s.heads,
            $s.kv_heads,
            $s.head_size,
            $s.scale,
            $d.causal as usize,
            $s.window.unwrap_or(0).min(i32::MAX as usize),
            $s.softcap.unwrap_or(0.0),
        )
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
    supported(s.head_size, s.softcap, Some(gpu.arch()))?;
    let (n, n_k, t) = (q.rows_cols().0, k.rows_cols().0, tiling(s.head_size, q.dtype()));
    let launch = match t.head {
        32 => kernels::attention_forward_32,
        64 => kernels::attention_forward_64,
        128 => kernels::attention_forward_128,
        _ => kernels::attention_forward_256,
    };
    let blocks = grid(n, d.cu_q, s.heads);
    // SAFETY: the caller checked the shapes.
    unsafe { attend!(launch, gpu, blocks, [out, lse, q, k, v], d, [n, n_k], s) }
}

pub(super) fn backward(
    gpu: &Gpu,
    [dq, dk, dv]: [&mut Tensor; 3],
    [dout, out, lse, q, k, v]: [&Tensor; 6],
    d: Documents,
    s: AttentionShape,
) -> Result<()> {
    supported(s.head_size, s.softcap, Some(gpu.arch()))?;
    let (n, n_k, t) = (q.rows_cols().0, k.rows_cols().0, tiling(s.head_size, q.dtype()));
    let mut delta = Tensor::scratch_on(&q.device(), "attention_delta", DType::F32, &[s.heads, n])?;
    let blocks = Grid::tiles([n, s.heads, 1]);
    // SAFETY: the caller checked the shapes.
    unsafe { kernels::attention_delta(gpu, blocks, &mut delta, dout, out, n, s.heads, s.head_size)? };
    let launch = match t.head {
        32 => kernels::attention_backward_q_32,
        64 => kernels::attention_backward_q_64,
        128 => kernels::attention_backward_q_128,
        _ => kernels::attention_backward_q_256,
    };
    let blocks = grid(n, d.cu_q, s.heads);
    // SAFETY: as above.
    unsafe { attend!(launch, gpu, blocks, [dq, dout, lse, &delta, q, k, v], d, [n, n_k], s)? };
    let blocks = grid(n_k, d.cu_k, s.kv_heads);
    if t.apart {
        // SAFETY: as above.
        unsafe {
            let launch = kernels::attention_backward_k_256_bf16;
            attend!(launch, gpu, blocks, [dk, dv, dout, lse, &delta, q, k, v], d, [n, n_k], s)?;
            let launch = kernels::attention_backward_v_256_bf16;
            return attend!(launch, gpu, blocks, [dk, dv, dout, lse, &delta, q, k, v], d, [n, n_k], s);
        }
    }
    let launch = match t.head {
        32 => kernels::attention_backward_kv_32,
        64 => kernels::attention_backward_kv_64,
        128 => kernels::attention_backward_kv_128,
        _ => kernels::attention_backward_kv_256_f32,
    };
    // SAFETY: as above.
    unsafe { attend!(launch, gpu, blocks, [dk, dv, dout, lse, &delta, q, k, v], d, [n, n_k], s) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_has_a_tile() {
        for head_size in 1..=LARGEST_HEAD {
            for dtype in [DType::Bf16, DType::F32] {
                assert!(tiling(head_size, dtype).head >= head_size, "{head_size}");
            }
        }
        let of = |hs, dtype| (tiling(hs, dtype).head, tiling(hs, dtype).apart);
        assert_eq!([of(20, DType::Bf16), of(64, DType::Bf16)], [(32, false), (64, false)]);
        assert_eq!([of(80, DType::Bf16), of(256, DType::Bf16)], [(128, false), (256, true)]);
        assert_eq!([of(96, DType::F32), of(129, DType::F32)], [(128, false), (256, false)]);
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
