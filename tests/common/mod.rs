//! Helpers that several test files share.
pub mod gguf;
pub mod source;

use sdrrl::{data::random::RowRandom, ops::quantize::GgmlType};

/// Uniform numbers in -1..1, the same for the same name.
pub fn uniform(name: &str, n: usize) -> Vec<f32> {
    let mut random = RowRandom::new(1, "test", name);
    (0..n).map(|_| (random.uniform() * 2.0 - 1.0) as f32).collect()
}

/// |got - want| / |want| in the Euclidean norm; NaN counts as infinite.
pub fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |x: f64| x * x;
    let diff: f64 = got.iter().zip(want).map(|(g, w)| square(*g as f64 - *w as f64)).sum();
    let norm: f64 = want.iter().map(|w| square(*w as f64)).sum();
    let error = diff.sqrt() / norm.sqrt().max(1e-30);
    if error.is_nan() { f64::INFINITY } else { error }
}

/// Asserts [`relative_error`] below `tolerance`.
#[track_caller]
pub fn assert_close(what: &str, got: impl AsRef<[f32]>, want: &[f32], tolerance: f64) {
    let error = relative_error(got.as_ref(), want);
    assert!(error < tolerance, "{what}: relative error {error:e}, allowed {tolerance:e}");
}

pub use sdrrl::ops::with_threads;

/// The program under test; `SDRRL_BIN` names it where cargo's place does not exist.
pub fn program() -> std::process::Command {
    let path = std::env::var_os("SDRRL_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_sdrrl").into());
    std::process::Command::new(path)
}

/// Blocks of `n` values: random bytes with finite scales.
pub fn random_blocks(kind: GgmlType, n: usize) -> Vec<u8> {
    let (values, size) = kind.block();
    let mut random = RowRandom::new(1, "blocks", &format!("{kind:?}"));
    let mut bytes: Vec<u8> = (0..n / values * size).map(|_| random.below(256) as u8).collect();
    // The upper bytes of floats.
    let floats: &[usize] = match kind {
        GgmlType::F32 | GgmlType::Nf4 => &[3],
        GgmlType::Q2K => &[81, 83],
        GgmlType::Q3K => &[109],
        GgmlType::Q6K => &[209],
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4K | GgmlType::Q5K => &[1, 3],
        _ => &[1],
    };
    for block in bytes.chunks_exact_mut(size) {
        for &at in floats {
            // The lowest exponent is a subnormal's; the highest would be infinity's.
            block[at] &= 0xbb;
        }
    }
    bytes
}
