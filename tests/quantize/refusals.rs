//! What `sdrrl quantize` refuses: by name, with nothing left behind.
use std::{
    fs,
    path::{Path, PathBuf},
};

use sdrrl::{data::tokenizer::Tokenizer, models::weights::stored::Stored};
use serde_json::{Value, json};

use super::{QUICKSTART, quantize, random, refused};
use crate::exports::{done, with_value};

/// A folder for models, and one for files that are never made.
struct Bad(tempfile::TempDir);

impl Bad {
    fn new() -> Bad {
        let bad = Bad(tempfile::tempdir().unwrap());
        fs::create_dir(bad.at("new")).unwrap();
        bad
    }
    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn model(&self, name: &str, config: Value) -> PathBuf {
        let tokenizer = Tokenizer::load(Path::new(QUICKSTART)).unwrap();
        random(&self.at(name), config, &tokenizer, Stored::Bf16);
        self.at(name)
    }
    fn refuses(&self, model: &Path, more: &[&str], what: &str) {
        let said = refused(model, &self.at("new/m.gguf"), more);
        assert!(said.contains(what), "{}: {what}: {said}", model.display());
        assert_eq!(fs::read_dir(self.at("new")).unwrap().count(), 0, "{what}");
    }
}

#[test]
fn damaged_sources_are_named_and_nothing_is_left_behind() {
    let bad = Bad::new();
    let quickstart = Path::new(QUICKSTART);
    for (name, value) in [("nan", f32::NAN), ("large", 70000.0)] {
        with_value(&bad.at(name), "model.layers.1.mlp.up_proj.weight", value);
    }
    bad.refuses(&bad.at("nan"), &["--type", "q8_0"], "ffn_up.weight holds NaN at [0, 0]");
    bad.refuses(&bad.at("large"), &["--type", "f16"], "ffn_up.weight");
    let short = bad.model("short", json!({"model_type": "llama"}));
    let bytes = fs::read(short.join("model.safetensors")).unwrap();
    fs::write(short.join("model.safetensors"), &bytes[..bytes.len() - 100]).unwrap();
    bad.refuses(&short, &[], "model.safetensors is not a usable safetensors file");
    fs::write(bad.at("broken.gguf"), b"GGUF\x03\0\0\0").unwrap();
    bad.refuses(&bad.at("broken.gguf"), &[], "broken.gguf is not a usable GGUF file");
    bad.refuses(&bad.at("nowhere"), &[], "does not exist");
    bad.refuses(quickstart, &["--type", "q3_k_m"], "none of F32");
    // A file of blocks whose end is missing.
    let whole = bad.at("whole.gguf");
    done(&quantize(quickstart, &whole, &["--type", "q8_0"]));
    let bytes = fs::read(&whole).unwrap();
    fs::write(bad.at("cut.gguf"), &bytes[..bytes.len() - 5000]).unwrap();
    bad.refuses(&bad.at("cut.gguf"), &["--type", "f32", "--requantize"], "truncated");
    assert!(refused(quickstart, &whole, &[]).contains("is there already"));
    assert!(fs::read(&whole).unwrap() == bytes);
    let nowhere = bad.at("no/folder/m.gguf");
    assert!(refused(quickstart, &nowhere, &[]).contains("its folder does not exist"));
}

#[test]
fn tokenizers_that_llama_cpp_has_no_name_for_are_refused() {
    let bad = Bad::new();
    let changed = |name: &str, change: &dyn Fn(&mut Value)| {
        let path = bad.model(name, json!({"model_type": "llama"})).join("tokenizer.json");
        let mut json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut json);
        fs::write(path, json.to_string()).unwrap();
        bad.at(name)
    };
    let split = json!({"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": false});
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let own = json!({"type": "Sequence", "pretokenizers": [split, bytes]});
    let regex = changed("regex", &|j| j["pre_tokenizer"] = own.clone());
    bad.refuses(&regex, &[], "llama.cpp has no name for its pre-tokeniser");
    let words = changed("words", &|j| j["pre_tokenizer"] = json!({"type": "Whitespace"}));
    bad.refuses(&words, &[], "not byte-level");
    let rows = changed("rows", &|j| j["added_tokens"][3]["id"] = json!(5000));
    bad.refuses(&rows, &[], "5000");
}

#[test]
fn models_that_a_file_cannot_hold_are_refused_by_what_differs() {
    let bad = Bad::new();
    for (config, what) in [
        (
            json!({"model_type": "qwen2", "use_sliding_window": true, "max_window_layers": 1, "sliding_window": 8}),
            "qwen2.attention.sliding_window",
        ),
        (
            json!({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
            "scaling of type dynamic",
        ),
        (
            json!({"model_type": "gemma", "head_dim": 16, "tie_word_embeddings": false}),
            "its head is not its embedding",
        ),
        (json!({"model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 50}), "query_scale"),
        (
            json!({"model_type": "qwen3", "head_dim": 16, "attention_bias": true}),
            "biases: PerLinear { q: true would be read as q: false",
        ),
    ] {
        let model = bad.model(config["model_type"].as_str().unwrap(), config.clone());
        bad.refuses(&model, &[], what);
    }
}
