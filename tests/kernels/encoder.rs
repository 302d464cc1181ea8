//! The XLM-R encoder and CometKiwi on the kernels: f32 against unbabel-comet's scores, bf16 near them.
use sdrrl::{
    qe::{
        Scorer,
        cometkiwi::{CometKiwi, Files},
    },
    tensor::DType::{self, Bf16, F32},
};

use super::*;
use crate::qe::{MODEL, golden};

fn scores(device: &Device, dtype: DType, tolerance: f64) {
    let golden = golden();
    let files = Files::find(MODEL, None).unwrap();
    let mut kiwi = CometKiwi::load(&files, dtype, device, 64).unwrap();
    let some = &golden["pairs"].as_array().unwrap()[..6];
    let text = |p: &serde_json::Value, key: &str| p[key].as_str().unwrap().to_string();
    let pairs: Vec<_> = some.iter().map(|p| (text(p, "source"), text(p, "translation"))).collect();
    for (p, score) in some.iter().zip(kiwi.score(&pairs).unwrap()) {
        let want = p["score"].as_f64().unwrap();
        assert!((score - want).abs() <= tolerance, "{score} for {want}");
    }
}

cases! {
    cometkiwi_f32(device) { scores(device, F32, 1e-4) }
    cometkiwi_bf16(device) { scores(device, Bf16, 0.03) }
}
