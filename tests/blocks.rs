//! A GGUF file's matrices kept as blocks: in the mapped file, with the bits of the dequantised ones (files: scripts/golden_gguf.py).
use std::{fs, path::Path};

use sdrrl::{
    data::gguf::Gguf,
    device::{Device, DeviceChoice},
    models::{
        transformer::{
            config::Config,
            decode::Decoder,
            ids::LinearId,
            lora::{Lora, LoraConfig},
            train_step::{PackedBatch, TrainStep, Trainable},
            tree::Leaf,
            weight::{ComputeType, Weight},
            weights::Transformer,
        },
        weights::WeightSource,
    },
    ops::quantize::GgmlType,
    tensor::{Activations, DType, Tensor},
};

use crate::common::uniform;

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
            (Gguf::open(Path::new(path)).unwrap(), WeightSource::open(Path::new(path)).unwrap());
        for (name, dims, kind) in matrices(&file) {
            kinds.push(kind);
            for compute in [ComputeType::F32, ComputeType::Bf16] {
                let leaf = leaf(&config, &name, &dims);
                let kept = source.weight(&leaf, compute, Some(Activations::F32)).unwrap();
                let dense = source.weight(&leaf, compute, None).unwrap();
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

/// Phi 3's `attn_qkv` and `ffn_up` are the rows of several linears, wherever these begin.
#[test]
fn parts_of_fused_matrices_stay_in_the_file_too() {
    let folder = Path::new("tests/golden/gguf/phi3");
    let want = Transformer::load(folder, DType::F32).unwrap();
    let file = folder.join("model.gguf");
    for blocks in [None, Some(Activations::F32)] {
        let got = Transformer::load_as(&file, ComputeType::F32, blocks).unwrap();
        assert_eq!(got.weights.layers[0].linear(LinearId::Up).unwrap().weight.is_blocks(), blocks.is_some());
        for ((name, got), (_, want)) in got.named().iter().zip(want.named()) {
            assert_eq!(got.to_f32_vec().unwrap(), want.to_f32_vec().unwrap(), "{name}");
        }
    }
}

#[test]
fn rows_and_biases_of_q_and_k_are_in_hugging_faces_order() {
    let (config, source) = WeightSource::open(Path::new(FILES[1])).unwrap();
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
    for (number, name) in [(9, "Q8_1"), (15, "Q8_K"), (26, "I32"), (28, "F64"), (41, "Q1_0"), (77, "unknown")]
    {
        let path = with_type(GgmlType::Q4K, number, dir.path());
        let (config, source) = WeightSource::open(&path).unwrap();
        for keep in [false, true] {
            let leaf = leaf(&config, "model.layers.0.self_attn.o_proj.weight", &[32, 256]);
            let weight = source.weight(&leaf, ComputeType::F32, keep.then_some(Activations::F32));
            let error = format!("{:#}", weight.unwrap_err());
            for part in ["changed.gguf", "blk.0.attn_output.weight", name, "Q4_K", "IQ4_XS"] {
                assert!(error.contains(part), "{part} is not in: {error}");
            }
        }
    }
}

#[test]
fn copies_on_a_device_share_one_scratch_of_the_largest() {
    let (config, source) = WeightSource::open(Path::new(FILES[0])).unwrap();
    let weight = |name: &str, dims: &[usize]| {
        source.weight(&leaf(&config, name, dims), ComputeType::Bf16, Some(Activations::F32)).unwrap()
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

/// Logits and hidden states of a packed prompt and of decode steps behind it, as bits.
fn inference(model: &Transformer) -> Vec<u32> {
    let device = model.device();
    let mut decoder = Decoder::new(model, 16, 32).unwrap();
    let width = model.spec.kv_size();
    let slots = || Tensor::zeros_on(&device, "cache", model.activation_dtype(), &[16, width]).unwrap();
    let mut cache: Vec<(Tensor, Tensor)> = model.spec.layers.iter().map(|_| (slots(), slots())).collect();
    let mut found = vec![];
    let mut keep = |decoder: &Decoder, hidden: &Tensor| {
        let (n, v) = (hidden.shape()[0], model.spec.vocab_size);
        let mut logits = Tensor::zeros_on(&device, "logits", DType::F32, &[n, v]).unwrap();
        decoder.logits(model, &mut logits, hidden).unwrap();
        found.extend(logits.to_f32_vec().unwrap().into_iter().map(f32::to_bits));
        found.extend(hidden.to_f32_vec().unwrap().into_iter().map(f32::to_bits));
    };
    let hidden = decoder.prompts(model, &[&[1, 5, 9, 70, 2]], Some(&mut cache), &[0]).unwrap();
    keep(&decoder, &hidden);
    for (token, length) in [(33, 5), (95, 6)] {
        let hidden = decoder.step(model, &[(token, 0, length)], &mut cache).unwrap();
        keep(&decoder, &hidden);
    }
    assert!(found.iter().all(|&x| f32::from_bits(x).is_finite()));
    found
}

fn with_random_b(lora: &mut Lora) {
    for layer in &mut lora.layers {
        for &id in LinearId::ALL {
            let Some(adapter) = &mut layer[id] else { continue };
            adapter.b.write_f32(&uniform("b", adapter.b.len())).unwrap();
        }
    }
}

/// The loss of a step with adapters, and all their gradients, as bits.
fn lora_step(model: &mut Transformer) -> Vec<u32> {
    let mut lora = Lora::init(model, LoraConfig { r: 2, ..Default::default() }, 1).unwrap();
    // From B = 0 there would be no gradient of A.
    with_random_b(&mut lora);
    let mut step = TrainStep::new(model, Trainable::Lora(lora), 24).unwrap();
    let mut batch = PackedBatch::default();
    batch.push(&[1, 7, 60, 3, 2], &[0.0, 0.0, 1.0, 1.0, 1.0]);
    batch.push(&[1, 94, 8, 8, 20, 31, 2], &[0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    let loss = step.forward_backward(model, &batch, 0.5).unwrap();
    let mut found = vec![loss.weighted_nll.to_bits() as u32, (loss.weighted_nll.to_bits() >> 32) as u32];
    for p in step.params(model) {
        let grad = p.grad().to_f32_vec().unwrap();
        assert!(grad.iter().all(|x| x.is_finite()) && grad.iter().any(|&x| x != 0.0), "{}", p.name);
        found.extend(grad.into_iter().map(f32::to_bits));
    }
    found
}

/// Inference and a training step over blocks against the same over the dequantised model.
fn kept_equals_dequantised(compute: ComputeType, device: DeviceChoice) {
    for path in FILES {
        let load = |keep: bool| {
            Transformer::load_as(Path::new(path), compute, keep.then_some(Activations::F32))
                .unwrap()
                .place(device)
                .unwrap()
        };
        let (mut kept, mut dense) = (load(true), load(false));
        assert!(kept.weights.embed_tokens.is_blocks() && !dense.weights.embed_tokens.is_blocks());
        assert_eq!(kept.activation_dtype(), compute.activations(&kept.device()));
        assert!(inference(&kept) == inference(&dense), "{path} {compute} {device}");
        assert!(lora_step(&mut kept) == lora_step(&mut dense), "{path} {compute} {device}");
    }
}

#[test]
fn logits_and_adapter_gradients_have_the_bits_of_the_dequantised_model() {
    kept_equals_dequantised(ComputeType::F32, DeviceChoice::Cpu);
    kept_equals_dequantised(ComputeType::Bf16, DeviceChoice::Cpu);
}

#[test]
fn on_a_gpu_too() {
    kept_equals_dequantised(ComputeType::F32, DeviceChoice::Emulated);
    kept_equals_dequantised(ComputeType::Bf16, DeviceChoice::Emulated);
}

/// What a kept model counts is what the file holds; on a GPU, that in whole words and one scratch.
#[test]
fn kept_blocks_cost_the_files_bytes() {
    for path in FILES {
        let file = Gguf::open(Path::new(path)).unwrap();
        let stored: usize = file
            .tensors
            .iter()
            .map(|t| {
                let (values, size) = GgmlType::readable(t.ggml_type).unwrap().block();
                t.dims.iter().product::<usize>() / values * size
            })
            .sum();
        let kept = Transformer::load_as(Path::new(path), ComputeType::Bf16, Some(Activations::F32)).unwrap();
        assert_eq!(kept.bytes(), stored, "{path}");
        let dense = Transformer::load_as(Path::new(path), ComputeType::Bf16, None).unwrap();
        assert!(dense.bytes() > stored, "{path}: {} and {stored}", dense.bytes());
        let device = Device::emulated();
        let there = kept.to_device(&device).unwrap();
        assert_eq!(there.bytes(), stored);
        let tensors = file.tensors.len();
        let peak = device.gpu().unwrap().peak_bytes();
        assert!(peak <= stored + 3 * tensors + 2 * 256 * 32, "{path}: {peak} of {stored}");
        let back = there.to_device(&Device::Cpu).unwrap();
        assert!(back.weights.embed_tokens.is_blocks() && inference(&back) == inference(&kept));
    }
}

#[test]
fn merging_and_writing_unpack_to_the_runs_type() {
    let dir = tempfile::tempdir().unwrap();
    for compute in [ComputeType::F32, ComputeType::Bf16] {
        let load = |keep: bool| {
            Transformer::load_as(Path::new(FILES[0]), compute, keep.then_some(Activations::F32)).unwrap()
        };
        for use_dora in [false, true] {
            let (mut kept, mut dense) = (load(true), load(false));
            let config = LoraConfig {
                r: 2,
                use_dora,
                target_modules: vec!["q_proj".into()].into(),
                ..Default::default()
            };
            let mut lora = Lora::init(&kept, config, 1).unwrap();
            with_random_b(&mut lora);
            kept.apply_adapter(&lora).unwrap();
            dense.apply_adapter(&lora).unwrap();
            let weight = |id| &kept.weights.layers[0].linear(id).unwrap().weight;
            assert!(!weight(LinearId::Q).is_blocks() && weight(LinearId::K).is_blocks());
            assert_eq!(weight(LinearId::Q).dtype(), compute.dtype());
            assert!(inference(&kept) == inference(&dense), "{compute} {use_dora}");
            let out = |name: &str| dir.path().join(name);
            kept.save_pretrained(&out("kept"), compute.dtype().try_into().unwrap(), None).unwrap();
            dense.save_pretrained(&out("dense"), compute.dtype().try_into().unwrap(), None).unwrap();
            let bytes = |name: &str| fs::read(out(name).join("model.safetensors")).unwrap();
            assert!(bytes("kept") == bytes("dense"), "{compute} {use_dora}");
        }
    }
}

#[test]
fn training_all_weights_needs_tensors() {
    let mut model =
        Transformer::load_as(Path::new(FILES[0]), ComputeType::F32, Some(Activations::F32)).unwrap();
    let error = format!("{:#}", TrainStep::new(&model, Trainable::Full, 8).err().unwrap());
    assert!(error.contains("training all weights") && error.contains("embed_tokens.weight Q8_0"), "{error}");
    model.make_trainable().unwrap();
    assert!(!model.weights.embed_tokens.is_blocks());
    TrainStep::new(&model, Trainable::Full, 8).unwrap();
}
