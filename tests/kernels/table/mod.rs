//! The table of kernels' cases: op, shapes, work, and how to make it. The tests check every row on the emulated GPU, `benches/kernels.rs` times them on a
//! real one, and `scripts/peer_kernels.py` takes their shapes from that bench. To add an op: a file here, and its name in the list below.
//!
//! Shapes are LLaMA-2-7B's (C 4096, F 11008, V 32000, 32 heads of 128) for 8192 packed tokens, SmolLM2-135M's (C 576, F 1536, V 49152), NLLB's vocabulary,
//! or what their steps do.
#![allow(dead_code)]
use anyhow::{Result, ensure};
use sdrrl::{
    device::Device,
    tensor::DType::{self, Bf16, F32},
};

mod cases;
mod world;
pub use cases::{Case, case};
pub use world::World;

/// Declares rows by the names of their ops, and a test for each: `rows! { op { names: "N C", .. } }`; a field that is not given is [`Row::BASE`]'s.
macro_rules! rows {
    ($($op:ident { $($field:ident: $value:expr),* $(,)? })*) => {
        /// The rows of this file.
        // A row may say everything.
        #[allow(clippy::needless_update)]
        pub const ROWS: &[Row] = &[$(Row { op: stringify!($op), $($field: $value,)* ..Row::BASE }),*];

        mod checks {
            $(
                #[test]
                fn $op() {
                    crate::kernels::check_rows(super::ROWS, stringify!($op));
                }
            )*
        }
    };
}

/// Lists the files of rows.
macro_rules! table {
    ($($file:ident),* $(,)?) => {
        $(pub mod $file;)*
        /// Every row.
        pub fn rows() -> impl Iterator<Item = &'static Row> {
            [$($file::ROWS),*].into_iter().flatten()
        }
    };
}

table! {
    rowwise,
    layernorm,
    rows_of_tensors,
    products,
    attention,
    training,
    choosing,
    quantize,
    mix,
    experts,
    gemma,
    dora,
    dropout,
    optimizers,
    casts,
    kl_divergence,
    top_k_divergence,
    segment_mean,
}

/// One row of the table.
pub struct Row {
    /// The op.
    pub op: &'static str,
    /// What the dimensions are.
    pub names: &'static str,
    /// Dimensions and types that are timed.
    pub measured: &'static [(&'static [usize], &'static [DType])],
    /// Dimensions that are checked, here and against PyTorch's side.
    pub checked: &'static [&'static [usize]],
    /// Types of activations and weights that are checked.
    pub dtypes: &'static [DType],
    /// What bounds it, and how much of it.
    pub work: fn(&[usize], DType) -> Work,
    /// True if the first rows of the results depend on no others: the first dimension counts them.
    pub rows_alone: bool,
    /// True if the results are the CPU's to the bit.
    pub exact: bool,
    /// Inputs and the call.
    pub make: fn(&World, &[usize]) -> Result<Case>,
}

/// What a row is bound by.
pub enum Work {
    /// Bytes that must move.
    Bytes(f64),
    /// Multiplications and additions.
    Flop(f64),
}

/// So many elements that move.
pub fn elements(n: usize, t: DType) -> Work {
    Work::Bytes((n * t.bytes()) as f64)
}

/// `factor` times the product of `dims`.
pub fn flop(factor: f64, dims: &[usize]) -> Work {
    Work::Flop(factor * dims.iter().map(|&d| d as f64).product::<f64>())
}

pub const BF16: &[DType] = &[Bf16];
pub const BOTH: &[DType] = &[Bf16, F32];
pub const ONLY_F32: &[DType] = &[F32];

/// Rows of a result that are computed on the CPU too, where rows do not depend on each other.
const CHECKED_ROWS: usize = 32;

/// The relative error that a result may have (DESIGN.md, section 8).
fn tolerance(dtype: DType) -> f64 {
    if dtype == Bf16 { 1e-2 } else { 1e-5 }
}

impl Row {
    /// What a row is if it does not say otherwise.
    pub const BASE: Row = Row {
        op: "",
        names: "",
        measured: &[],
        checked: &[],
        dtypes: BF16,
        work: |_, _| Work::Bytes(0.0),
        rows_alone: true,
        exact: false,
        make: |_, _| case(&[], || Ok(())),
    };

    /// Makes and runs the row on `device` for one of its checked shapes, and holds its results to the CPU's and to the reference.
    pub fn check(&self, device: &Device, dims: &[usize], dtype: DType) -> Result<f64> {
        let world = World { device: device.clone(), acts: dtype, rounded: dtype };
        let mut case = (self.make)(&world, dims)?;
        (case.run)()?;
        let error = self.check_case(dims, dtype, &case)?;
        let Some(reference) = &case.reference else { return Ok(error) };
        let wants = reference();
        ensure!(
            wants.len() == case.outs.len(),
            "{} results, {} in the reference",
            case.outs.len(),
            wants.len()
        );
        let mut worst = error;
        for (got, want) in case.outs.iter().zip(&wants) {
            let allowed = if self.exact || case.to_the_bit { 0.0 } else { tolerance(got.dtype()) };
            worst = worst.max(near(got.name(), &got.to_f32_vec()?, want, allowed, "the reference's")?);
        }
        Ok(worst)
    }

    /// Holds a case's results, of any shape, to the CPU's; the largest relative error.
    pub fn check_case(&self, dims: &[usize], dtype: DType, case: &Case) -> Result<f64> {
        let world = World { device: Device::Cpu, acts: F32, rounded: dtype };
        let mut few = dims.to_vec();
        if self.rows_alone {
            few[0] = few[0].min(CHECKED_ROWS);
        }
        let mut want = (self.make)(&world, &few)?;
        (want.run)()?;
        let mut worst: f64 = 0.0;
        for (got, want) in case.outs.iter().zip(&want.outs) {
            if got.dtype() == DType::U32 {
                let (values, want) = (got.to_u32_vec()?, want.to_u32_vec()?);
                ensure!(values.starts_with(&want), "{} has other integers than the CPU's", got.name());
                continue;
            }
            // An f32 result of bf16 activations carries their rounding.
            let allowed = if self.exact { 0.0 } else { tolerance(dtype) };
            let (values, want) = (got.to_f32_vec()?, want.to_f32_vec()?);
            ensure!(values.iter().all(|x| x.is_finite()), "{} holds a number that is not finite", got.name());
            let want: Vec<f64> = want.iter().map(|&x| x as f64).collect();
            worst = worst.max(near(got.name(), &values[..want.len()], &want, allowed, "the CPU's")?);
        }
        Ok(worst)
    }
}

/// The values of tensors, for a reference.
pub fn wide<const N: usize>(tensors: [&sdrrl::tensor::Tensor; N]) -> Result<[Vec<f64>; N]> {
    let mut values = [const { vec![] }; N];
    for (to, t) in values.iter_mut().zip(tensors) {
        *to = t.to_f32_vec()?.into_iter().map(f64::from).collect();
    }
    Ok(values)
}

/// x as `dtype` holds it.
pub fn rounded(x: f32, dtype: DType) -> f64 {
    if dtype == Bf16 { half::bf16::from_f32(x).to_f64() } else { x as f64 }
}

/// The relative error of `got` in the Euclidean norm, if it is allowed; no element may hide in the norm: each is within 20 tolerances of the largest.
fn near(what: &str, got: &[f32], want: &[f64], allowed: f64, whose: &str) -> Result<f64> {
    ensure!(got.len() == want.len(), "{what} has {} elements, {whose} {}", got.len(), want.len());
    let off = |(&g, &w): (&f32, &f64)| (g as f64 - w).abs();
    let error: f64 = got.iter().zip(want).map(|x| off(x).powi(2)).sum();
    let norm: f64 = want.iter().map(|w| w * w).sum();
    let relative = (error / norm.max(1e-300)).sqrt();
    ensure!(
        relative <= allowed && norm > 0.0,
        "{what} is {relative:.1e} away from {whose}, allowed {allowed:.0e}"
    );
    let top = want.iter().fold(0.0f64, |a, w| a.max(w.abs()));
    if let Some(i) = got.iter().zip(want).position(|x| off(x) > 20.0 * allowed * top) {
        anyhow::bail!("{what}: element {i} is {}, {whose} {}", got[i], want[i]);
    }
    Ok(relative)
}
