//! Matrix products on a GPU: checks, and the launches of gemm.cu.
use anyhow::{Result, ensure};

use super::{
    Layout,
    plan::{self, Extras, Few, Rung, Shape, aligned, parts, tma_carries},
    wgmma,
};
use crate::{
    device::Gpu,
    ops::{
        checks::check,
        kernels,
        launch::{Grid, check_dtype, gpu_of},
        quantize::Matrix,
        rows::sum_rows,
    },
    tensor::{DType, Tensor, refuse_overlap},
};

/// (rows of out, columns of out, depth) of a product.
fn sizes(layout: Layout, a: &Tensor, b: &Tensor) -> ([usize; 3], bool) {
    let ((ar, ac), (br, bc)) = (a.rows_cols(), b.rows_cols());
    match layout {
        Layout::NT => ([ar, br, ac], ac == bc),
        Layout::NN => ([ar, bc, ac], ac == br),
        Layout::TN => ([ac, bc, ar], ar == br),
    }
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
    let mut set = |on: bool, flag: usize| flags |= if on { flag } else { 0 };
    set(b.dtype() == DType::F32, kernels::gemm_b_f32());
    set(b.dtype() == DType::Bf16, kernels::gemm_b_bf16());
    set(out.dtype() == DType::F32, kernels::gemm_out_f32());
    set(x.accumulate, kernels::gemm_accumulate());
    set(aligned(a), kernels::gemm_a_vec());
    set(aligned(b), kernels::gemm_b_vec());
    if let Some(bias) = x.bias {
        check(bias.len() == m, op, &[out, a, b, bias])?;
        check_dtype(op, DType::F32, &[bias])?;
    }
    if let Some(resid) = x.resid {
        check(resid.rows_cols() == (n, m), op, &[out, a, b, resid])?;
        set(resid.dtype() == DType::F32, kernels::gemm_resid_f32());
    }
    if let Some((a2, b2, _)) = x.tail {
        let ([n2, m2, _], fits) = sizes(layout, a2, b2);
        check(fits && n2 == n && m2 == m, op, &[out, a, b, a2, b2])?;
        check_dtype(op, a.dtype(), &[a2])?;
        set(aligned(a2), kernels::gemm_a2_vec());
        set(b2.dtype() == DType::Bf16 && aligned(b2), kernels::gemm_b2_vec());
        set(b2.dtype() == DType::F32, kernels::gemm_b2_f32());
    }
    if a.dtype() == DType::F32 {
        check_dtype(op, DType::F32, &[out])?;
    }
    let shape = Shape {
        layout,
        a: a.dtype(),
        sizes: [n, m, k],
        tma: tma_carries(out, a, b, layout, &x),
        tail: x.tail.is_some(),
    };
    let rung = plan::rung(gpu.arch(), gpu.multiprocessors(), shape, rung.or_else(Rung::forced));
    if let Some(tile) = rung.hopper_columns() {
        return wgmma::product(&gpu, out, a, b, layout, &x, tile).map(Some);
    }
    plain_product(&gpu, out, a, b, layout, &x, rung, flags).map(Some)
}

/// A launch function of gemm.cu: all of its kernels have the same parameters.
type Launch = unsafe fn(
    &Gpu,
    Grid,
    &mut Tensor,
    &Tensor,
    &Tensor,
    Option<&Tensor>,
    Option<&Tensor>,
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

/// The kernels of gemm.cu; the caller checked the shapes.
fn plain_product(
    gpu: &Gpu,
    out: &mut Tensor,
    a: &Tensor,
    b: &Tensor,
    layout: Layout,
    x: &Extras,
    rung: Rung,
    mut flags: usize,
) -> Result<()> {
    let ([n, m, k], _) = sizes(layout, a, b);
    let depth = x.tail.map_or(0, |(a2, b2, _)| sizes(layout, a2, b2).0[2]);
    let bare = x.tail.is_none() && x.bias.is_none() && x.resid.is_none();
    let into_f32 = kernels::gemm_out_f32() | kernels::gemm_accumulate() | kernels::gemm_b_bf16();
    let sums = bare && flags & into_f32 == into_f32;
    let parts = if layout == Layout::TN && rung == Rung::Mma64 && sums { parts([n, m, k]) } else { 1 };
    let mut partial = None;
    if parts > 1 {
        partial = Some(Tensor::scratch_on(&out.device(), "partial sums", DType::F32, &[parts, n * m])?);
        flags &= !kernels::gemm_accumulate();
    }
    let (launch, grid) = match rung {
        Rung::FewRows => few_rows([n, m], [a.dtype(), b.dtype()], gpu.multiprocessors()),
        _ => tiled(rung, layout, [n, m, parts]),
    };
    let (a2, b2) = (x.tail.map(|t| t.0), x.tail.map(|t| t.1));
    let (sums, tail_scale) = (partial.as_mut().unwrap_or(&mut *out), x.tail.map_or(1.0, |t| t.2));
    // SAFETY: the caller checked the shapes.
    unsafe {
        launch(gpu, grid, sums, a, b, a2, b2, x.bias, x.resid, n, m, k, depth, x.alpha, tail_scale, flags)?;
    }
    partial.map_or(Ok(()), |partial| sum_rows(out, &partial))
}

fn few_rows([n, m]: [usize; 2], types: [DType; 2], multiprocessors: usize) -> (Launch, Grid) {
    let launch: Launch = match Few::of([n, m], types, multiprocessors) {
        Few::F32 => kernels::gemm_few_f32,
        Few::F32Bf16 => kernels::gemm_few_f32_bf16,
        Few::Rows64 => kernels::gemm_few_64x32_bf16,
        Few::Wide => kernels::gemm_few_16x32_bf16,
        Few::Narrow => kernels::gemm_few_16x8_bf16,
    };
    (launch, Grid::tiles([m, n, 1]))
}

fn tiled(rung: Rung, layout: Layout, [n, m, parts]: [usize; 3]) -> (Launch, Grid) {
    let launch: Launch = match (rung, layout) {
        (Rung::Mma128, Layout::NT) => kernels::gemm_nt_128_bf16,
        (Rung::Mma128, Layout::NN) => kernels::gemm_nn_128_bf16,
        (Rung::Mma128, Layout::TN) => kernels::gemm_tn_128_bf16,
        (Rung::Mma64, Layout::NT) => kernels::gemm_nt_64_bf16,
        (Rung::Mma64, Layout::NN) => kernels::gemm_nn_64_bf16,
        (Rung::Mma64, Layout::TN) => kernels::gemm_tn_64_bf16,
        (_, Layout::NT) => kernels::gemm_nt_f32,
        (_, Layout::NN) => kernels::gemm_nn_f32,
        (_, Layout::TN) => kernels::gemm_tn_f32,
    };
    (launch, Grid::tiles([m, n, parts]))
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
