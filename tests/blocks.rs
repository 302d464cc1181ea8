//! A GGUF file's matrices kept as blocks: in the mapped file, with the bits of the dequantised ones (files: scripts/golden_gguf.py).
use std::{fs, path::Path};

use sdrrl::{
    data::gguf::Gguf,
    device::Device,
    models::{
        transformer::{
            config::Config,
            tree::Leaf,
            weight::{ComputeType, Weight},
        },
        weights::Source,
    },
    ops::quantize::GgmlType,
    tensor::DType,
};

const FILES: [&str; 2] = ["tests/golden/gguf/blocks.gguf", "tests/golden/gguf/plain.gguf"];

/// Hugging Face's name and the shape of every matrix, by the file's directory.
fn matrices(file: &Gguf) -> Vec<(String, [usize; 2], GgmlType)> {
    let modules = [
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ];
    let name = |ggml: &str| match ggml.split('.').collect::<Vec<_>>()[..] {
        ["token_embd", ..] => "model.embed_tokens.weight".to_string(),
        ["output", ..] => "lm_head.weight".to_string(),
        [_, layer, stem, kind] => {
            let module = modules.iter().find(|m| m.0 == stem).unwrap().1;
            format!("model.layers.{layer}.{module}.{kind}")
        }
        _ => panic!("{ggml}"),
    };
    let two = file.tensors.iter().filter(|t| t.dims.len() == 2);
    two.map(|t| (name(&t.name), [t.dims[1], t.dims[0]], GgmlType::readable(t.ggml_type).unwrap())).collect()
}

/// The tensor of a decoder by its name, with the shape that is expected.
fn leaf(config: &Config, name: &str, dims: &[usize]) -> Leaf {
    let leaves = config.spec().unwrap().leaves();
    let found = leaves.into_iter().find(|leaf| leaf.name == name).unwrap_or_else(|| panic!("no {name}"));
    Leaf { dims: dims.to_vec(), ..found }
}

#[test]
fn matrices_stay_in_the_file_with_the_values_of_the_dequantised_ones() {
    let mut kinds = vec![];
    for path in FILES {
        let (file, (config, source)) =
            (Gguf::open(Path::new(path)).unwrap(), Source::open(Path::new(path)).unwrap());
        for (name, dims, kind) in matrices(&file) {
            kinds.push(kind);
            for compute in [ComputeType::F32, ComputeType::Bf16] {
                let leaf = leaf(&config, &name, &dims);
                let kept = source.weight(&leaf, compute, true).unwrap();
                let dense = source.weight(&leaf, compute, false).unwrap();
                assert!(!dense.is_blocks());
                assert_eq!(kept.dtype(), compute.dtype());
                assert_eq!(kept.to_f32_vec().unwrap(), dense.to_f32_vec().unwrap(), "{name} {compute}");
                let (values, size) = kind.block();
                assert_eq!(kept.bytes(), dims[0] * dims[1] / values * size, "{name}");
                assert_eq!((kept.rows_cols(), kept.name()), ((dims[0], dims[1]), name.as_str()));
                match &kept {
                    Weight::Blocks(b) => assert!(b.is_mapped() && b.format().kind == kind, "{name}"),
                    Weight::Dense(_) => assert_eq!(kind.name().to_lowercase(), compute.to_string(), "{name}"),
                }
            }
        }
    }
    for &kind in GgmlType::ALL {
        assert!(kinds.contains(&kind), "{kind:?} is in no file");
    }
}

#[test]
fn rows_and_biases_of_q_and_k_are_in_hugging_faces_order() {
    let (config, source) = Source::open(Path::new(FILES[1])).unwrap();
    for (module, rows) in [("q_proj", 256), ("k_proj", 32), ("v_proj", 32)] {
        let leaf = leaf(&config, &format!("model.layers.0.self_attn.{module}.bias"), &[rows]);
        let bias = source.leaf(&leaf, DType::F32);
        let want: Vec<f32> = (0..rows).map(|i| i as f32 / 1024.0).collect();
        assert_eq!(bias.unwrap().to_f32_vec().unwrap(), want, "{module}");
    }
}

/// A copy of a file in which the types `from` of the directory are `to`.
fn with_type(from: GgmlType, to: u32, dir: &Path) -> std::path::PathBuf {
    let mut bytes = fs::read(FILES[0]).unwrap();
    let file = Gguf::open(Path::new(FILES[0])).unwrap();
    for t in file.tensors.iter().filter(|t| t.ggml_type == from.number()) {
        // The name, the number of dimensions, each of them, then the type.
        let at = bytes.windows(t.name.len()).position(|w| w == t.name.as_bytes()).unwrap();
        let at = at + t.name.len() + 4 + 8 * t.dims.len();
        bytes[at..at + 4].copy_from_slice(&to.to_le_bytes());
    }
    let path = dir.join("changed.gguf");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_type_that_cannot_be_read_is_named_with_the_tensor_and_those_that_can() {
    let dir = tempfile::tempdir().unwrap();
    for (number, name) in
        [(16, "IQ2_XXS"), (19, "IQ1_S"), (21, "IQ3_S"), (34, "TQ1_0"), (39, "MXFP4"), (77, "unknown")]
    {
        let path = with_type(GgmlType::Q4K, number, dir.path());
        let (config, source) = Source::open(&path).unwrap();
        for keep in [false, true] {
            let leaf = leaf(&config, "model.layers.0.self_attn.o_proj.weight", &[32, 256]);
            let weight = source.weight(&leaf, ComputeType::F32, keep);
            let error = format!("{:#}", weight.unwrap_err());
            for part in ["changed.gguf", "blk.0.attn_output.weight", name, "Q4_K", "IQ4_XS"] {
                assert!(error.contains(part), "{part} is not in: {error}");
            }
        }
    }
}

#[test]
fn copies_on_a_device_share_one_scratch_of_the_largest() {
    let (config, source) = Source::open(Path::new(FILES[0])).unwrap();
    let weight = |name: &str, dims: &[usize]| {
        source.weight(&leaf(&config, name, dims), ComputeType::Bf16, true).unwrap()
    };
    let all = [
        weight("model.layers.0.self_attn.q_proj.weight", &[256, 32]),
        weight("model.layers.1.mlp.down_proj.weight", &[32, 256]),
        weight("model.embed_tokens.weight", &[96, 32]),
    ];
    let device = Device::emulated();
    let scratch = Weight::scratch(&all, &device, ComputeType::Bf16).unwrap();
    for w in &all {
        let there = w.to_device(&device, &scratch).unwrap();
        assert!(there.is_blocks() && there.bytes() == w.bytes() && there.device() == device);
        assert_eq!(there.to_f32_vec().unwrap(), w.to_f32_vec().unwrap(), "{w:?}");
    }
    assert_eq!(scratch.bytes(), 2 * 256 * 32);
    let none = Weight::scratch(&all[..0], &device, ComputeType::Bf16).unwrap();
    assert_eq!(none.bytes(), 2, "one value where there are no blocks");
}
