//! Files of weights: ggml's block formats against the gguf package, and damaged files of every kind.
use std::{fs, path::Path};

use proptest::prelude::*;
use sdrrl::{
    data::tokenizer::Tokenizer,
    models::{transformer::lora::Lora, transformer::weights::Transformer},
    ops::quantize::{GgmlType, quantize},
    tensor::{DType, Tensor},
};
use serde_json::Value;

/// scripts/golden_quantized.py
#[test]
fn block_formats_equal_the_gguf_package() {
    let golden: Value =
        serde_json::from_str(&fs::read_to_string("tests/golden/models/quantized.json").unwrap()).unwrap();
    let types = golden["types"].as_object().unwrap();
    assert_eq!(types.len() + 1, GgmlType::ALL.len(), "all but F32");
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
            assert_eq!(a.to_bits(), b.to_bits(), "{kind:?} value {i}: {a} is not {b}");
        }
    }
}

/// The blocks of the golden values, byte for byte.
#[test]
fn quantised_blocks_equal_the_gguf_package() {
    let golden: Value =
        serde_json::from_str(&fs::read_to_string("tests/golden/models/quantized.json").unwrap()).unwrap();
    let case = &golden["quantized"];
    let values: Vec<f32> =
        case["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
    let inp = Tensor::from_f32("values", &[values.len()], &values).unwrap();
    for (number, hex) in case["types"].as_object().unwrap() {
        let kind = GgmlType::from_number(number.parse().unwrap()).unwrap();
        let hex = hex.as_str().unwrap();
        let mut blocks = Tensor::zeros("blocks", DType::U32, &[(hex.len() / 2).div_ceil(4)]).unwrap();
        quantize(&mut blocks, &inp, kind).unwrap();
        let bytes: Vec<u8> = blocks.to_u32_vec().unwrap().iter().flat_map(|w| w.to_le_bytes()).collect();
        let got: String = bytes[..hex.len() / 2].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(got, hex, "{kind:?}");
    }
    let mut blocks = Tensor::zeros("blocks", DType::U32, &[1]).unwrap();
    let error = quantize(&mut blocks, &inp, GgmlType::Q8_0).unwrap_err().to_string();
    assert!(error.contains("blocks") && error.contains("values"), "{error}");
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
        if let Err(e) = Transformer::load(dir.path(), DType::F32) {
            let message = format!("{e:#}");
            prop_assert!(message.contains("config.json") || message.contains("safetensors") || message.contains("model"), "{message}");
        }
    }

    #[test]
    fn a_damaged_adapter_loads_or_is_refused(at in 0usize..4000, bit in 0u8..8, cut in any::<bool>(), which in 0usize..2) {
        let dir = tempfile::tempdir().unwrap();
        let model = Transformer::load(Path::new("tests/golden/models/llama-tied"), DType::F32).unwrap();
        let config = sdrrl::models::transformer::lora::LoraConfig { r: 2, ..Default::default() };
        Lora::init(&model, config, 1).unwrap().save(dir.path(), "base", None).unwrap();
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
        prop_assert!(Transformer::load(&path, DType::F32).is_err());
    }
}

#[test]
fn a_sharded_checkpoint_equals_a_single_file_and_a_missing_shard_is_named() {
    use safetensors::SafeTensors;
    let dir = tempfile::tempdir().unwrap();
    copy("tests/golden/models/llama-tied", dir.path());
    let whole = dir.path().join("model.safetensors");
    let bytes = fs::read(&whole).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut shards: [Vec<(String, safetensors::tensor::TensorView)>; 2] = [vec![], vec![]];
    let mut map = serde_json::Map::new();
    for (i, (name, view)) in tensors.tensors().into_iter().enumerate() {
        map.insert(name.clone(), format!("part-{}.safetensors", i % 2).into());
        shards[i % 2].push((name, view));
    }
    for (i, shard) in shards.into_iter().enumerate() {
        fs::write(
            dir.path().join(format!("part-{i}.safetensors")),
            safetensors::serialize(shard, None).unwrap(),
        )
        .unwrap();
    }
    fs::remove_file(&whole).unwrap();
    let index = serde_json::json!({"metadata": {"total_size": 0}, "weight_map": map});
    fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let one = Transformer::load(Path::new("tests/golden/models/llama-tied"), DType::F32).unwrap();
    let two = Transformer::load(dir.path(), DType::F32).unwrap();
    for ((name, a), (_, b)) in one.named().iter().zip(two.named()) {
        assert_eq!(a.to_f32_vec().unwrap(), b.to_f32_vec().unwrap(), "{name}");
    }
    fs::remove_file(dir.path().join("part-1.safetensors")).unwrap();
    let error = format!("{:#}", Transformer::load(dir.path(), DType::F32).err().unwrap());
    assert!(error.contains("part-1.safetensors"), "{error}");
}

/// The shapes that the models' own config.json files describe.
#[test]
fn the_papers_models_are_described_by_their_config_files() {
    let llama2 = serde_json::json!({"architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
        "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "float16", "use_cache": true, "vocab_size": 32000});
    let with = |changes: Value| {
        let mut config = llama2.clone();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    };
    let seallm1 = with(serde_json::json!({"vocab_size": 48512, "pad_token_id": 0}));
    let seallm2 = with(
        serde_json::json!({"architectures": ["MistralForCausalLM"], "model_type": "mistral", "intermediate_size": 14336,
        "num_key_value_heads": 8, "max_position_embeddings": 32768, "sliding_window": 4096, "vocab_size": 48384}),
    );
    let smollm2 = with(
        serde_json::json!({"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "tie_word_embeddings": true, "vocab_size": 49152, "rope_theta": 100000, "max_position_embeddings": 8192,
        "transformers.js_config": {"kv_cache_dtype": {}}, "bos_token_id": 1, "eos_token_id": 2}),
    );
    // LLaMA-2-7B has 6,738,415,616 parameters, Mistral-7B 7,241,732,096; the SeaLLMs differ by 2 x 4096 a word of vocabulary.
    for (config, parameters) in [
        (llama2.clone(), 6_738_415_616),
        (seallm1, 6_873_681_920),
        (seallm2, 7_375_949_824),
        (smollm2, 134_515_008usize),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let read = sdrrl::models::transformer::config::Config::from_dir(dir.path()).unwrap();
        assert_eq!(read.parameters(), parameters, "{config}");
    }
}
