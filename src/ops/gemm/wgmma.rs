//! The launch of sm90/gemm.cu.
use anyhow::{Result, bail};

use super::Layout;
use crate::{
    device::{Arg, Geometry, Gpu},
    ops::launch::kernel,
    tensor::Tensor,
};

/// Bytes of the kernel's shared memory: 4 stages of 128 x 64 and 64 x 128, the output's 128 x 128, 8 barriers.
const SHARED: usize = (4 * 2 * 128 * 64 + 128 * 128) * 2 + 1024;

/// out (N, M) = alpha a b, all bf16 with rows of 16-byte multiples.
pub(super) fn product(
    gpu: &Gpu,
    out: &mut Tensor,
    a: &Tensor,
    b: &Tensor,
    layout: Layout,
    alpha: f32,
) -> Result<()> {
    let ((n, k), (_, m)) = (a.rows_cols(), out.rows_cols());
    let map = |t: &Tensor, tile: [u32; 2]| -> Result<Arg> {
        let (rows, cols) = t.rows_cols();
        Ok(Arg::Map(gpu.tensor_map_2d(t.address()?, rows, cols, cols, tile)?, t.label()))
    };
    let (kernel, b_tile) = match layout {
        Layout::NT => (kernel!("sm90/gemm", "gemm_nt_wgmma"), [128, 64]),
        Layout::NN => (kernel!("sm90/gemm", "gemm_nn_wgmma"), [64, 64]),
        Layout::TN => bail!("gemm: the Hopper kernel has no TN layout"),
    };
    let (map_a, map_b, map_out) = (map(a, [128, 64])?, map(b, b_tile)?, map(out, [64, 64])?);
    let args = [map_a, map_b, map_out, Arg::int(n)?, Arg::int(m)?, Arg::int(k)?, Arg::F32(alpha)];
    // One block a multiprocessor: shared memory holds no second one.
    let blocks = (n.div_ceil(128) * m.div_ceil(128)).min(gpu.multiprocessors());
    // SAFETY: the kernel's parameters; the caller checked shapes and alignment.
    unsafe { gpu.launch(kernel, Geometry::new(blocks, 384).shared(SHARED), &args) }
}
