//! Matrix products: out = alpha a b [+ bias] [+ out]. On the CPU activations are f32, weights f32 or bf16 (widened, so that activations are
//! never rounded); on a GPU a product has the type of its activations (a), with f32 accumulation. Results depend neither on the thread count nor, for [`Layout::NT`], on how many rows there are
//! (on a GPU: below 128 of them; from there on Hopper's wgmma may add up in another order).
#![allow(unsafe_code)]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) mod amx;
mod dot;
pub mod gpu;
mod int8;
mod outer;
pub mod plan;
pub mod reference;
mod rows;
mod tile;
mod wgmma;

/// Whether products with bf16 weights run on the processor's tile unit (Intel AMX); the environment variable SDRRL_AMX=0 turns it off.
pub fn uses_tile_unit() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return amx::available();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

use std::cell::Cell;

use anyhow::Result;

use crate::{
    ops::{
        checks::check,
        parallel::{Shared, for_each_in_runs, for_each_task},
        quantize::Matrix,
        rows::{add, sum_rows},
        simd,
    },
    tensor::{Activations, DType, Tensor, refuse_overlap},
};
use dot::{DEEP, DEEP_COLS, DotBlock, Epilogue, FEW_ROWS};
use gpu::product;
use outer::{OuterBlock, STRIP};
use plan::Extras;
use rows::{Weight, call_number, weight};

/// How the operands of [`gemm`] lie in memory; out is (N, M) always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// a (N, K), b (M, K): the forward pass of a linear layer.
    NT,
    /// a (N, K), b (K, M): the gradient of its input.
    NN,
    /// a (K, N), b (K, M): the gradient of its weight.
    TN,
}

/// Rows of `a` that one task takes; a block of 64 rows of K = 1536 stays in the second-level cache.
const ROW_BLOCK: usize = 60;
/// Elements of the weight that one task takes.
const WEIGHT_BLOCK: usize = 1 << 15;

/// out (N, M) = alpha * a b, `+=` with `accumulate`; see [`Layout`]. b is F32 or Bf16; on the CPU a and out are F32, on a GPU a may be Bf16, and
/// out then either.
pub fn gemm<'a>(
    out: &mut Tensor,
    a: &Tensor,
    b: impl Into<Matrix<'a>>,
    layout: Layout,
    alpha: f32,
    accumulate: bool,
) -> Result<()> {
    gemm_matrix(out, a, b.into(), layout, alpha, accumulate)
}

fn gemm_matrix(
    out: &mut Tensor,
    a: &Tensor,
    b: Matrix,
    layout: Layout,
    alpha: f32,
    accumulate: bool,
) -> Result<()> {
    let extras = Extras { alpha, accumulate, ..Extras::default() };
    if product("gemm", out, a, b, layout, extras, None)?.is_some() {
        return Ok(());
    }
    match layout {
        Layout::NT
            if (1..STRIP).contains(&a.rows_cols().1)
                && b.dtype() == DType::F32
                && b.activations() == Activations::F32 =>
        {
            match b {
                Matrix::Dense(b) => short_product(out, a, b, alpha, accumulate),
                Matrix::Blocks(b) => short_product(out, a, &b.to_dense(DType::F32)?, alpha, accumulate),
            }
        }
        Layout::NT => dot_product(&mut [out], a, &[b], Epilogue { alpha, accumulate, bias: None }, false),
        Layout::NN | Layout::TN => outer_product(out, a, b, layout == Layout::TN, alpha, accumulate),
    }
}

/// out (N, M) = inp (N, K) weightᵀ (M, K) [+ bias (M)]
pub fn linear_forward<'a>(
    out: &mut Tensor,
    inp: &Tensor,
    weight: impl Into<Matrix<'a>>,
    bias: Option<&Tensor>,
) -> Result<()> {
    linear(out, inp, weight.into(), bias, 1.0, false)
}

/// As [`linear_forward`], fast for many rows: for training and scoring. On a tile unit the last bits of f32 products differ from
/// [`linear_forward`]'s; rows depend on nothing but themselves in either.
pub fn linear_forward_many_rows<'a>(
    out: &mut Tensor,
    inp: &Tensor,
    weight: impl Into<Matrix<'a>>,
    bias: Option<&Tensor>,
) -> Result<()> {
    linear(out, inp, weight.into(), bias, 1.0, true)
}

/// out (N, M) = alpha inp (N, K) weightᵀ (M, K), with the products of [`linear_forward_many_rows`].
pub(super) fn scaled_linear_forward(
    out: &mut Tensor,
    inp: &Tensor,
    weight: Matrix,
    alpha: f32,
) -> Result<()> {
    linear(out, inp, weight, None, alpha, true)
}

fn linear(
    out: &mut Tensor,
    inp: &Tensor,
    weight: Matrix,
    bias: Option<&Tensor>,
    alpha: f32,
    many: bool,
) -> Result<()> {
    let extras = Extras { bias, alpha, ..Extras::default() };
    if product("linear_forward", out, inp, weight, Layout::NT, extras, None)?.is_some() {
        return Ok(());
    }
    let bias = match bias {
        Some(t) => {
            weight.check(t.len() == weight.shape()[0], "linear_forward", &[out, inp, t])?;
            refuse_overlap(&[out], &[t])?;
            Some(t.f32()?)
        }
        None => None,
    };
    dot_product(&mut [out], inp, &[weight], Epilogue { alpha, accumulate: false, bias }, many)
}

/// out (N, M) = inp (N, K) weightᵀ (M, K) [+ bias (M)] + resid (N, M): a layer that ends in a residual addition. On a GPU the addition is the product's
/// epilogue.
pub fn linear_add_forward<'a>(
    out: &mut Tensor,
    inp: &Tensor,
    weight: impl Into<Matrix<'a>>,
    bias: Option<&Tensor>,
    resid: &Tensor,
) -> Result<()> {
    let weight = weight.into();
    weight.check(out.rows_cols() == resid.rows_cols(), "linear_add_forward", &[out, inp, resid])?;
    refuse_overlap(&[out], &[resid])?;
    let extras = Extras { bias, resid: Some(resid), ..Extras::default() };
    if product("linear_add_forward", out, inp, weight, Layout::NT, extras, None)?.is_some() {
        return Ok(());
    }
    linear(out, inp, weight, bias, 1.0, true)?;
    add(out, resid)
}

/// Several layers of one input, in one dispatch: `outs[i]` (N, M_i) = inp (N, K) `weights[i]`ᵀ (M_i, K)
pub fn linear_forward_many<'a, M: Into<Matrix<'a>> + Copy>(
    outs: &mut [&mut Tensor],
    inp: &Tensor,
    weights: &[M],
) -> Result<()> {
    let weights: Vec<Matrix> = weights.iter().map(|&w| w.into()).collect();
    if inp.gpu().is_some() {
        return outs.iter_mut().zip(weights).try_for_each(|(out, w)| linear(out, inp, w, None, 1.0, false));
    }
    dot_product(outs, inp, &weights, Epilogue { alpha: 1.0, accumulate: false, bias: None }, false)
}

/// dinp (N, K) = (or, with `accumulate`, +=) dout (N, M) weight (M, K)
pub fn linear_backward_input<'a>(
    dinp: &mut Tensor,
    dout: &Tensor,
    weight: impl Into<Matrix<'a>>,
    accumulate: bool,
) -> Result<()> {
    gemm(dinp, dout, weight, Layout::NN, 1.0, accumulate)
}

/// dweight (M, K) += doutᵀ (M, N) inp (N, K); dbias (M) += the column sums of dout
pub fn linear_backward_weight(
    dweight: &mut Tensor,
    dbias: Option<&mut Tensor>,
    dout: &Tensor,
    inp: &Tensor,
) -> Result<()> {
    gemm(dweight, dout, inp, Layout::TN, 1.0, true)?;
    let Some(dbias) = dbias else { return Ok(()) };
    if dout.gpu().is_some() {
        return sum_rows(dbias, dout);
    }
    let (_, m) = dout.rows_cols();
    check(dbias.len() == m, "linear_backward_weight", &[dbias, dout])?;
    refuse_overlap(&[dbias], &[dout])?;
    let (sums, dout) = (dbias.f32_mut()?, dout.f32()?);
    for row in dout.chunks_exact(m.max(1)) {
        sums.iter_mut().zip(row).for_each(|(s, x)| *s += x);
    }
    Ok(())
}

/// `many`: on a tile unit f32 weights are split too, which pays for many rows and costs for few.
fn dot_product(
    outs: &mut [&mut Tensor],
    a: &Tensor,
    weights: &[Matrix],
    epilogue: Epilogue,
    many: bool,
) -> Result<()> {
    let (n, k) = a.rows_cols();
    let mut tasks = vec![];
    for (out, w) in outs.iter().zip(weights) {
        let fits = w.shape().len() == 2 && w.shape()[1] == k && out.rows_cols() == (n, w.shape()[0]);
        w.check(fits && outs.len() == weights.len(), "linear_forward", &[out, a])?;
        refuse_overlap(&[out], &[a])?;
        w.refuse_overlap(&[out])?;
    }
    refuse_overlap(&outs.iter().map(|out| &**out).collect::<Vec<_>>(), &[])?;
    if n == 0 {
        return Ok(());
    }
    let in_integers = weights.iter().filter(|w| w.activations() == Activations::Int8).count();
    if in_integers == weights.len() {
        return int8::product(outs, a, weights, epilogue);
    } else if in_integers > 0 {
        let each = outs.iter_mut().zip(weights);
        return each.into_iter().try_for_each(|(out, w)| dot_product(&mut [out], a, &[*w], epilogue, many));
    }
    let cols = if k > DEEP && n > FEW_ROWS {
        DEEP_COLS
    } else {
        (WEIGHT_BLOCK / k.max(1)).max(4).next_multiple_of(4)
    };
    let mut parts = Vec::with_capacity(outs.len());
    for (which, (out, w)) in outs.iter_mut().zip(weights).enumerate() {
        let m = w.shape()[0];
        for j in (0..m).step_by(cols) {
            for i in (0..n).step_by(ROW_BLOCK) {
                tasks.push((which, i..(i + ROW_BLOCK).min(n), j..(j + cols).min(m)));
            }
        }
        parts.push((Shared::new(out.f32_mut()?), weight(w)?, m));
    }
    let a = a.f32()?;
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if amx::available() && k > 0 && (many || parts.iter().all(|p| p.1.is_bf16())) {
        let parts: Vec<amx::Part> = parts.iter().map(|&(out, w, m)| amx::Part { out, w, m }).collect();
        amx::dot_product(&parts, a, n, k, epilogue);
        return Ok(());
    }
    let work = n * k * parts.iter().map(|p| p.2).sum::<usize>();
    let call = call_number();
    for_each_in_runs(tasks.len(), work, |t| {
        let (which, rows, cols) = tasks[t].clone();
        let (out, w, m) = parts[which];
        // A thread's next task is most often about other rows of `a` and the same ones of `w`.
        let w = w.rows(cols.clone(), k, Some((call, which, cols.start)));
        simd::run(DotBlock { out, a, w: w.weight(), rows, cols, k, m, epilogue });
    });
    Ok(())
}

fn outer_product(
    out: &mut Tensor,
    a: &Tensor,
    b: Matrix,
    transposed: bool,
    alpha: f32,
    accumulate: bool,
) -> Result<()> {
    let (rows, cols) = a.rows_cols();
    let (n, k) = if transposed { (cols, rows) } else { (rows, cols) };
    let (depth, m) = b.rows_cols();
    let fits = depth == k && out.rows_cols() == (n, m) && !(transposed && matches!(b, Matrix::Blocks(_)));
    b.check(fits, "gemm", &[out, a])?;
    refuse_overlap(&[out], &[a])?;
    b.refuse_overlap(&[out])?;
    if k == 0 {
        if !accumulate {
            out.f32_mut()?.fill(0.0);
        }
        return Ok(());
    }
    let (a, b) = (a.f32()?, weight(&b)?);
    let a_strides = if transposed { (1, n) } else { (k, 1) };
    let out = Shared::new(out.f32_mut()?);
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        // Splitting f32 weights pays for whole panels and many rows.
        let pays = b.is_bf16() || (m >= 64 && n >= 64 && k >= 64);
        if !transposed && pays && amx::available() {
            amx::outer_product(amx::Part { out, w: b, m }, a, n, k, alpha, accumulate);
            return Ok(());
        }
    }
    let shape = [n, m, k];
    // Few columns fill no register: the product's transpose has them as rows.
    if let (true, true, Weight::F32(b)) = (transposed, m < STRIP && n > STRIP, b) {
        few_columns(out, a, b, shape, alpha, accumulate);
        return Ok(());
    }
    if let Weight::Blocks(_) = b {
        // As many rows at a time as are packed at a time: the same sums in the same order.
        for start in (0..k).step_by(outer::DEPTH) {
            let depth = outer::DEPTH.min(k - start);
            let rows = b.shared_rows(start..start + depth, m);
            let (a, accumulate) = (&a[start..], accumulate || start > 0);
            outer_blocks(out, a, a_strides, rows.weight(), [n, m, depth], alpha, accumulate);
        }
        return Ok(());
    }
    outer_blocks(out, a, a_strides, b, shape, alpha, accumulate);
    Ok(())
}

/// out (N, M) = (or +=) alpha aᵀ b by way of its transpose, for an M that fills no register; a (K, N), b (K, M).
fn few_columns(out: Shared, a: &[f32], b: &[f32], [n, m, k]: [usize; 3], alpha: f32, accumulate: bool) {
    with_transposed(n * m, |turned| {
        outer_blocks(Shared::new(turned), b, (1, m), Weight::F32(a), [m, n, k], alpha, false);
        // SAFETY: no task is running.
        let out = unsafe { out.part(0, n * m) };
        for (i, row) in out.chunks_exact_mut(m).enumerate() {
            row.iter_mut().enumerate().for_each(|(j, o)| {
                *o = turned[j * n + i] + if accumulate { *o } else { 0.0 };
            });
        }
    });
}

/// out (N, M) = alpha * a b in blocks; a (i, p) lies at i, p times `a_strides`.
fn outer_blocks(
    out: Shared,
    a: &[f32],
    a_strides: (usize, usize),
    b: Weight,
    [n, m, k]: [usize; 3],
    alpha: f32,
    accumulate: bool,
) {
    // A strip is packed once a task: few, tall tasks, but enough of them for the threads.
    let strips = m.div_ceil(STRIP);
    let block =
        if strips >= 8 { n.max(1) } else { n.div_ceil(8usize.div_ceil(strips.max(1))).next_multiple_of(8) };
    let blocks = n.div_ceil(block);
    for_each_task(strips * blocks, n * m * k, |t| {
        let (strip, i) = (t / blocks, t % blocks * block);
        let rows = i..(i + block).min(n);
        simd::run(OuterBlock { out, a, a_strides, b, rows, strip, k, m, alpha, accumulate });
    });
}

/// Calls `f` with `len` floats that this thread keeps for transposed operands.
fn with_transposed<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    thread_local!(static TRANSPOSED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) });
    let mut kept = TRANSPOSED.take();
    kept.resize(kept.len().max(len), 0.0);
    let result = f(&mut kept[..len]);
    TRANSPOSED.set(kept);
    result
}

/// out (N, M) = alpha a (N, K) bᵀ (M, K) [+ out] where K is so short that dot products do not fill a register: bᵀ is written out.
fn short_product(out: &mut Tensor, a: &Tensor, b: &Tensor, alpha: f32, accumulate: bool) -> Result<()> {
    let ((n, k), (m, depth)) = (a.rows_cols(), b.rows_cols());
    check(depth == k && out.rows_cols() == (n, m), "gemm", &[out, a, b])?;
    refuse_overlap(&[out], &[a, b])?;
    let (a, b) = (a.f32()?, b.f32()?);
    let out = Shared::new(out.f32_mut()?);
    with_transposed(m * k, |turned| {
        for (j, row) in b.chunks_exact(k).enumerate() {
            row.iter().enumerate().for_each(|(p, x)| turned[p * m + j] = *x);
        }
        outer_blocks(out, a, (k, 1), Weight::F32(turned), [n, m, k], alpha, accumulate);
    });
    Ok(())
}
