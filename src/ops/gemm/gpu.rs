//! Matrix products on a GPU: which kernel, and its launch.
use anyhow::{Result, ensure};

use super::{Layout, few_rows, wgmma::FEW};
use crate::{
    device::{Arg, Geometry, Gpu, Kernel},
    ops::{
        checks::check,
        launch::{check_dtype, gpu_of, kernel},
        quantize::Matrix,
        rows::sum_rows,
    },
    tensor::{DType, Tensor, refuse_overlap},
};

/// What happens to a product besides being stored.
#[derive(Clone, Copy, Debug)]
pub struct Extras<'a> {
    /// Factor on the product.
    pub alpha: f32,
    /// out += instead of =.
    pub accumulate: bool,
    /// (M), F32: added to each row.
    pub bias: Option<&'a Tensor>,
    /// Shaped like out: added.
    pub resid: Option<&'a Tensor>,
    /// (a2, b2, scale): more columns of K, `scale` times.
    pub tail: Option<(&'a Tensor, &'a Tensor, f32)>,
}

impl Default for Extras<'_> {
    fn default() -> Self {
        Extras { alpha: 1.0, accumulate: false, bias: None, resid: None, tail: None }
    }
}

/// The kernels of gemm.cu, from the plainest up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// FMA units, f32.
    Fma,
    /// NT of few rows, mma.sync or FMA, a deep ring: reading b is what takes time.
    FewRows,
    /// mma.sync, tiles of 64 x 64: small products.
    Mma64,
    /// mma.sync, tiles of 128 x 128.
    Mma128,
    /// wgmma and TMA, tiles of 128 x 64: Hopper only, for few columns.
    Wgmma64,
    /// wgmma and TMA, tiles of 128 x 128: Hopper only.
    Wgmma128,
    /// wgmma and TMA, tiles of 128 x 256: Hopper only.
    Wgmma,
}

/// The rung for out (n, m) = a b of depth k. `tma`: TMA can carry the operands.
pub fn pick(arch: u32, multiprocessors: usize, a: DType, [n, m, k]: [usize; 3], tma: bool) -> Rung {
    if a == DType::F32 {
        return Rung::Fma;
    }
    let tiles = |cols: usize| n.div_ceil(128) * m.div_ceil(cols);
    let hopper = arch == 90 && tma && n >= 128 && k >= 64;
    if hopper && m <= FEW {
        return Rung::Wgmma64;
    }
    if hopper && m >= 128 {
        // A product takes as long as its waves of tiles. A tile of 128 columns brings fewer products a byte and takes longer than half of one of 256:
        // 0.8 of its rate is assumed, not measured yet.
        let waves = |cols: usize| tiles(cols).div_ceil(multiprocessors.max(1));
        return if waves(256) * 8 <= waves(128) * 5 { Rung::Wgmma } else { Rung::Wgmma128 };
    }
    // Below a wave of large tiles the small ones fill the card better, and where one side is short they waste less.
    if tiles(128) >= 64 && n.min(m) > 64 { Rung::Mma128 } else { Rung::Mma64 }
}

/// The rung that `SDRRL_GEMM` (fma, few, mma64, mma128, wgmma64, wgmma128, wgmma) forces, so that rungs can be compared.
fn forced() -> Option<Rung> {
    match std::env::var("SDRRL_GEMM").ok()?.as_str() {
        "fma" => Some(Rung::Fma),
        "few" => Some(Rung::FewRows),
        "mma64" => Some(Rung::Mma64),
        "mma128" => Some(Rung::Mma128),
        "wgmma64" => Some(Rung::Wgmma64),
        "wgmma128" => Some(Rung::Wgmma128),
        "wgmma" => Some(Rung::Wgmma),
        _ => None,
    }
}

const B_F32: i32 = 1;
const B_BF16: i32 = 2;
const OUT_F32: i32 = 4;
const ACCUMULATE: i32 = 8;
const A_VEC: i32 = 16;
const B_VEC: i32 = 32;
const A2_VEC: i32 = 64;
const B2_VEC: i32 = 128;
const RESID_F32: i32 = 256;
const B2_F32: i32 = 512;

/// (rows of out, columns of out, depth) of a product.
fn sizes(layout: Layout, a: &Tensor, b: &Tensor) -> ([usize; 3], bool) {
    let ((ar, ac), (br, bc)) = (a.rows_cols(), b.rows_cols());
    match layout {
        Layout::NT => ([ar, br, ac], ac == bc),
        Layout::NN => ([ar, bc, ac], ac == br),
        Layout::TN => ([ac, bc, ar], ar == br),
    }
}

/// True if every row of `t` begins at a multiple of 16 bytes.
pub(super) fn aligned(t: &Tensor) -> bool {
    (t.rows_cols().1 * t.dtype().bytes()).is_multiple_of(16) && t.is_aligned(16)
}

/// The GPU arm of every product: out = alpha (a b + scale a2 b2) + bias + resid [+ out]. `None` if the operands are in main memory. Blocks are unpacked
/// first.
pub(crate) fn product<'a>(
    op: &str,
    out: &mut Tensor,
    a: &Tensor,
    b: impl Into<Matrix<'a>>,
    layout: Layout,
    x: Extras,
    rung: Option<Rung>,
) -> Result<Option<()>> {
    Ok(b.into().dense(op, a, |b| dense_product(op, out, a, b, layout, x, rung))?.flatten())
}

fn dense_product(
    op: &str,
    out: &mut Tensor,
    a: &Tensor,
    b: &Tensor,
    layout: Layout,
    x: Extras,
    rung: Option<Rung>,
) -> Result<Option<()>> {
    let Some(gpu) = gpu_of(op, &[out, a, b])? else { return Ok(None) };
    let ([n, m, k], fits) = sizes(layout, a, b);
    check(fits && out.rows_cols() == (n, m), op, &[out, a, b])?;
    refuse_overlap(&[out], &[a, b])?;
    let mut flags = 0;
    let mut set = |on: bool, flag: i32| flags |= if on { flag } else { 0 };
    set(b.dtype() == DType::F32, B_F32);
    set(b.dtype() == DType::Bf16, B_BF16);
    set(out.dtype() == DType::F32, OUT_F32);
    set(x.accumulate, ACCUMULATE);
    set(aligned(a), A_VEC);
    set(aligned(b), B_VEC);
    if let Some(bias) = x.bias {
        check(bias.len() == m, op, &[out, a, b, bias])?;
        check_dtype(op, DType::F32, &[bias])?;
    }
    if let Some(resid) = x.resid {
        check(resid.rows_cols() == (n, m), op, &[out, a, b, resid])?;
        set(resid.dtype() == DType::F32, RESID_F32);
    }
    if let Some((a2, b2, _)) = x.tail {
        let ([n2, m2, _], fits) = sizes(layout, a2, b2);
        check(fits && n2 == n && m2 == m, op, &[out, a, b, a2, b2])?;
        check_dtype(op, a.dtype(), &[a2])?;
        set(aligned(a2), A2_VEC);
        set(b2.dtype() == DType::Bf16 && aligned(b2), B2_VEC);
        set(b2.dtype() == DType::F32, B2_F32);
    }
    if a.dtype() == DType::F32 {
        check_dtype(op, DType::F32, &[out])?;
    }
    let tma = super::wgmma::possible(out, a, b, layout, &x);
    let few = few_rows::takes(layout, a.dtype(), n, x.tail.is_some());
    let picked = match few {
        true => Rung::FewRows,
        false => pick(gpu.arch(), gpu.multiprocessors(), a.dtype(), [n, m, k], tma),
    };
    let rung = match rung.or_else(forced) {
        // A forced rung counts where it can do the product at all.
        Some(Rung::Wgmma128 | Rung::Wgmma) if !tma => picked,
        Some(Rung::Wgmma64) if !tma || m > FEW => picked,
        Some(Rung::FewRows) if !few => picked,
        Some(Rung::Fma) if a.dtype() == DType::F32 => Rung::Fma,
        Some(Rung::Fma) => picked,
        Some(forced) if a.dtype() == DType::Bf16 => forced,
        _ => picked,
    };
    let tile = match rung {
        Rung::Wgmma64 => Some(64),
        Rung::Wgmma128 => Some(128),
        Rung::Wgmma => Some(256),
        _ => None,
    };
    if let Some(tile) = tile {
        return super::wgmma::product(&gpu, out, a, b, layout, &x, tile).map(Some);
    }
    plain_product(&gpu, out, a, b, layout, &x, rung, flags).map(Some)
}

/// Blocks that fill any card, and rows of K that are worth one of their own.
const BLOCKS: usize = 512;
const PART: usize = 256;

/// Parts of K that are summed at once, where few elements are sums over many rows (an adapter's gradients). By shape alone: results must not depend on the
/// card.
fn parts([n, m, k]: [usize; 3]) -> usize {
    let most = (BLOCKS / (n.div_ceil(64) * m.div_ceil(64)).max(1)).min(k / PART);
    // The kernel cuts at multiples of its 32 rows.
    if most < 2 { 1 } else { k.div_ceil(k.div_ceil(most).next_multiple_of(32)) }
}

/// The kernels of gemm.cu; the caller checked the shapes.
fn plain_product(
    gpu: &Gpu,
    out: &mut Tensor,
    a: &Tensor,
    b: &Tensor,
    layout: Layout,
    x: &Extras,
    rung: Rung,
    mut flags: i32,
) -> Result<()> {
    let ([n, m, k], _) = sizes(layout, a, b);
    let depth = x.tail.map_or(0, |(a2, b2, _)| sizes(layout, a2, b2).0[2]);
    let bare = x.tail.is_none() && x.bias.is_none() && x.resid.is_none();
    let sums = bare && flags & (OUT_F32 | ACCUMULATE | B_BF16) == OUT_F32 | ACCUMULATE | B_BF16;
    let parts = if layout == Layout::TN && rung == Rung::Mma64 && sums { parts([n, m, k]) } else { 1 };
    let mut partial = None;
    if parts > 1 {
        partial = Some(Tensor::zeros_on(&out.device(), "partial sums", DType::F32, &[parts, n * m])?);
        flags &= !ACCUMULATE;
    }
    let pointer = |t: Option<&Tensor>| t.map_or(Ok(Arg::Null), Tensor::arg);
    let args = [
        partial.as_ref().unwrap_or(out).arg()?,
        a.arg()?,
        b.arg()?,
        pointer(x.tail.map(|t| t.0))?,
        pointer(x.tail.map(|t| t.1))?,
        pointer(x.bias)?,
        pointer(x.resid)?,
        Arg::int(n)?,
        Arg::int(m)?,
        Arg::int(k)?,
        Arg::int(depth)?,
        Arg::F32(x.alpha),
        Arg::F32(x.tail.map_or(1.0, |t| t.2)),
        Arg::I32(flags),
    ];
    if rung == Rung::FewRows {
        let (kernel, at) = few_rows::launch_of([n, m], [a.dtype(), b.dtype()], gpu.multiprocessors());
        // SAFETY: the parameters of gemm.cu; the caller checked the shapes.
        return unsafe { gpu.launch(kernel, at, &args) };
    }
    launch(gpu, rung, layout, [n, m, parts], &args)?;
    partial.map_or(Ok(()), |partial| sum_rows(out, &partial))
}

/// [`super::gemm`] on a GPU by one rung, where that can do the product: for tests and benches.
pub fn gemm_on(
    out: &mut Tensor,
    a: &Tensor,
    b: &Tensor,
    layout: Layout,
    alpha: f32,
    accumulate: bool,
    rung: Rung,
) -> Result<()> {
    product_on(out, a, b, layout, Extras { alpha, accumulate, ..Extras::default() }, rung)
}

/// The same with everything that may happen to a product.
pub fn product_on(
    out: &mut Tensor,
    a: &Tensor,
    b: &Tensor,
    layout: Layout,
    extras: Extras,
    rung: Rung,
) -> Result<()> {
    ensure!(product("gemm", out, a, b, layout, extras, Some(rung))?.is_some(), "gemm: {a:?} is not on a GPU");
    Ok(())
}

fn launch(gpu: &Gpu, rung: Rung, layout: Layout, [n, m, parts]: [usize; 3], args: &[Arg]) -> Result<()> {
    let (tile, threads) = match rung {
        Rung::Mma128 => (128, 256),
        Rung::Mma64 => (64, 128),
        _ => (64, 256),
    };
    let kernel: Kernel = match (rung, layout) {
        (Rung::Mma128, Layout::NT) => kernel!("gemm", "gemm_nt_128_bf16"),
        (Rung::Mma128, Layout::NN) => kernel!("gemm", "gemm_nn_128_bf16"),
        (Rung::Mma128, Layout::TN) => kernel!("gemm", "gemm_tn_128_bf16"),
        (Rung::Mma64, Layout::NT) => kernel!("gemm", "gemm_nt_64_bf16"),
        (Rung::Mma64, Layout::NN) => kernel!("gemm", "gemm_nn_64_bf16"),
        (Rung::Mma64, Layout::TN) => kernel!("gemm", "gemm_tn_64_bf16"),
        (_, Layout::NT) => kernel!("gemm", "gemm_nt_f32"),
        (_, Layout::NN) => kernel!("gemm", "gemm_nn_f32"),
        (_, Layout::TN) => kernel!("gemm", "gemm_tn_f32"),
    };
    // The ring of gemm.cu: 3 stages of both tiles, 32 deep; rows along M or N are padded by 8 elements.
    let (deep, flat) = (tile * 32, 32 * (tile + 8));
    let stage = match layout {
        Layout::NT => 2 * deep,
        Layout::NN => deep + flat,
        Layout::TN => 2 * flat,
    };
    let shared = if matches!(rung, Rung::Mma64 | Rung::Mma128) { 3 * stage * 2 } else { 0 };
    let at = Geometry::grid([m.div_ceil(tile), n.div_ceil(tile), parts], threads).shared(shared);
    // SAFETY: the parameters of gemm.cu; `product` checked the shapes.
    unsafe { gpu.launch(kernel, at, args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rung_follows_shape_and_architecture() {
        let big = [4096, 4096, 4096];
        assert_eq!(pick(90, 132, DType::F32, big, true), Rung::Fma);
        assert_eq!(pick(90, 132, DType::Bf16, big, true), Rung::Wgmma);
        assert_eq!(pick(90, 132, DType::Bf16, big, false), Rung::Mma128);
        assert_eq!(pick(80, 108, DType::Bf16, big, true), Rung::Mma128);
        assert_eq!(pick(80, 108, DType::Bf16, [64, 4096, 4096], true), Rung::Mma64);
        assert_eq!(pick(90, 132, DType::Bf16, [64, 4096, 4096], true), Rung::Mma64);
    }

    #[test]
    fn the_tile_follows_waves() {
        let tile = |n, m| pick(90, 132, DType::Bf16, [n, m, 4096], true);
        // 128 tiles of 128 x 128 or 64 of 128 x 256: one wave in either case, of which the small ones are shorter.
        assert_eq!(tile(1024, 2048), Rung::Wgmma128);
        // 256 and 128: two waves of small tiles, one of large ones.
        assert_eq!(tile(2048, 2048), Rung::Wgmma);
        // 352 and 176: three waves or two, the second of a third of the card.
        assert_eq!(tile(2816, 2048), Rung::Wgmma128);
        // A language model's shapes: large tiles.
        for m in [4096, 11008, 12288, 22016, 32000] {
            assert_eq!(tile(8192, m), Rung::Wgmma, "{m}");
        }
        // Few columns.
        assert_eq!(tile(8192, 128), Rung::Wgmma128);
        assert_eq!(tile(8192, 16), Rung::Wgmma64);
    }
    #[test]
    fn sums_over_many_rows_go_in_parts() {
        assert_eq!(parts([16, 4096, 8192]), 8);
        assert_eq!(parts([11008, 16, 8192]), 2);
        assert_eq!(parts([4096, 4096, 8192]), 1);
        assert_eq!(parts([16, 4096, 500]), 1);
        // Of 288 rows, the last of 161.
        assert_eq!(parts([8, 8, 1025]), 4);
    }
}
