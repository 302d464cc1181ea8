//! Models and adapters as GGUF files (`sdrrl quantize`): read back they are what they were; llama.cpp's bytes and types are held in unit tests (`tests/golden/gguf/made.json`).
mod refusals;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use sdrrl::{
    data::{
        gguf::{Gguf, GgufValue},
        tokenizer::Tokenizer,
    },
    infer::{
        engine::{Engine, EngineOptions},
        scoring::ScoreRequest,
    },
    models::{
        transformer::{config::Config, lora::Lora, weight::ComputeType, weights::Transformer},
        weights::stored::Stored,
    },
    ops::quantize::GgmlType,
    tensor::{Activations, DType},
};
use serde_json::{Value, json};

use crate::{
    cli::text,
    common::{program, uniform},
    exports::done,
    models::folder,
};

const QUICKSTART: &str = "assets/quickstart/model";
const TEXTS: [&str; 4] =
    ["Hello world, it's 12345!", "  two  spaces \n\n x", "日本語 ελλάδα ½", "¿Qué haces? I'LL see"];

fn quantize(model: &Path, out: &Path, more: &[&str]) -> Output {
    let [model, out] = [model, out].map(|p| p.to_string_lossy().into_owned());
    program().args([&["quantize", "--model", &model, "--out", &out], more].concat()).output().unwrap()
}

fn refused(model: &Path, out: &Path, more: &[&str]) -> String {
    let refused = quantize(model, out, more);
    assert!(!refused.status.success());
    text(&refused.stderr)
}

/// A model of a family with random weights, norms and biases among them, and the tokenizer in `tokenizer`.
fn random(to: &Path, mut config: Value, tokenizer: &Tokenizer, stored: Stored) {
    let rows = tokenizer.vocab_size() + 3;
    for (key, value) in json!({"vocab_size": rows, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128})
    .as_object()
    .unwrap()
    {
        config.as_object_mut().unwrap().entry(key).or_insert(value.clone());
    }
    let plain = Transformer::random(Config::from_value(config).unwrap(), 3).unwrap();
    let model = Transformer::build(plain.config.clone(), &mut |leaf| {
        let values = uniform(&leaf.name, leaf.dims.iter().product());
        sdrrl::tensor::Tensor::from_f32(&leaf.name, &leaf.dims, &values)
    });
    model.unwrap().save_pretrained(to, stored, None).unwrap();
    tokenizer.save(to).unwrap();
}

/// That two models compute the same: settings, frequencies, values.
fn assert_same(name: &str, got: &Transformer, want: &Transformer) {
    let mut spec = got.spec.clone();
    assert_eq!(spec.ropes.len(), want.spec.ropes.len(), "{name}");
    for (got, want) in spec.ropes.iter_mut().zip(&want.spec.ropes) {
        for length in [1, 100] {
            let ((f, a), (g, b)) = (got.frequencies(length).unwrap(), want.frequencies(length).unwrap());
            let close = |x: f64, y: f64| (x - y).abs() <= 1e-6 * y.abs();
            assert!(close(a, b) && f.iter().zip(&g).all(|(&f, &g)| close(f, g)), "{name}: {f:?} {g:?}");
        }
        got.clone_from(want);
    }
    assert_eq!(spec, want.spec, "{name}");
    assert_eq!(got.named().len(), want.named().len(), "{name}");
    for ((tensor, got), (_, want)) in got.named().iter().zip(want.named()) {
        let (got, want) = (got.to_f32_vec().unwrap(), want.to_f32_vec().unwrap());
        // Gains of 1 + w were rounded once.
        let slack = if name.starts_with("gemma") && tensor.ends_with("norm.weight") { 1.5e-7 } else { 0.0 };
        let far = got.iter().zip(&want).position(|(g, w)| (g - w).abs() > slack);
        assert_eq!(far, None, "{name} {tensor}");
    }
}

#[test]
fn every_family_is_read_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::load(Path::new(QUICKSTART)).unwrap();
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
    let list = |x: f64| vec![x; 8];
    let longrope = json!({"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 32, "short_factor": list(1.5), "long_factor": list(4.0)});
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16.0});
    for (name, stored, config) in [
        ("llama", Stored::F32, json!({"model_type": "llama", "attention_bias": true, "mlp_bias": true})),
        (
            "llama3",
            Stored::Bf16,
            json!({"model_type": "llama", "tie_word_embeddings": true, "rope_theta": 5e5, "rope_scaling": llama3}),
        ),
        ("llama-longrope", Stored::F32, json!({"model_type": "llama", "rope_scaling": longrope})),
        (
            "llama-linear",
            Stored::F16,
            json!({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}}),
        ),
        ("mistral", Stored::F32, json!({"model_type": "mistral", "sliding_window": 24})),
        ("qwen2", Stored::Bf16, json!({"model_type": "qwen2", "rope_scaling": yarn})),
        ("qwen3", Stored::F32, json!({"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": true})),
        ("gemma", Stored::F32, json!({"model_type": "gemma", "head_dim": 32})),
        (
            "gemma2",
            Stored::Bf16,
            json!({"model_type": "gemma2", "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 24}),
        ),
        (
            "gemma3",
            Stored::F32,
            json!({"model_type": "gemma3_text", "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 24, "sliding_window_pattern": 2, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        ),
    ] {
        let (source, out) = (dir.path().join(name), dir.path().join(format!("{name}.gguf")));
        random(&source, config, &tokenizer, stored);
        let said = done(&quantize(&source, &out, &["--type", "F32"]));
        assert_eq!(said.contains("no sliding window"), name == "mistral", "{said}");
        let (read, own) =
            (Transformer::load(&out, DType::F32).unwrap(), Transformer::load(&source, DType::F32).unwrap());
        assert_same(name, &read, &own);
        let gguf = Gguf::open(&out).unwrap();
        assert_eq!((gguf.text("general.name"), gguf.integer("general.file_type")), (Some(name), Some(0)));
    }
}

/// Byte-level, SentencePiece's with and without a space in front: ids, special tokens, template; the lists are those of the files that llama.cpp's package wrote.
#[test]
fn tokenizers_are_read_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    for (name, family) in [("bpe", "llama"), ("spm", "llama"), ("gemma", "gemma")] {
        let source = PathBuf::from(format!("tests/golden/tokenizer/{name}.gguf"));
        let (folder, out) = (dir.path().join(name), dir.path().join(format!("{name}.gguf")));
        random(
            &folder,
            json!({"model_type": family, "head_dim": 16}),
            &Tokenizer::load(&source).unwrap(),
            Stored::Bf16,
        );
        done(&quantize(&folder, &out, &["--type", "q8_0"]));
        let (own, read) = (Tokenizer::load(&folder).unwrap(), Tokenizer::load(&out).unwrap());
        for text in TEXTS {
            assert_eq!(read.encode(text, true).unwrap(), own.encode(text, true).unwrap(), "{name} {text:?}");
        }
        assert_eq!((read.bos(), read.adds_bos()), (own.bos(), own.adds_bos()), "{name}");
        // By its text another token may end an answer too, as in llama.cpp.
        assert_eq!(read.eos()[..own.eos().len()], *own.eos(), "{name}");
        assert_eq!(read.config()["chat_template"], own.config()["chat_template"], "{name}");
        let (before, after) = (Gguf::open(&source).unwrap(), Gguf::open(&out).unwrap());
        let tokens = before.texts("tokenizer.ggml.tokens").unwrap();
        let list =
            |gguf: &Gguf, key: &str| gguf.array(&format!("tokenizer.ggml.{key}")).map(<[GgufValue]>::to_vec);
        let cut = |key: &str| list(&after, key).map(|all| all[..tokens.len()].to_vec());
        assert!(cut("token_type") == list(&before, "token_type"), "{name}");
        assert!(list(&after, "merges") == list(&before, "merges"), "{name}");
        // llama.cpp's converter writes user-defined spaces (type 4) as such.
        let kinds = before.integers("tokenizer.ggml.token_type").unwrap();
        let spaced =
            |(t, &kind): (&&str, &i64)| if kind == 4 { t.replace('▁', " ") } else { t.to_string() };
        let want: Vec<String> = tokens.iter().zip(&kinds).map(spaced).collect();
        assert!(after.texts("tokenizer.ggml.tokens").unwrap()[..tokens.len()] == want[..], "{name}");
        let all = after.texts("tokenizer.ggml.tokens").unwrap();
        assert_eq!(all[tokens.len()..], [0, 1, 2].map(|i| format!("[PAD{}]", tokens.len() + i)));
    }
}

fn log_probs(model: &Transformer, tokenizer: &Tokenizer) -> Vec<f32> {
    let mut engine = Engine::new(model, EngineOptions::default()).unwrap();
    let tokens = tokenizer.encode("The quick brown fox. 0123456789 El zorro.", true).unwrap();
    engine.log_probs(&[ScoreRequest { tokens, start: 1 }], &mut |_| {}).unwrap().concat()
}

/// Types of matrices by their names.
fn types(path: &Path) -> Vec<(String, GgmlType)> {
    let kind = |n| GgmlType::from_number(n).unwrap();
    Gguf::open(path).unwrap().tensors.iter().map(|t| (t.name.clone(), kind(t.ggml_type))).collect()
}

#[test]
fn a_mixed_file_computes_with_its_blocks_what_it_computes_dequantised() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let tokenizer = Tokenizer::load(Path::new(QUICKSTART)).unwrap();
    let config =
        json!({"model_type": "llama", "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1});
    random(&at("m"), config, &tokenizer, Stored::F32);
    let said = done(&quantize(&at("m"), &at("m.gguf"), &[]));
    assert!(said.contains("written as Q4_K_M") && said.contains("6 Q4_K, 3 Q6_K"), "{said}");
    let kinds = types(&at("m.gguf"));
    let of = |name: &str| kinds.iter().find(|(n, _)| n == name).unwrap().1;
    assert_eq!((of("token_embd.weight"), of("output.weight")), (GgmlType::Q4K, GgmlType::Q6K));
    let dense = Transformer::load(&at("m.gguf"), DType::F32).unwrap();
    let blocks = Transformer::load_as(&at("m.gguf"), ComputeType::F32, Some(Activations::F32)).unwrap();
    assert_eq!(log_probs(&blocks, &tokenizer), log_probs(&dense, &tokenizer));
    // Rounding a uniform value to 16 steps over its range is off by a 15th of it over the root of 12; scales of 6 bits add a little.
    let own = Transformer::load(&at("m"), DType::F32).unwrap();
    for ((name, got), (_, want)) in dense.named().iter().zip(own.named()) {
        let (got, want) = (got.to_f32_vec().unwrap(), want.to_f32_vec().unwrap());
        let range = want.iter().fold(0.0f32, |a, x| a.max(x.abs())) * 2.0;
        let squares = got.iter().zip(&want).map(|(x, y)| (x - y).powi(2)).sum::<f32>();
        let rms = (squares / got.len() as f32).sqrt();
        assert!(rms <= range / 15.0 / 12f32.sqrt() * 1.1, "{name}: {rms} of {range}");
    }
}

#[test]
fn a_gguf_files_header_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    // Its letters tell, not its name.
    let (named, out) = (dir.path().join("q.gguf"), dir.path().join("q.model"));
    done(&quantize(Path::new(QUICKSTART), &named, &["--type", "q8_0"]));
    fs::rename(&named, &out).unwrap();
    let inspect = |more: &[&str]| program().arg("inspect").arg(&out).args(more).output().unwrap();
    let shown = inspect(&[]);
    let said = String::from_utf8_lossy(&shown.stdout).into_owned();
    let bytes = format!("{} bytes", fs::metadata(&out).unwrap().len());
    for part in [
        bytes.as_str(),
        "architecture: llama",
        "tokenizer: ",
        "chat template",
        "Q8_0",
        "F32",
        "llama.block_count = ",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let error = String::from_utf8_lossy(&inspect(&["--contains", "x"]).stderr).into_owned();
    assert!(error.contains("a .gguf file has no rows"), "{error}");
}

#[test]
fn a_gguf_file_is_quantised_as_its_directory_is_and_blocks_once_only() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    done(&quantize(Path::new(QUICKSTART), &at("f.gguf"), &["--type", "f32"]));
    done(&quantize(Path::new(QUICKSTART), &at("q.gguf"), &["--type", "q4_k_m"]));
    done(&quantize(&at("f.gguf"), &at("again.gguf"), &["--type", "q4_k_m"]));
    let (one, two) = (Gguf::open(&at("q.gguf")).unwrap(), Gguf::open(&at("again.gguf")).unwrap());
    assert_eq!(one.metadata, two.metadata);
    assert_eq!(one.tensors.len(), two.tensors.len());
    for (a, b) in one.tensors.iter().zip(&two.tensors) {
        assert_eq!((&a.name, a.ggml_type, &a.dims), (&b.name, b.ggml_type, &b.dims));
    }
    let data = |gguf: &Gguf| gguf.maps[0][gguf.tensors[0].offset..].to_vec();
    assert!(data(&one) == data(&two));
    let said = refused(&at("q.gguf"), &at("x.gguf"), &["--type", "q8_0"]);
    assert!(said.contains("quantised already (Q") && said.contains("--requantize"), "{said}");
    done(&quantize(&at("q.gguf"), &at("x.gguf"), &["--type", "f32", "--requantize"]));
    let (q, x) = (
        Transformer::load(&at("q.gguf"), DType::F32).unwrap(),
        Transformer::load(&at("x.gguf"), DType::F32).unwrap(),
    );
    assert_same("dequantised", &x, &q);
    // Nothing is made anew.
    done(&quantize(&at("q.gguf"), &at("same.gguf"), &["--type", "q4_k_m"]));
    assert!(fs::read(at("same.gguf")).unwrap() == fs::read(at("again.gguf")).unwrap());
}

fn values(gguf: &Gguf, name: &str) -> Vec<f32> {
    gguf.floats(name).unwrap()
}

/// out = scale B A, of (out, r) and (r, in).
fn product(a: &[f32], b: &[f32], r: usize, scale: f32) -> Vec<f32> {
    let (rows, cols) = (b.len() / r, a.len() / r);
    let one = |i: usize, j: usize| (0..r).map(|k| b[i * r + k] * a[k * cols + j]).sum::<f32>() * scale;
    (0..rows * cols).map(|at| one(at / cols, at % cols)).collect()
}

#[test]
fn an_adapters_updates_stand_as_the_models_own_rows_do() {
    let dir = tempfile::tempdir().unwrap();
    for (name, base) in [
        ("rank-pattern.llama-tied", "llama-tied"),
        ("alpha-pattern.qwen2", "qwen2"),
        ("rslora.qwen2", "qwen2"),
        ("one-layer.gemma3", "gemma3"),
    ] {
        let (adapter, out) =
            (PathBuf::from("tests/golden/adapters").join(name), dir.path().join(format!("{name}.gguf")));
        done(&quantize(&folder(base), &out, &["--adapter", &adapter.to_string_lossy()]));
        let gguf = Gguf::open(&out).unwrap();
        let architecture = if base == "llama-tied" { "llama" } else { base };
        let text = |key: &str| gguf.text(key);
        assert_eq!(
            (text("general.architecture"), text("general.type"), text("adapter.type")),
            (Some(architecture), Some("adapter"), Some("lora"))
        );
        let alpha = gguf.float("adapter.lora.alpha").unwrap() as f32;
        let model = Transformer::load(&folder(base), DType::F32).unwrap();
        let lora = Lora::load(&adapter, &model).unwrap();
        assert_eq!(gguf.tensors.len(), 2 * lora.adapters().count(), "{name}");
        for (l, id, own) in lora.adapters() {
            let stem = format!("blk.{l}.{}.weight", id.gguf());
            let (a, b) = (values(&gguf, &format!("{stem}.lora_a")), values(&gguf, &format!("{stem}.lora_b")));
            let r = own.a.shape()[0];
            let got = product(&a, &b, r, alpha / r as f32);
            let want = product(&own.a.to_f32_vec().unwrap(), &own.b.to_f32_vec().unwrap(), r, own.scale);
            let (cols, hs) = (own.a.shape()[1], model.spec.head_size);
            for (row, got) in got.chunks(cols).enumerate() {
                // llama.cpp's rows: the halves of a head alternate.
                let rotated = base == "llama-tied" && id.is_rotated();
                let (head, i) = (row / hs, row % hs);
                let source = if rotated { head * hs + i % 2 * (hs / 2) + i / 2 } else { row };
                let far = got
                    .iter()
                    .zip(&want[source * cols..])
                    .any(|(g, w)| (g - w).abs() > 1e-5 * w.abs().max(0.1));
                assert!(!far, "{name} {stem} {row}");
            }
        }
    }
    for (name, base, what) in [
        ("dora.qwen2", "qwen2", "DoRA"),
        ("saved-norms.llama-tied", "llama-tied", "`sdrrl merge` it"),
        ("tokens.qwen2", "qwen2", "`sdrrl merge` it"),
        ("lora-bias.qwen2", "qwen2", "`sdrrl merge` it"),
    ] {
        let adapter = format!("tests/golden/adapters/{name}");
        let said = refused(&folder(base), &dir.path().join("x.gguf"), &["--adapter", &adapter]);
        assert!(said.contains(what) && !dir.path().join("x.gguf").exists(), "{name}: {said}");
    }
    let q4 = ["--type", "q4_k_m", "--adapter", "tests/golden/adapters/plain.llama-tied"];
    let said = refused(&folder("llama-tied"), &dir.path().join("x.gguf"), &q4);
    assert!(said.contains("F32, F16, BF16 or Q8_0"), "{said}");
}
