//! Dropout (Srivastava et al. 2014) of the input of a low-rank update, as PEFT's `lora_dropout`: m x with m = 1 / (1 - p) for what is kept, 0 for the rest.
//!
//! Whether an element is kept is a function of (seed, step, linear, document, position, column) alone: no batch, packing, thread count or device changes it, and
//! backward draws the same mask again instead of storing it.
#![allow(unsafe_code)]
use anyhow::{Result, ensure};

use super::{
    checks::check,
    kernels,
    launch::{Grid, check_dtype, gpu_of},
    parallel::{Shared, for_each_rows},
    sampling::philox,
};
use crate::tensor::{DType, Tensor, refuse_overlap};

/// Columns that one draw of Philox decides.
const DRAW: usize = 4;

/// Fourth word of the counter that makes a linear's key, so that no other use of the seed draws the same ("drop").
const PURPOSE: u32 = 0x6472_6f70;

/// Which elements of (N, C) are kept.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// (N, 2) U32: the document of each row, and its position there.
    pub rows: &'a Tensor,
    /// [`key`] of the seed, step and linear.
    pub key: u64,
    /// p: the share that is dropped, from 0 to below 1.
    pub rate: f64,
}

/// What of the input is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// m x
    Kept,
    /// x - m x
    Rest,
}

/// The key of `linear`'s masks in optimizer step `step` (from 1) of a training with `seed`.
pub fn key(seed: u64, step: u64, linear: u32) -> u64 {
    let [low, high, ..] = philox([step as u32, (step >> 32) as u32, linear, PURPOSE], seed);
    u64::from(high) << 32 | u64::from(low)
}

impl Mask<'_> {
    /// What an element must draw at least to be kept: round(p 2^32).
    fn least(&self) -> u32 {
        (self.rate * 4_294_967_296.0).round().min(f64::from(u32::MAX)) as u32
    }

    /// 1 / (1 - p)
    fn scale(&self) -> f32 {
        (1.0 / (1.0 - self.rate)) as f32
    }
}

/// out (N, C) = that part of inp (N, C).
pub fn dropout_forward(out: &mut Tensor, inp: &Tensor, mask: Mask, part: Part) -> Result<()> {
    run("dropout_forward", out, inp, mask, part, false)
}

/// dinp (N, C) += that part of dout (N, C): the gradient of [`dropout_forward`].
pub fn dropout_backward(dinp: &mut Tensor, dout: &Tensor, mask: Mask, part: Part) -> Result<()> {
    run("dropout_backward", dinp, dout, mask, part, true)
}

fn run(op: &'static str, out: &mut Tensor, inp: &Tensor, mask: Mask, part: Part, add: bool) -> Result<()> {
    let (n, cols) = inp.rows_cols();
    check(out.rows_cols() == (n, cols) && mask.rows.len() == 2 * n, op, &[out, inp, mask.rows])?;
    check_dtype(op, inp.dtype(), &[out])?;
    check_dtype(op, DType::U32, &[mask.rows])?;
    refuse_overlap(&[out], &[inp, mask.rows])?;
    ensure!((0.0..1.0).contains(&mask.rate), "{op}: a share of {} cannot be dropped", mask.rate);
    let (least, scale) = (mask.least(), mask.scale());
    if let Some(gpu) = gpu_of(op, &[out, inp, mask.rows])? {
        let grid = Grid::covering(n * cols.div_ceil(kernels::dropout_draw()));
        let (rest, add) = ((part == Part::Rest) as usize, add as usize);
        // SAFETY: shapes were checked.
        return unsafe {
            kernels::dropout(&gpu, grid, out, inp, mask.rows, n, cols, mask.key, least, scale, rest, add)
        };
    }
    let (rows, inp) = (mask.rows.u32()?, inp.f32()?);
    let out = Shared::new(out.f32_mut()?);
    for_each_rows(n, cols * 8, |block| {
        for r in block {
            // SAFETY: each row is one task's.
            let out = unsafe { out.part(r * cols, cols) };
            let inp = &inp[r * cols..][..cols];
            for (i, (out, inp)) in out.chunks_mut(DRAW).zip(inp.chunks(DRAW)).enumerate() {
                let drawn = philox([i as u32, rows[2 * r + 1], rows[2 * r], 0], mask.key);
                for ((out, &x), drawn) in out.iter_mut().zip(inp).zip(drawn) {
                    let kept = if drawn >= least { x * scale } else { 0.0 };
                    let y = if part == Part::Kept { kept } else { x - kept };
                    *out = if add { *out + y } else { y };
                }
            }
        }
    });
    Ok(())
}

/// The naive oracle, in f64.
pub mod reference {
    use super::super::sampling::philox;

    /// m of one element: `row` is its document and position.
    pub fn factor(key: u64, rate: f64, row: [u32; 2], column: usize) -> f64 {
        let drawn = philox([column as u32 / 4, row[1], row[0], 0], key)[column % 4];
        if f64::from(drawn) >= (rate * 2f64.powi(32)).round() { 1.0 / (1.0 - rate) } else { 0.0 }
    }
}
