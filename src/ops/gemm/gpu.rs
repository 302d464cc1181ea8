//! Matrix products on a GPU: which kernel, and its launch.
use anyhow::{Result, ensure};

use super::{Layout, few_rows};
use crate::{
    device::{Arg, Geometry, Gpu, Kernel},
    ops::{
        checks::check,
        launch::{check_dtype, gpu_of, kernel},
    },
    tensor::{DType, Tensor, refuse_overlap},
};

/// What happens to a product besides being stored.
#[derive(Clone, Copy)]
pub(crate) struct Extras<'a> {
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
    /// wgmma and TMA, tiles of 128 x 128: Hopper only.
    Wgmma,
}

/// The rung for out (n, m) = a b of depth k. `plain`: no tail, bias, residual, accumulation, and out in bf16; `aligned`: every row is a multiple of
/// 16 bytes.
pub fn pick(arch: u32, layout: Layout, a: DType, [n, m, k]: [usize; 3], plain: bool, aligned: bool) -> Rung {
    if a == DType::F32 {
        return Rung::Fma;
    }
    let wgmma = arch == 90 && plain && aligned && layout != Layout::TN;
    // Below a wave of large tiles the small ones fill the card better.
    let large = n.div_ceil(128) * m.div_ceil(128) >= 64;
    match (wgmma && n >= 128 && m >= 128 && k >= 64, large) {
        (true, _) => Rung::Wgmma,
        (false, true) => Rung::Mma128,
        (false, false) => Rung::Mma64,
    }
}

/// The rung that `SDRRL_GEMM` (fma, few, mma64, mma128, wgmma) forces, so that rungs can be compared.
fn forced() -> Option<Rung> {
    match std::env::var("SDRRL_GEMM").ok()?.as_str() {
        "fma" => Some(Rung::Fma),
        "few" => Some(Rung::FewRows),
        "mma64" => Some(Rung::Mma64),
        "mma128" => Some(Rung::Mma128),
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

fn aligned(t: &Tensor) -> bool {
    (t.rows_cols().1 * t.dtype().bytes()).is_multiple_of(16) && t.is_aligned(16)
}

/// The GPU arm of every product: out = alpha (a b + scale a2 b2) + bias + resid [+ out]. `None` if the operands are in main memory.
pub(crate) fn product(
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
    let mut depth = 0;
    if let Some((a2, b2, _)) = x.tail {
        let ([n2, m2, k2], fits) = sizes(layout, a2, b2);
        check(fits && n2 == n && m2 == m, op, &[out, a, b, a2, b2])?;
        check_dtype(op, a.dtype(), &[a2])?;
        set(aligned(a2), A2_VEC);
        set(b2.dtype() == DType::Bf16 && aligned(b2), B2_VEC);
        set(b2.dtype() == DType::F32, B2_F32);
        depth = k2;
    }
    if a.dtype() == DType::F32 {
        check_dtype(op, DType::F32, &[out])?;
    }
    let plain = flags & (OUT_F32 | ACCUMULATE | B_F32) == 0
        && x.tail.is_none()
        && x.bias.is_none()
        && x.resid.is_none();
    let all_aligned = aligned(a) && aligned(b) && aligned(out);
    let wanted = rung.or_else(forced);
    let few = few_rows::takes(layout, a.dtype(), n, x.tail.is_some());
    let picked =
        if few { Rung::FewRows } else { pick(gpu.arch(), layout, a.dtype(), [n, m, k], plain, all_aligned) };
    let rung = match wanted {
        // A forced rung counts where it can do the product at all.
        Some(Rung::Wgmma) if !(plain && all_aligned && layout != Layout::TN && a.dtype() == DType::Bf16) => {
            picked
        }
        Some(Rung::Fma) => {
            if a.dtype() == DType::Bf16 {
                picked
            } else {
                Rung::Fma
            }
        }
        Some(Rung::FewRows) if !few => picked,
        Some(forced) if a.dtype() == DType::Bf16 => forced,
        _ => picked,
    };
    if rung == Rung::Wgmma {
        super::wgmma::product(&gpu, out, a, b, layout, x.alpha)?;
        return Ok(Some(()));
    }
    let pointer = |t: Option<&Tensor>| t.map_or(Ok(Arg::Null), Tensor::arg);
    let args = [
        out.arg()?,
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
        // SAFETY: the parameters of gemm.cu; the shapes were checked above.
        unsafe { gpu.launch(kernel, at, &args) }?;
        return Ok(Some(()));
    }
    launch(&gpu, rung, layout, [n, m], &args)?;
    Ok(Some(()))
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
    let extras = Extras { alpha, accumulate, ..Extras::default() };
    ensure!(product("gemm", out, a, b, layout, extras, Some(rung))?.is_some(), "gemm: {a:?} is not on a GPU");
    Ok(())
}

fn launch(gpu: &Gpu, rung: Rung, layout: Layout, [n, m]: [usize; 2], args: &[Arg]) -> Result<()> {
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
    let at = Geometry::grid([m.div_ceil(tile), n.div_ceil(tile), 1], threads).shared(shared);
    // SAFETY: the parameters of gemm.cu; `product` checked the shapes.
    unsafe { gpu.launch(kernel, at, args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rung_follows_shape_and_architecture() {
        let big = [4096, 4096, 4096];
        assert_eq!(pick(90, Layout::NT, DType::F32, big, true, true), Rung::Fma);
        assert_eq!(pick(90, Layout::NT, DType::Bf16, big, true, true), Rung::Wgmma);
        assert_eq!(pick(90, Layout::TN, DType::Bf16, big, true, true), Rung::Mma128);
        assert_eq!(pick(90, Layout::NT, DType::Bf16, big, false, true), Rung::Mma128);
        assert_eq!(pick(90, Layout::NT, DType::Bf16, big, true, false), Rung::Mma128);
        assert_eq!(pick(80, Layout::NT, DType::Bf16, big, true, true), Rung::Mma128);
        assert_eq!(pick(80, Layout::NN, DType::Bf16, [64, 4096, 4096], true, true), Rung::Mma64);
    }
}
