//! DoRA (Liu et al. 2024): a linear layer whose rows are W + s B A, rescaled to a learned magnitude. Beside the products of `lora.rs`: the rows' norms, and
//! the scale of the output's columns, magnitude / norm. The norm is a constant in backward (section 4.3 of the paper), as in PEFT.
#![allow(unsafe_code)]
use anyhow::Result;

use super::{
    checks::check,
    kernels,
    launch::{Grid, gpu_of},
    lora::LowRank,
    parallel::{Shared, for_each_rows, for_each_task, with_scratch},
    rows::sum_rows,
};
use crate::tensor::{DType, Tensor, refuse_overlap};

/// norms (out), F32 = ‖row o of W + s B A‖ for weight (out, in), F32 or Bf16, summed in f64 on the CPU and in f32 on a GPU. W + s B A never exists.
pub fn dora_norms(norms: &mut Tensor, weight: &Tensor, low: LowRank) -> Result<()> {
    const OP: &str = "dora_norms";
    let ((out, inp), r) = (weight.rows_cols(), low.a.shape()[0]);
    let fits = norms.shape() == [out] && low.a.shape() == [r, inp] && low.b.shape() == [out, r];
    check(fits, OP, &[norms, weight, low.a, low.b])?;
    refuse_overlap(&[norms], &[weight, low.a, low.b])?;
    if let Some(gpu) = gpu_of(OP, &[norms, weight, low.a, low.b])? {
        let grid = Grid::tiles([out, 1, 1]);
        // SAFETY: shapes were checked.
        return unsafe {
            kernels::dora_norms(&gpu, grid, norms, weight, low.a, low.b, low.scale, out, inp, r)
        };
    }
    let (a, b) = (low.a.f32()?, low.b.f32()?);
    let row: Box<dyn Fn(usize, &mut [f32]) + Sync + Send> = match weight.dtype() {
        DType::Bf16 => {
            let w = weight.bf16()?;
            Box::new(move |o, to| to.iter_mut().zip(&w[o * inp..]).for_each(|(to, w)| *to = w.to_f32()))
        }
        _ => {
            let w = weight.f32()?;
            Box::new(move |o, to| to.copy_from_slice(&w[o * inp..][..inp]))
        }
    };
    let norms = Shared::new(norms.f32_mut()?);
    for_each_task(out, out.saturating_mul(inp).saturating_mul(r + 2), |o| {
        with_scratch(inp, |merged| {
            let merged = &mut merged[..inp];
            row(o, merged);
            for (a, b) in a.chunks_exact(inp.max(1)).zip(&b[o * r..][..r]) {
                let factor = low.scale * b;
                merged.iter_mut().zip(a).for_each(|(x, a)| *x += factor * a);
            }
            // SAFETY: each task has a norm of its own.
            let norm = unsafe { norms.part(o, 1) };
            norm[0] = merged.iter().map(|&x| x as f64 * x as f64).sum::<f64>().sqrt() as f32;
        });
    });
    Ok(())
}

/// out (N, out), in place: the product x Wᵀ + s u Bᵀ becomes magnitude / norm times it [+ bias]; magnitude, norms, bias (out), F32.
pub fn dora_forward(
    out: &mut Tensor,
    magnitude: &Tensor,
    norms: &Tensor,
    bias: Option<&Tensor>,
) -> Result<()> {
    const OP: &str = "dora_forward";
    let (n, c) = out.rows_cols();
    let mut columns = vec![magnitude, norms];
    columns.extend(bias);
    let all = [&[&*out], &columns[..]].concat();
    check(columns.iter().all(|t| t.len() == c), OP, &all)?;
    refuse_overlap(&[out], &columns)?;
    if let Some(gpu) = gpu_of(OP, &all)? {
        // SAFETY: shapes were checked.
        return unsafe { kernels::dora_scale(&gpu, Grid::new(n), out, magnitude, norms, bias, c) };
    }
    let (gain, bias) = (gains(magnitude, norms)?, bias.map(Tensor::f32).transpose()?);
    let out = Shared::new(out.f32_mut()?);
    for_each_rows(n, c, |block| {
        // SAFETY: blocks of rows do not overlap.
        let rows = unsafe { out.part(block.start * c, block.len() * c) };
        for row in rows.chunks_exact_mut(c) {
            row.iter_mut().zip(&gain).for_each(|(x, g)| *x *= g);
            if let Some(bias) = bias {
                row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
            }
        }
    });
    Ok(())
}

/// dmagnitude (out), F32 += Σ_n dout z / norm, and dout (N, out), in place, becomes the gradient of the product z (N, out) = x Wᵀ + s u Bᵀ that
/// [`dora_forward`] was given: magnitude / norm times it.
pub fn dora_backward(
    dout: &mut Tensor,
    dmagnitude: &mut Tensor,
    z: &Tensor,
    magnitude: &Tensor,
    norms: &Tensor,
) -> Result<()> {
    const OP: &str = "dora_backward";
    let (n, c) = dout.rows_cols();
    let fits = z.rows_cols() == (n, c) && [&*dmagnitude, magnitude, norms].iter().all(|t| t.len() == c);
    check(fits, OP, &[dout, dmagnitude, z, magnitude, norms])?;
    refuse_overlap(&[dout, dmagnitude], &[z, magnitude, norms])?;
    if let Some(gpu) = gpu_of(OP, &[dout, dmagnitude, z, magnitude, norms])? {
        let blocks = n.div_ceil(kernels::dora_rows());
        let mut partial = Tensor::scratch_on(&dout.device(), "dora_partial", DType::F32, &[blocks, c])?;
        let grid = Grid::tiles([n, c, 1]);
        // SAFETY: shapes were checked, and `partial` has a row for each block of rows.
        unsafe { kernels::dora_backward(&gpu, grid, dout, &mut partial, z, magnitude, norms, n, c)? };
        return sum_rows(dmagnitude, &partial);
    }
    let gain = gains(magnitude, norms)?;
    let (z, norms) = (z.f32()?, norms.f32()?);
    let (dout, dmagnitude) = (Shared::new(dout.f32_mut()?), Shared::new(dmagnitude.f32_mut()?));
    // Strips of columns: each adds its rows in order, whatever the number of threads.
    const STRIP: usize = 64;
    for_each_task(c.div_ceil(STRIP), n * c * 2, |strip| {
        let first = strip * STRIP;
        let width = STRIP.min(c - first);
        // SAFETY: these columns belong to this strip.
        let dmagnitude = unsafe { dmagnitude.part(first, width) };
        for i in 0..n {
            let at = i * c + first;
            // SAFETY: as above.
            let dout = unsafe { dout.part(at, width) };
            for o in 0..width {
                dmagnitude[o] += dout[o] * z[at + o] / norms[first + o];
                dout[o] *= gain[first + o];
            }
        }
    });
    Ok(())
}

/// magnitude / norm
fn gains(magnitude: &Tensor, norms: &Tensor) -> Result<Vec<f32>> {
    Ok(magnitude.f32()?.iter().zip(norms.f32()?).map(|(m, n)| m / n).collect())
}

/// The naive oracle, in f64.
pub mod reference {
    /// ‖row o of weight (o, i) + scale b (o, r) a (r, i)‖.
    pub fn norms(weight: &[f64], a: &[f64], b: &[f64], scale: f64, [i, o, r]: [usize; 3]) -> Vec<f64> {
        let element = |j: usize, c: usize| {
            weight[j * i + c] + scale * (0..r).map(|k| b[j * r + k] * a[k * i + c]).sum::<f64>()
        };
        (0..o).map(|j| (0..i).map(|c| element(j, c).powi(2)).sum::<f64>().sqrt()).collect()
    }
    /// z (n, o) = magnitude / norm times it + bias.
    pub fn forward(z: &mut [f64], magnitude: &[f64], norms: &[f64], bias: &[f64]) {
        for row in z.chunks_exact_mut(norms.len()) {
            (0..norms.len()).for_each(|j| row[j] = row[j] * magnitude[j] / norms[j] + bias[j]);
        }
    }
    /// dmagnitude +=, dout in place.
    pub fn backward(dout: &mut [f64], dmagnitude: &mut [f64], z: &[f64], magnitude: &[f64], norms: &[f64]) {
        let c = norms.len();
        for (i, d) in dout.iter_mut().enumerate() {
            let j = i % c;
            dmagnitude[j] += *d * z[i] / norms[j];
            *d *= magnitude[j] / norms[j];
        }
    }
}
