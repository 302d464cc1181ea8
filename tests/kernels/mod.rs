//! Every GPU kernel, through its op, on its declared cases.
//!
//! A case runs on the emulated GPU under four combinations of schedule and asynchrony with all checks on; with
//! `SDRRL_TEST_DEVICE=cuda` it runs on the GPU instead. `SDRRL_TEST_SEEDS=n` adds more seeds. Results are held to an f64 reference: bf16
//! within 1e-2, f32 within 1e-5 relative; a NaN fails.
use sdrrl::{
    device::{Device, DeviceChoice},
    tensor::{DType, Tensor},
};
use sdrrl_emulator::{Config, Stats, load_kernels, with_config};

use crate::common::uniform;

mod attention;
mod choosing;
mod counts;
mod encoder;
mod gemm;
mod quantize;
mod rowwise;
mod steps;
pub mod table;
mod training;

/// Runs a case in every combination; the statistics are those of a profiled run, on the emulator only.
pub fn run_case(name: &str, case: impl Fn(&Device)) {
    if let Ok(choice) = std::env::var("SDRRL_TEST_DEVICE") {
        let device = choice.parse::<DeviceChoice>().unwrap().open().unwrap();
        return case(&device);
    }
    let device = emulated();
    let seeds: u64 = std::env::var("SDRRL_TEST_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    for seed in 0..seeds {
        for config in Config::suite(1 + 10 * seed) {
            eprintln!("{name}: {config:?}");
            with_config(config, || case(&device));
        }
    }
}

/// Checks the rows of an op, of which `rows` has one at least: every shape and type, in every combination.
pub fn check_rows(rows: &[table::Row], op: &str) {
    let own: Vec<_> = rows.iter().filter(|r| r.op == op).collect();
    assert!(!own.is_empty(), "{op} has no row");
    run_case(op, |device| own.iter().for_each(|row| check_row(device, row)));
}

/// Checks a row on one device.
pub fn check_row(device: &Device, row: &table::Row) {
    assert!(!row.checked.is_empty() && !row.dtypes.is_empty(), "{} is never checked", row.op);
    for dims in row.checked {
        for dtype in row.dtypes {
            if let Err(e) = row.check(device, dims, *dtype) {
                panic!("{} {dims:?} {dtype:?}: {e:#}", row.op);
            }
        }
    }
}

#[allow(unsafe_code)]
/// The emulated GPU; with kernels of the shared object that `SDRRL_TEST_KERNELS` names, if it is set, in place of the program's own.
pub fn emulated() -> Device {
    static LOADED: std::sync::Once = std::sync::Once::new();
    LOADED.call_once(|| {
        if let Some(path) = std::env::var_os("SDRRL_TEST_KERNELS") {
            // SAFETY: scripts/mutate_kernels.sh compiles it against the same headers.
            unsafe { load_kernels(path.as_ref()) }.unwrap();
        }
    });
    Device::emulated()
}

/// What a case does to memory; `None` on a real GPU, which does not tell.
pub fn profile(case: impl Fn(&Device)) -> Option<Stats> {
    if std::env::var("SDRRL_TEST_DEVICE").is_ok() {
        return None;
    }
    let config = Config { profile: true, ..Config::default() };
    Some(with_config(config, || case(&emulated())).1)
}

/// Declares cases: each a test of its own.
macro_rules! cases {
    ($($name:ident($device:ident) $body:block)*) => {
        $(#[test] fn $name() { $crate::kernels::run_case(stringify!($name), |$device: &sdrrl::device::Device| $body); })*
    };
}
pub(crate) use cases;

/// The dtype's tolerance on relative errors (DESIGN.md, section 8).
pub fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::Bf16 { 1e-2 } else { 1e-5 }
}

/// Numbers in -1..1 as they are after rounding to `dtype`, and as f64.
pub fn random(name: &str, dtype: DType, n: usize) -> (Vec<f32>, Vec<f64>) {
    let values: Vec<f32> = uniform(name, n).into_iter().map(|x| rounded(x, dtype)).collect();
    let wide = values.iter().map(|&x| x as f64).collect();
    (values, wide)
}

/// x as `dtype` holds it.
pub fn rounded(x: f32, dtype: DType) -> f32 {
    if dtype == DType::Bf16 { half::bf16::from_f32(x).to_f32() } else { x }
}

/// A tensor on `device` with these values.
pub fn put(device: &Device, dtype: DType, dims: &[usize], values: &[f32]) -> Tensor {
    let mut t = Tensor::zeros_on(device, "t", dtype, dims).unwrap();
    t.write_f32(values).unwrap();
    t
}

/// Integers on `device`.
pub fn put_u32(device: &Device, values: &[u32]) -> Tensor {
    let mut t = Tensor::zeros_on(device, "ids", DType::U32, &[values.len()]).unwrap();
    t.write_u32(values).unwrap();
    t
}

/// An output on `device`, full of NaN.
pub fn out(device: &Device, dtype: DType, dims: &[usize]) -> Tensor {
    let n = dims.iter().product();
    put(device, dtype, dims, &vec![f32::NAN; n])
}

/// Asserts that a tensor is within its dtype's tolerance of the reference, in the Euclidean norm; NaN fails.
#[track_caller]
pub fn assert_near(what: &str, got: &Tensor, want: &[f64]) {
    assert_within(what, got, want, tolerance(got.dtype()));
}

/// The same with a tolerance of its own.
#[track_caller]
pub fn assert_within(what: &str, got: &Tensor, want: &[f64], tolerance: f64) {
    let got = got.to_f32_vec().unwrap();
    assert_eq!(got.len(), want.len(), "{what}");
    if let Some(i) = got.iter().zip(want).position(|(g, w)| g.is_nan() != w.is_nan()) {
        panic!("{what}: element {i} is {}, expected {}", got[i], want[i]);
    }
    let error: f64 = got.iter().zip(want).map(|(&g, w)| (g as f64 - w).powi(2)).sum();
    let norm: f64 = want.iter().map(|w| w * w).sum();
    let relative = (error / norm.max(1e-300)).sqrt();
    assert!(relative <= tolerance, "{what}: relative error {relative:e}, allowed {tolerance:e}");
    // No element may hide in the norm: each within 20 tolerances of the largest.
    let top = want.iter().fold(0.0f64, |a, w| a.max(w.abs()));
    let off = |(&g, w): (&f32, &f64)| (g as f64 - w).abs() > 20.0 * tolerance * top;
    if let Some(i) = got.iter().zip(want).position(off) {
        panic!("{what}: element {i} is {}, expected {}", got[i], want[i]);
    }
}
