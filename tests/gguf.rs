//! GGUF files of other people: metadata that changes the arithmetic, split models, files that are no models.
use std::path::{Path, PathBuf};

use sdrrl::{
    data::{
        gguf::{Gguf, parts_by_name},
        tokenizer::Tokenizer,
    },
    infer::generation_config::GenerationConfig,
    models::{
        transformer::{config::Config, weights::Transformer},
        weights::stored::Stored,
    },
    ops::quantize::PackedType,
    tensor::DType,
};

use crate::{
    common::gguf::{Plain, Typed, Value, bytes, llama, llama_tensors, typed_bytes},
    models::folder,
};

fn write(dir: &Path, name: &str, metadata: &[(String, Value)], tensors: &[Plain]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes(metadata, tensors)).unwrap();
    path
}

/// The configuration of a small Llama with these metadata.
fn config(more: Vec<(&str, Value)>, extra: &[Plain]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "m.gguf", &llama(more), &[llama_tensors(), extra.to_vec()].concat());
    Gguf::open(&path).and_then(|gguf| Config::from_gguf(&gguf)).map_err(|e| format!("{e:#}"))
}

fn frequencies(more: Vec<(&str, Value)>, extra: &[Plain], length: usize) -> (Vec<f64>, f64) {
    config(more, extra).unwrap().spec().unwrap().ropes[0].frequencies(length).unwrap()
}

fn close(got: &[f64], want: &[f64]) {
    assert!(
        got.len() == want.len() && got.iter().zip(want).all(|(g, w)| (g / w - 1.0).abs() < 1e-6),
        "{got:?} {want:?}"
    );
}

/// Llama 3's scaling, which llama.cpp's converter writes as a factor for each frequency.
#[test]
fn factors_of_the_rotary_frequencies_are_applied() {
    let own = Transformer::load(&folder("llama-rope-llama3"), DType::F32).unwrap();
    let gguf = Transformer::load(&folder("llama-rope-llama3").join("model.gguf"), DType::F32).unwrap();
    for length in [1, 40] {
        let (got, want) = (gguf.spec.ropes[0].frequencies(length), own.spec.ropes[0].frequencies(length));
        close(&got.unwrap().0, &want.unwrap().0);
    }
    for ((name, got), (_, want)) in gguf.named().iter().zip(own.named()) {
        assert_eq!(got.to_f32_vec().unwrap(), want.to_f32_vec().unwrap(), "{name}");
    }
    // What is exported is read by transformers: the same frequencies in its own words.
    let dir = tempfile::tempdir().unwrap();
    gguf.save_pretrained(dir.path(), Stored::F32, None).unwrap();
    let again = Transformer::load(dir.path(), DType::F32).unwrap();
    assert_eq!(again.spec.ropes[0].frequencies(9).unwrap(), gguf.spec.ropes[0].frequencies(9).unwrap());
}

#[test]
fn every_key_of_scaling_is_understood() {
    let plain = frequencies(vec![], &[], 8).0;
    let scaled = |by: f64| plain.iter().map(|f| f / by).collect::<Vec<_>>();
    let kind = |k| ("llama.rope.scaling.type", Value::Text(k));
    let factor = |f| ("llama.rope.scaling.factor", Value::Number(f));
    // The first files have one number, and files without a type stretch positions.
    close(&frequencies(vec![("llama.rope.scale_linear", Value::Number(4.0))], &[], 8).0, &scaled(4.0));
    close(&frequencies(vec![factor(4.0)], &[], 8).0, &scaled(4.0));
    close(&frequencies(vec![kind("linear"), factor(4.0)], &[], 8).0, &scaled(4.0));
    close(&frequencies(vec![kind("none"), factor(4.0)], &[], 8).0, &plain);
    let original = ("llama.rope.scaling.original_context_length", Value::Count(16));
    let (yarn, attention) = frequencies(vec![kind("yarn"), factor(4.0), original], &[], 8);
    assert!((attention - (1.0 + 0.1 * 4f64.ln())).abs() < 1e-9 && yarn[0] == plain[0] && yarn[3] < plain[3]);
    let lists = |long: &[f32]| -> Vec<Plain> {
        let list = |name: &str, x: &[f32]| (format!("rope_factors_{name}.weight"), vec![x.len()], x.to_vec());
        vec![list("short", &[1.0, 1.0, 2.0, 2.0]), list("long", long)]
    };
    let more = || {
        vec![
            kind("longrope"),
            ("llama.rope.scaling.original_context_length", Value::Count(16)),
            ("llama.rope.scaling.attn_factor", Value::Number(1.25)),
        ]
    };
    let (short, attention) = frequencies(more(), &lists(&[4.0; 4]), 16);
    close(&short, &[plain[0], plain[1], plain[2] / 2.0, plain[3] / 2.0]);
    assert_eq!(attention, 1.25);
    close(&frequencies(more(), &lists(&[4.0; 4]), 17).0, &scaled(4.0));
    for (more, extra, what) in [
        (vec![kind("su")], vec![], "rope.scaling.type is su"),
        (vec![kind("yarn")], vec![], "no rope.scaling.factor"),
        (vec![kind("yarn"), factor(2.0)], lists(&[4.0; 4]), "the two together"),
        (more(), lists(&[4.0; 3]), "`long_factor` has 3 factors for 4"),
        (more(), lists(&[4.0, 4.0, -1.0, 4.0]), "long_factor"),
        (more(), lists(&[4.0; 4])[..1].to_vec(), "no tensor rope_factors_long.weight"),
    ] {
        let error = config(more, &extra).map(|c| c.model_type).unwrap_err();
        assert!(error.contains(what), "{what}: {error}");
    }
}

#[test]
fn keys_that_are_not_understood_are_refused_by_name() {
    for (key, value) in [
        ("llama.expert_shared_count", Value::Count(1)),
        ("llama.expert_feed_forward_length", Value::Count(8)),
        ("llama.final_logit_softcapping", Value::Number(30.0)),
        ("llama.attn_logit_softcapping", Value::Number(50.0)),
        ("llama.rope.freq_base_swa", Value::Number(10000.0)),
        ("llama.logit_scale", Value::Number(0.5)),
        ("llama.attention.key_of_tomorrow", Value::Flag(true)),
        ("llama.attention.causal", Value::Flag(false)),
        ("llama.rope.dimension_sections", Value::Integers(&[2, 2])),
        ("llama.rope.dimension_count", Value::Count(4)),
        ("llama.attention.value_length", Value::Count(4)),
        ("llama.rope.scaling.yarn_ext_factor", Value::Number(0.5)),
    ] {
        let error = config(vec![(key, value)], &[]).unwrap_err();
        assert!(error.contains(key), "{key}: {error}");
    }
    for (architecture, window, taken) in
        [("qwen2", 8, false), ("qwen3", 63, false), ("qwen2", 64, true), ("qwen3", 0, true)]
    {
        let more = vec![
            ("llama.attention.sliding_window", Value::Count(window)),
            ("general.architecture", Value::Text(architecture)),
        ];
        let metadata: Vec<(String, Value)> = llama(more)
            .into_iter()
            .map(|(key, v)| (key.replace("llama.", &format!("{architecture}.")), v))
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "m.gguf", &metadata, &llama_tensors());
        let config =
            Gguf::open(&path).and_then(|gguf| Config::from_gguf(&gguf)).map_err(|e| format!("{e:#}"));
        let said = config.err().unwrap_or_default();
        assert_eq!(said.is_empty(), taken, "{architecture} {window}: {said}");
        assert!(taken || said.contains("sliding_window"), "{said}");
    }
    let harmless = vec![
        ("llama.expert_count", Value::Count(0)),
        ("llama.attention.causal", Value::Flag(true)),
        ("llama.rope.dimension_count", Value::Count(8)),
        ("llama.logit_scale", Value::Number(1.0)),
        ("general.name", Value::Text("anything")),
    ];
    config(harmless, &[]).unwrap();
}

/// What a file leaves out is what llama.cpp takes, not the defaults of Hugging Face's classes.
#[test]
fn absent_keys_are_llama_cpps_defaults() {
    let mut metadata = llama(vec![("general.architecture", Value::Text("qwen2"))]);
    metadata.retain(|(key, _)| key != "llama.attention.head_count_kv");
    for (key, _) in &mut metadata {
        *key = key.replace("llama.", "qwen2.");
    }
    let dir = tempfile::tempdir().unwrap();
    let config =
        Config::from_gguf(&Gguf::open(&write(dir.path(), "m.gguf", &metadata, &llama_tensors())).unwrap())
            .unwrap();
    let found = (config.kv_heads(), config.head_size(), config.eos(), config.rope_theta);
    assert_eq!(found, (2, 8, vec![], Some(10000.0)));
    assert!(config.spec().unwrap().layers.iter().all(|l| l.window.is_none()));
}

#[test]
fn files_that_are_no_models_are_named_as_what_they_are() {
    for (more, what) in [
        (vec![("general.type", Value::Text("adapter"))], "an adapter"),
        (vec![("general.type", Value::Text("imatrix"))], "an importance matrix"),
        (vec![("general.type", Value::Text("mmproj"))], "the image part"),
        (vec![("general.architecture", Value::Text("clip"))], "the image part"),
        (vec![("general.architecture", Value::Text("controlvector"))], "a control vector"),
        (vec![("general.architecture", Value::Text("mamba"))], "architecture is mamba"),
    ] {
        let error = config(more, &[]).unwrap_err();
        assert!(error.contains(what), "{what}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "vocab.gguf", &llama(vec![]), &[]);
    let error = format!("{:#}", Transformer::load(&path, DType::F32).unwrap_err());
    assert!(error.contains("a vocabulary alone"), "{error}");
}

/// Parts of a split model, as llama.cpp's gguf-split writes them: the first has the metadata.
fn split(dir: &Path, count: u32) -> Vec<PathBuf> {
    let tensors = llama_tensors();
    let size = tensors.len().div_ceil(count as usize);
    (0..count)
        .map(|i| {
            let own = tensors.chunks(size).nth(i as usize).unwrap();
            let mut metadata = if i == 0 { llama(vec![]) } else { vec![] };
            for (key, n) in
                [("split.no", i), ("split.count", count), ("split.tensors.count", tensors.len() as u32)]
            {
                metadata.push((key.into(), Value::Count(n)));
            }
            write(dir, &format!("m-{:05}-of-{count:05}.gguf", i + 1), &metadata, own)
        })
        .collect()
}

#[test]
fn split_models_are_read_whole_or_the_missing_part_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let whole = write(dir.path(), "whole.gguf", &llama(vec![]), &llama_tensors());
    let parts = split(dir.path(), 3);
    let values = |path: &Path| -> Vec<(String, Vec<f32>)> {
        let model = Transformer::load(path, DType::F32).unwrap();
        model.named().iter().map(|(name, t)| (name.clone(), t.to_f32_vec().unwrap())).collect()
    };
    for path in &parts {
        assert!(values(path) == values(&whole), "{}", path.display());
    }
    assert_eq!(parts_by_name(&parts[1]).as_ref(), Some(&parts));
    for name in
        ["m.gguf", "m-00001-of-3.gguf", "m-1-of-00003.gguf", "-of-00003.gguf", "m-0000x-of-00003.gguf"]
    {
        assert_eq!(parts_by_name(Path::new(name)), None, "{name}");
    }
    let error = |path: &Path| format!("{:#}", Transformer::load(path, DType::F32).unwrap_err());
    let renamed = dir.path().join("model.gguf");
    std::fs::copy(&parts[0], &renamed).unwrap();
    assert!(error(&renamed).contains("one of the 3 files"), "{}", error(&renamed));
    // A part under another one's name.
    std::fs::copy(&parts[1], &parts[2]).unwrap();
    assert!(error(&parts[0]).contains("m-00003-of-00003.gguf says that it is part"), "{}", error(&parts[0]));
    std::fs::remove_file(&parts[2]).unwrap();
    let missing = error(&parts[0]);
    assert!(
        missing.contains("1 of them are not there") && missing.contains("m-00003-of-00003.gguf"),
        "{missing}"
    );
}

#[test]
fn a_big_endian_file_is_called_that() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "m.gguf", &llama(vec![]), &[]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4..8].reverse();
    let error = format!("{:#}", sdrrl::data::gguf::parse(&bytes).unwrap_err());
    assert!(error.contains("big-endian"), "{error}");
}

/// A turn ends with what the file names for it, or with a control token that says so by its text.
#[test]
fn turns_end_with_any_end_token_of_the_file() {
    let tokens = ["<s>", "</s>", "<|eot_id|>", "<|eom_id|>", "a", "b", "<|im_end|>"];
    let eos = |more: Vec<(&str, Value)>, kinds: &[i32]| -> Vec<u32> {
        let mut metadata = llama(vec![
            ("tokenizer.ggml.model", Value::Text("gpt2")),
            ("tokenizer.ggml.pre", Value::Text("gpt-2")),
            ("tokenizer.ggml.tokens", Value::Texts(&tokens)),
            ("tokenizer.ggml.merges", Value::Texts(&[])),
            ("tokenizer.ggml.eos_token_id", Value::Count(1)),
            ("tokenizer.ggml.token_type", Value::Integers(kinds)),
        ]);
        metadata.extend(more.into_iter().map(|(key, value)| (key.to_string(), value)));
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "m.gguf", &metadata, &[]);
        let mut eos = Tokenizer::load(&path).unwrap().eos().to_vec();
        eos[1..].sort();
        eos
    };
    let named = vec![
        ("tokenizer.ggml.eot_token_id", Value::Count(2)),
        ("tokenizer.ggml.eom_token_id", Value::Count(3)),
    ];
    assert_eq!(eos(named, &[3, 3, 3, 3, 1, 1, 1]), [1, 2, 3]);
    assert_eq!(eos(vec![], &[3, 3, 3, 1, 1, 1, 3]), [1, 2, 6]);
    assert_eq!(eos(vec![], &[3, 3, 1, 1, 1, 1, 1]), [1]);
}

/// What a file asks for when it generates.
#[test]
fn a_files_own_sampling_is_taken_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let asked = |more: Vec<(&str, Value)>| {
        GenerationConfig::from_model(&write(dir.path(), "m.gguf", &llama(more), &llama_tensors())).unwrap()
    };
    let config = asked(vec![
        ("tokenizer.ggml.suppress_tokens", Value::Integers(&[3, 5])),
        ("general.sampling.temp", Value::Number(0.7)),
        ("general.sampling.top_k", Value::Count(40)),
        ("general.sampling.min_p", Value::Number(0.0)),
    ]);
    config.refuse_unsupported(0.7).unwrap();
    assert_eq!(
        (config.rules.suppress_tokens.clone(), config.temperature, config.top_k),
        (vec![3, 5], Some(0.7), Some(40))
    );
    let config = asked(vec![("general.sampling.mirostat", Value::Count(2))]);
    config.refuse_unsupported(0.0).unwrap();
    assert!(config.refuse_unsupported(1.0).unwrap_err().to_string().contains("general.sampling.mirostat"));
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// Bits equal to the gguf package's (scripts/golden_packed.py).
#[test]
fn packed_types_have_the_bits_of_the_gguf_package() {
    let text = std::fs::read_to_string("tests/golden/gguf/packed.json").unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let types = golden["types"].as_object().unwrap();
    assert_eq!(types.len(), PackedType::ALL.len());
    for &kind in PackedType::ALL {
        let case = &types[&kind.number().to_string()];
        let (blocks, values) =
            (unhex(case["bytes"].as_str().unwrap()), unhex(case["values"].as_str().unwrap()));
        let mut got = vec![0.0; values.len() / 4];
        assert_eq!(blocks.len() / kind.block().1 * kind.block().0, got.len(), "{kind:?}");
        kind.dequantize(&blocks, &mut got);
        let want = values.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert!(
                got.to_bits() == want.to_bits() || (*got == 0.0 && want == 0.0),
                "{kind:?} {i}: {got} {want}"
            );
        }
    }
}

/// A model whose matrices are of those types, with the rows of q and k put back.
#[test]
fn models_of_packed_types_are_read() {
    let metadata = || {
        llama(vec![
            ("llama.embedding_length", Value::Count(256)),
            ("llama.feed_forward_length", Value::Count(256)),
            ("llama.attention.head_count", Value::Count(4)),
            ("llama.attention.head_count_kv", Value::Count(4)),
        ])
    };
    let text = std::fs::read_to_string("tests/golden/gguf/packed.json").unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for &kind in PackedType::ALL {
        let block = unhex(golden["types"][kind.number().to_string()]["bytes"].as_str().unwrap());
        let (n, size) = kind.block();
        let tensor = |(name, dims, _): Plain| -> Typed {
            let matrix = dims.len() == 2;
            let dims: Vec<usize> = dims.iter().map(|&d| if d == 32 { 32 } else { 256 }).collect();
            let values: usize = dims.iter().product();
            if !matrix {
                return (name, dims, 0, vec![0; values * 4]);
            }
            // Rows differ: each begins at another of the golden blocks.
            let row = |r: usize| (0..256 / n).flat_map(move |i| [(r + i) % 3]).collect::<Vec<_>>();
            let bytes = (0..dims[0]).flat_map(row).flat_map(|b| block[b * size..][..size].to_vec()).collect();
            (name, dims, kind.number(), bytes)
        };
        let tensors: Vec<Typed> = llama_tensors().into_iter().map(tensor).collect();
        let path = dir.path().join("m.gguf");
        std::fs::write(&path, typed_bytes(&metadata(), &tensors)).unwrap();
        let model = Transformer::load(&path, DType::F32).unwrap();
        let own = |name: &str| {
            let (.., bytes) = tensors.iter().find(|t| t.0 == name).unwrap();
            let mut out = vec![0.0; bytes.len() / size * n];
            kind.dequantize(bytes, &mut out);
            out
        };
        let read =
            |name: &str| model.named().iter().find(|(n, _)| n == name).unwrap().1.to_f32_vec().unwrap();
        assert_eq!(read("model.layers.0.self_attn.v_proj.weight"), own("blk.0.attn_v.weight"), "{kind:?}");
        let (got, want) = (read("model.layers.0.self_attn.q_proj.weight"), own("blk.0.attn_q.weight"));
        // Heads of 64: row 33 of a head is the second half's second, which the file has as row 3.
        assert_eq!(got[(64 + 33) * 256..][..256], want[(64 + 3) * 256..][..256], "{kind:?}");
    }
}
