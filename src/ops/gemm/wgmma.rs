//! The launch of sm90/gemm.cu.
use anyhow::{Result, bail};

use super::{
    Layout,
    gpu::{Extras, aligned},
};
use crate::{
    device::{Arg, Geometry, Gpu},
    ops::{launch::kernel, rows::pad_rows},
    tensor::{DType, Tensor},
};

/// Shared memory of a block: the ring, whose stages fill 192 KiB with any tile, the boxes in which a tile leaves, and 1024 bytes for barriers.
const SHARED: usize = 192 * 1024 + 4 * 64 * 64 * 2 + 1024;

/// Columns up to which tiles of 128 x 64 are taken, and b is made bf16 on the way: it is small.
pub(super) const FEW: usize = 64;

/// True if TMA can carry the operands: bf16, in rows of 16-byte multiples, of which an addend is one matrix at the most, and none where columns are few.
/// A tail can always be carried, and so can b of few columns: [`padded`].
pub(super) fn possible(out: &Tensor, a: &Tensor, b: &Tensor, layout: Layout, x: &Extras) -> bool {
    let tiled = |t: &Tensor| t.dtype() == DType::Bf16 && aligned(t);
    let addends = usize::from(x.accumulate) + usize::from(x.resid.is_some_and(|r| r.dtype() == DType::Bf16));
    let few = out.rows_cols().1 <= FEW;
    layout != Layout::TN
        && tiled(out)
        && tiled(a)
        && (few || tiled(b))
        && addends <= usize::from(!few)
        && x.bias.is_none_or(|b| b.is_aligned(8))
        && x.resid.is_none_or(|r| if r.dtype() == DType::F32 { r.is_aligned(8) } else { tiled(r) })
}

/// scale t in bf16, in rows of 16-byte multiples: t itself if it is so already.
fn padded(t: &Tensor, scale: f32) -> Result<Tensor> {
    if t.dtype() == DType::Bf16 && aligned(t) && scale == 1.0 {
        return Ok(t.alias());
    }
    let (rows, cols) = t.rows_cols();
    let mut out = Tensor::zeros_on(&t.device(), "tail", DType::Bf16, &[rows, cols.next_multiple_of(8)])?;
    pad_rows(&mut out, t, scale)?;
    Ok(out)
}

/// out (N, M) = alpha (a b + scale a2 b2) + bias + resid [+ out] with tiles of 128 x `tile`; [`possible`] holds.
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
    let map = |t: &Tensor, tile: [u32; 2]| -> Result<Arg> {
        let (rows, cols) = t.rows_cols();
        Ok(Arg::Map(gpu.tensor_map_2d(t.address()?, rows, cols, cols, tile)?, t.label()))
    };
    let (kernel, b_tile) = match (layout, tile) {
        (Layout::NT, 64) => (kernel!("sm90/gemm", "gemm_nt_64_wgmma"), [64, 64]),
        (Layout::NN, 64) => (kernel!("sm90/gemm", "gemm_nn_64_wgmma"), [64, 64]),
        (Layout::NT, 128) => (kernel!("sm90/gemm", "gemm_nt_128_wgmma"), [128, 64]),
        (Layout::NN, 128) => (kernel!("sm90/gemm", "gemm_nn_128_wgmma"), [64, 64]),
        (Layout::NT, 256) => (kernel!("sm90/gemm", "gemm_nt_256_wgmma"), [256, 64]),
        (Layout::NN, 256) => (kernel!("sm90/gemm", "gemm_nn_256_wgmma"), [64, 64]),
        _ => bail!("gemm: the Hopper kernel has no {layout:?} layout in tiles of 128 x {tile}"),
    };
    let b = padded(b, 1.0)?;
    let (map_a, map_b, map_out) = (map(a, [128, 64])?, map(&b, b_tile)?, map(out, [64, 64])?);
    // A power of two goes into b2 while it is rounded: exact, and the kernel need not stop between tail and product.
    let scale = x.tail.map_or(1.0, |t| t.2);
    let power_of_two = scale > 0.0 && scale.is_finite() && scale.to_bits().trailing_zeros() >= 23;
    let folded = if power_of_two { scale } else { 1.0 };
    let (a2, b2) = match x.tail {
        Some((a2, b2, _)) => (padded(a2, 1.0)?, padded(b2, folded)?),
        None => (a.alias(), b),
    };
    let (map_addend, wide) = match x.resid {
        Some(r) if r.dtype() == DType::F32 => (map_out.clone(), r.arg()?),
        Some(r) => (map(r, [64, 64])?, Arg::Null),
        None => (map_out.clone(), Arg::Null),
    };
    let addend = x.accumulate || x.resid.is_some_and(|r| r.dtype() == DType::Bf16);
    let args = [
        map_a,
        map_b,
        map(&a2, [128, 64])?,
        map(&b2, b_tile)?,
        map_addend,
        map_out,
        x.bias.map_or(Ok(Arg::Null), Tensor::arg)?,
        wide,
        Arg::int(n)?,
        Arg::int(m)?,
        Arg::int(k)?,
        // The padding is zeros in both, and products of it would cost.
        Arg::int(x.tail.map_or(0, |t| t.0.rows_cols().1))?,
        Arg::F32(x.alpha),
        Arg::F32(scale / folded),
        Arg::I32(addend as i32),
    ];
    // One block a multiprocessor: shared memory holds no second one.
    let blocks = (n.div_ceil(128) * m.div_ceil(tile)).min(gpu.multiprocessors());
    // SAFETY: the kernel's parameters; the caller checked shapes and alignment, and scratch is freed in the stream's order.
    unsafe { gpu.launch(kernel, Geometry::new(blocks, 384).shared(SHARED), &args) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn tma_carries_whole_lines_of_bf16() {
        let device = Device::emulated();
        let zeros = |dtype, dims: &[usize]| Tensor::zeros_on(&device, "t", dtype, dims).unwrap();
        let bf16 = |rows, cols| zeros(DType::Bf16, &[rows, cols]);
        let (out, a, b) = (bf16(4, 72), bf16(4, 24), bf16(72, 24));
        let (lines, floats) = (bf16(4, 72), zeros(DType::F32, &[4, 72]));
        let (flat, bias) = (zeros(DType::F32, &[73]), zeros(DType::F32, &[72]));
        let shifted = flat.rows(1..73).unwrap();
        let with = |x: Extras| possible(&out, &a, &b, Layout::NT, &x);
        let plain = Extras::default();
        assert!(with(plain) && !possible(&out, &a, &b, Layout::TN, &plain));
        assert!(!possible(&floats, &a, &b, Layout::NT, &plain));
        assert!(!possible(&out, &bf16(4, 20), &bf16(72, 20), Layout::NT, &plain));
        assert!(with(Extras { bias: Some(&bias), resid: Some(&lines), ..plain }));
        assert!(!with(Extras { bias: Some(&shifted), ..plain }));
        assert!(with(Extras { accumulate: true, resid: Some(&floats), ..plain }));
        assert!(!with(Extras { accumulate: true, resid: Some(&lines), ..plain }));
        // b in f32 where columns are few, and no addend.
        let few = |x: Extras| possible(&bf16(4, 16), &a, &zeros(DType::F32, &[16, 24]), Layout::NT, &x);
        assert!(few(plain) && !few(Extras { accumulate: true, ..plain }));
        assert!(!possible(&out, &a, &zeros(DType::F32, &[72, 24]), Layout::NT, &plain));
    }

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
