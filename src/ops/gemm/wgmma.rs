//! The launch of sm90/gemm.cu.
use anyhow::{Result, bail};

use super::{
    Layout,
    plan::{Extras, aligned},
};
use crate::{
    device::Gpu,
    ops::{
        kernels,
        launch::{Grid, TileMap},
        rows::pad_rows,
    },
    tensor::{DType, Tensor},
};

/// A launch function of sm90/gemm.cu: all of its kernels have the same parameters.
type Launch = unsafe fn(
    &Gpu,
    Grid,
    &TileMap,
    &TileMap,
    &TileMap,
    &TileMap,
    &TileMap,
    &TileMap,
    Option<&Tensor>,
    Option<&Tensor>,
    usize,
    usize,
    usize,
    usize,
    f32,
    f32,
    usize,
) -> Result<()>;

/// scale t in bf16, in rows of 16-byte multiples: t itself if it is so already.
fn padded(t: &Tensor, scale: f32) -> Result<Tensor> {
    if t.dtype() == DType::Bf16 && aligned(t) && scale == 1.0 {
        return Ok(t.alias());
    }
    let (rows, cols) = t.rows_cols();
    let mut out = Tensor::scratch_on(&t.device(), "tail", DType::Bf16, &[rows, cols.next_multiple_of(8)])?;
    pad_rows(&mut out, t, scale)?;
    Ok(out)
}

/// out (N, M) = alpha (a b + scale a2 b2) + bias + resid [+ out] with tiles of 128 x `tile`; [`super::plan::tma_carries`] holds.
pub(super) fn product(
    gpu: &Gpu,
    out: &mut Tensor,
    a: &Tensor,
    b: &Tensor,
    layout: Layout,
    x: &Extras,
    tile: usize,
) -> Result<()> {
    let ((n, k), (_, m)) = (a.rows_cols(), out.rows_cols());
    let map = |t: &Tensor, [rows, cols]: [usize; 2]| TileMap::new(gpu, t, [rows as u32, cols as u32]);
    let launch: Launch = match (layout, tile) {
        (Layout::NT, 64) => kernels::gemm_nt_64_wgmma,
        (Layout::NN, 64) => kernels::gemm_nn_64_wgmma,
        (Layout::NT, 128) => kernels::gemm_nt_128_wgmma,
        (Layout::NN, 128) => kernels::gemm_nn_128_wgmma,
        (Layout::NT, 256) => kernels::gemm_nt_256_wgmma,
        (Layout::NN, 256) => kernels::gemm_nn_256_wgmma,
        _ => bail!("gemm: the Hopper kernel has no {layout:?} layout in tiles of {tile} columns"),
    };
    let (depth, side) = (kernels::wgmma_depth(), [kernels::wgmma_box(); 2]);
    let a_tile = [kernels::wgmma_rows(), depth];
    let b_tile = if layout == Layout::NT { [tile, depth] } else { side };
    let b = padded(b, 1.0)?;
    let (map_a, map_b, map_out) = (map(a, a_tile)?, map(&b, b_tile)?, map(out, side)?);
    // A power of two goes into b2 while it is rounded: exact, and the kernel need not stop between tail and product.
    let scale = x.tail.map_or(1.0, |t| t.2);
    let power_of_two = scale > 0.0 && scale.is_finite() && scale.to_bits().trailing_zeros() >= 23;
    let folded = if power_of_two { scale } else { 1.0 };
    let (a2, b2) = match x.tail {
        Some((a2, b2, _)) => (padded(a2, 1.0)?, padded(b2, folded)?),
        None => (a.alias(), b),
    };
    let (map_a2, map_b2) = (map(&a2, a_tile)?, map(&b2, b_tile)?);
    let (narrow, wide) = match x.resid {
        Some(r) if r.dtype() == DType::F32 => (None, Some(r)),
        other => (other, None),
    };
    let map_addend = narrow.map_or(Ok(map_out.clone()), |r| map(r, side))?;
    let addend = (x.accumulate || narrow.is_some()) as usize;
    // The padding of a tail is zeros in both, and products of it would cost.
    let k2 = x.tail.map_or(0, |t| t.0.rows_cols().1);
    // One block a multiprocessor: shared memory holds no second one.
    let grid = Grid::row_of_tiles([m, n], gpu.multiprocessors());
    let [ma, mb, ma2, mb2, mx, mc] = [&map_a, &map_b, &map_a2, &map_b2, &map_addend, &map_out];
    let tail_scale = scale / folded;
    // SAFETY: the caller checked shapes and alignment, and scratch is freed in the stream's order.
    unsafe {
        launch(gpu, grid, ma, mb, ma2, mb2, mx, mc, x.bias, wide, n, m, k, k2, x.alpha, tail_scale, addend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn a_tail_is_padded_to_whole_lines() {
        let mut t = Tensor::zeros_on(&Device::emulated(), "t", DType::F32, &[3, 5]).unwrap();
        t.write_f32(&(0..15).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
        let p = padded(&t, 2.0).unwrap();
        assert_eq!((p.dtype(), p.rows_cols()), (DType::Bf16, (3, 8)));
        let values = p.to_f32_vec().unwrap();
        assert_eq!(values[8..16], [10.0, 12.0, 14.0, 16.0, 18.0, 0.0, 0.0, 0.0]);
        let same = padded(&p, 1.0).unwrap();
        assert_eq!(same.address().unwrap(), p.address().unwrap());
    }
}
