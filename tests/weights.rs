//! Files of weights: ggml's block formats against the gguf package, and damaged files of every kind.
use std::{fs, path::Path};

use proptest::prelude::*;
use sdrrl::{
    data::tokenizer::Tokenizer,
    models::{llama::Llama, lora::Lora, weights::quantized::GgmlType},
    tensor::DType,
};
use serde_json::Value;

/// scripts/golden_quantized.py
#[test]
fn block_formats_equal_the_gguf_package() {
    let golden: Value =
        serde_json::from_str(&fs::read_to_string("tests/golden/models/quantized.json").unwrap()).unwrap();
    let types = golden["types"].as_object().unwrap();
    assert_eq!(types.len(), 7);
    for (number, case) in types {
        let kind = GgmlType::from_number(number.parse().unwrap()).unwrap();
        let hex = case["bytes"].as_str().unwrap();
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        let want: Vec<f32> =
            case["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        let mut got = vec![0.0; want.len()];
        kind.dequantize(&bytes, &mut got);
        for (i, (a, b)) in got.iter().zip(&want).enumerate() {
            assert!((a - b).abs() <= 1e-6 * b.abs().max(1e-3), "{kind:?} value {i}: {a} is not {b}");
        }
    }
}

/// A copy of a small model's folder.
fn copy(from: &str, to: &Path) {
    for entry in fs::read_dir(from).unwrap().flatten().filter(|e| e.path().is_file()) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn damage(path: &Path, at: usize, bit: u8, cut: bool) {
    let mut bytes = fs::read(path).unwrap();
    let at = at % bytes.len();
    if cut {
        bytes.truncate(at);
    } else {
        bytes[at] ^= 1 << bit;
    }
    fs::write(path, bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn a_damaged_model_folder_loads_or_is_refused(at in 0usize..4000, bit in 0u8..8, cut in any::<bool>(), which in 0usize..2) {
        let dir = tempfile::tempdir().unwrap();
        copy("tests/golden/models/llama-tied", dir.path());
        let file = dir.path().join(["config.json", "model.safetensors"][which]);
        damage(&file, at, bit, cut);
        if let Err(e) = Llama::load(dir.path(), DType::F32) {
            let message = format!("{e:#}");
            prop_assert!(message.contains("config.json") || message.contains("safetensors") || message.contains("model"), "{message}");
        }
    }

    #[test]
    fn a_damaged_adapter_loads_or_is_refused(at in 0usize..4000, bit in 0u8..8, cut in any::<bool>(), which in 0usize..2) {
        let dir = tempfile::tempdir().unwrap();
        let model = Llama::load(Path::new("tests/golden/models/llama-tied"), DType::F32).unwrap();
        let config = sdrrl::models::lora::LoraConfig { r: 2, ..Default::default() };
        Lora::init(&model, config, 1).unwrap().save(dir.path(), "base").unwrap();
        damage(&dir.path().join(["adapter_config.json", "adapter_model.safetensors"][which]), at, bit, cut);
        if let Err(e) = Lora::load(dir.path(), &model) {
            prop_assert!(format!("{e:#}").contains("adapter"), "{e:#}");
        }
    }

    #[test]
    fn a_damaged_gguf_loads_or_is_refused(at in any::<usize>(), bit in 0u8..8, cut in any::<bool>(), which in 0usize..2) {
        let dir = tempfile::tempdir().unwrap();
        let name = ["bpe.gguf", "spm.gguf"][which];
        let path = dir.path().join(name);
        fs::copy(Path::new("tests/golden/tokenizer").join(name), &path).unwrap();
        damage(&path, at, bit, cut);
        if let Err(e) = Tokenizer::load(&path) {
            prop_assert!(format!("{e:#}").contains(name), "{e:#}");
        }
        // No weights are in these files: always an error, never a panic.
        prop_assert!(Llama::load(&path, DType::F32).is_err());
    }
}
