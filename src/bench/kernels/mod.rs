//! Single ops on the shapes of a model's layer: SmolLM2-135M's on the processor, LLaMA-2-7B's on a GPU, tiny ones on the emulated device.
//!
//! Work is counted as what the op must do: FLOP of products and attention, bytes of each tensor that is read or written once for the rest. Caches are as warm as
//! the run before left them.
use std::{collections::BTreeSet, time::Instant};

use anyhow::{Result, ensure};

use super::{Row, Runs, ceilings, timed, wait};
use crate::{
    device::Device,
    tensor::{DType, Tensor},
};

mod matrices;
mod rowwise;

/// An op with its tensors: runs once; returns the result if asked to.
type Op = Box<dyn FnMut(bool) -> Result<Vec<f32>>>;

/// Sizes of the shapes: tokens, hidden size, intermediate size, vocabulary, heads, heads of keys and values, elements of a head.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    c: usize,
    f: usize,
    v: usize,
    heads: usize,
    kv_heads: usize,
    head: usize,
}

const SMOLLM2: Sizes = Sizes { n: 1024, c: 576, f: 1536, v: 49152, heads: 9, kv_heads: 3, head: 64 };
const LLAMA2: Sizes = Sizes { n: 8192, c: 4096, f: 11008, v: 32000, heads: 32, kv_heads: 32, head: 128 };
const TINY: Sizes = Sizes { n: 48, c: 128, f: 160, v: 200, heads: 2, kv_heads: 1, head: 64 };

/// A row that can be measured.
struct Kernel {
    name: String,
    /// In 1e9 of FLOP or bytes.
    work: f64,
    products: Option<DType>,
    make: Box<dyn Fn(&Device) -> Result<Op>>,
}

/// What was measured.
pub struct Measured {
    /// Ceilings first.
    pub ceilings: Vec<Row>,
    /// A row for each kernel.
    pub rows: Vec<Row>,
}

/// The names of all rows on `device`.
pub fn names(device: &Device) -> Vec<String> {
    all(device).into_iter().map(|k| k.name).collect()
}

/// Every row whose name contains one of `filters` (all, where there is none).
///
/// # Errors
/// A filter that no name contains; a result that is not finite, that differs between the first and the last run, or, on another device, from the processor's.
pub fn measure(device: &Device, filters: &[String], runs: Runs) -> Result<Measured> {
    let all = all(device);
    for filter in filters {
        let any = all.iter().any(|k| k.name.contains(filter.as_str()));
        ensure!(any, "no kernel's name contains `{filter}`; --list prints them all");
    }
    let wanted: Vec<Kernel> = all
        .into_iter()
        .filter(|k| filters.is_empty() || filters.iter().any(|f| k.name.contains(f.as_str())))
        .collect();
    let memory = ceilings::memory(device, runs)?;
    let dtypes: BTreeSet<bool> = wanted.iter().filter_map(|k| k.products).map(|d| d == DType::Bf16).collect();
    let mut products = vec![];
    for narrow in dtypes {
        let dtype = if narrow { DType::Bf16 } else { DType::F32 };
        products.push((dtype, ceilings::product(device, dtype, runs)?));
    }
    let mut rows = vec![];
    for kernel in wanted {
        let seconds = one(device, &kernel, runs)?;
        let product = kernel.products.and_then(|d| products.iter().find(|p| p.0 == d));
        rows.push(match product {
            Some((_, ceiling)) => Row::rate(kernel.name, "GFLOP/s", kernel.work, &seconds).against(ceiling),
            None => Row::rate(kernel.name, "GB/s", kernel.work, &seconds).against(&memory),
        });
    }
    let ceilings = std::iter::once(memory).chain(products.into_iter().map(|p| p.1)).collect();
    Ok(Measured { ceilings, rows })
}

/// Seconds of one call, once a run; short ones are repeated within a run.
fn one(device: &Device, kernel: &Kernel, runs: Runs) -> Result<Vec<f64>> {
    let name = &kernel.name;
    let mut op = (kernel.make)(device)?;
    let before = op(true)?;
    ensure!(before.iter().all(|x| x.is_finite()), "{name}: a result is not finite");
    if *device != Device::Cpu {
        let expected = (kernel.make)(&Device::Cpu)?(true)?;
        let size = expected.iter().fold(0f32, |a, x| a.max(x.abs()));
        let worst = before.iter().zip(&expected).fold(0f32, |a, (x, y)| a.max((x - y).abs()));
        ensure!(
            before.len() == expected.len() && worst <= 2e-2 * size,
            "{name}: differs from the processor's result by {worst}, of values up to {size}"
        );
    }
    let began = Instant::now();
    op(false)?;
    wait(device)?;
    // A run of two milliseconds at least, but on the emulated device, whose times mean nothing.
    let emulated = device.gpu().is_some_and(|g| g.is_emulated());
    let repeat =
        if emulated { 1 } else { (2e-3 / began.elapsed().as_secs_f64().max(1e-7)).ceil().max(1.0) as usize };
    let seconds = timed(device, runs, || {
        for _ in 0..repeat {
            op(false)?;
        }
        Ok(())
    })?;
    ensure!(op(true)? == before, "{name}: the last run has another result than the first");
    Ok(seconds.into_iter().map(|s| s / repeat as f64).collect())
}

/// The type of activations: the processor computes in f32.
fn on(device: &Device, dtype: DType) -> DType {
    if *device == Device::Cpu { DType::F32 } else { dtype }
}

/// `t` if it is asked for.
fn read(asked: bool, t: &Tensor) -> Result<Vec<f32>> {
    if asked { t.to_f32_vec() } else { Ok(vec![]) }
}

fn all(device: &Device) -> Vec<Kernel> {
    let (s, dtype) = match device {
        Device::Cpu => (SMOLLM2, DType::F32),
        _ if device.gpu().is_some_and(|g| g.is_emulated()) => (TINY, DType::Bf16),
        _ => (LLAMA2, DType::Bf16),
    };
    let mut all = vec![];
    matrices::products(&mut all, s, dtype);
    matrices::attention(&mut all, s, dtype);
    rowwise::rowwise(&mut all, s, dtype);
    all
}
