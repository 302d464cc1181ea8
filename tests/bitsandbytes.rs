//! Directories that transformers wrote with matrices quantised by bitsandbytes. The references are by scripts/golden_bitsandbytes.py.
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sdrrl::{
    device::Device,
    models::{
        transformer::{
            linear::Rows,
            lora::{Lora, LoraConfig},
            train_step::{PackedBatch, TrainStep, Trainable},
            weight::ComputeType,
            weights::Transformer,
        },
        weights::{safetensors::Checkpoint, stored::Stored},
    },
    pipeline::placement::Placement,
    tensor::{Activations, DType, Tensor},
};

use crate::common::assert_close;

const KINDS: [&str; 4] = ["nf4-double", "nf4", "fp4", "int8"];
const UP: &str = "model.layers.0.mlp.up_proj.weight";

fn golden(name: &str) -> PathBuf {
    Path::new("tests/golden/bitsandbytes").join(name)
}

fn expected(name: &str) -> Vec<f32> {
    let expected = Checkpoint::open_file(&golden("expected.safetensors")).unwrap();
    let shape = expected.shape(name).unwrap().to_vec();
    expected.tensor(name, &shape, DType::F32).unwrap().to_f32_vec().unwrap()
}

fn logits(model: &Transformer) -> Vec<f32> {
    let ids: Vec<u32> = serde_json::from_slice(&fs::read(golden("ids.json")).unwrap()).unwrap();
    let mut batch = PackedBatch::default();
    batch.push(&ids, &vec![1.0; ids.len()]);
    let lora = Lora::init(model, LoraConfig::default(), 1).unwrap();
    let mut step = TrainStep::new(model, Trainable::Lora(lora), 32).unwrap();
    step.forward(model, &batch).unwrap();
    let dims = [ids.len(), model.config.vocab_size];
    let mut logits = Tensor::zeros_on(&Device::Cpu, "logits", DType::F32, &dims).unwrap();
    model.logits(&mut logits, &step.hidden(ids.len()).unwrap(), Rows::Any).unwrap();
    logits.to_f32_vec().unwrap()
}

#[test]
fn values_are_bitsandbytes_and_logits_are_transformers() {
    for kind in KINDS {
        let checkpoint = Checkpoint::open(&golden(kind)).unwrap();
        let up = checkpoint.tensor(UP, &[192, 64], DType::F32).unwrap().to_f32_vec().unwrap();
        assert_eq!(up, expected(&format!("{kind}.up")), "{kind}");
        let model = Transformer::load(&golden(kind), DType::F32).unwrap();
        assert_close(kind, logits(&model), &expected(kind), 1e-5);
    }
}

#[test]
fn nf4_that_is_kept_has_the_bits_of_what_is_unpacked() {
    for kind in ["nf4-double", "nf4"] {
        for compute in [ComputeType::F32, ComputeType::Bf16] {
            let load = |kept| Transformer::load_as(&golden(kind), compute, kept).unwrap();
            let (dense, kept) = (load(None), load(Some(Activations::F32)));
            let up = |model: &Transformer| {
                model.named().into_iter().find(|(name, _)| name == UP).unwrap().1.bytes()
            };
            // 36 bytes for 64 values.
            assert_eq!((up(&kept), up(&dense)), (192 * 64 / 64 * 36, 192 * 64 * compute.dtype().bytes()));
            assert_eq!(logits(&dense), logits(&kept), "{kind} {compute}");
        }
    }
}

#[test]
fn what_is_not_kept_is_refused_by_name() {
    let stored = |kind: &str, activations| {
        let base_dtype = "stored".parse().unwrap();
        let placement = Placement { base_dtype, activations, ..Placement::default() };
        Transformer::check_blocks(&golden(kind), placement).map_err(|e| format!("{e:#}"))
    };
    assert_eq!(stored("nf4", Activations::F32), Ok(()));
    for (kind, activations, parts) in [
        ("fp4", Activations::F32, ["where they are NF4", "leave --base-dtype out"]),
        ("int8", Activations::F32, ["8 bits by bitsandbytes", "leave --base-dtype out"]),
        ("nf4", Activations::Int8, ["activations in int8", "leave --activations out"]),
    ] {
        let error = stored(kind, activations).unwrap_err();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

/// Written again it is a model like others.
#[test]
fn a_written_model_is_no_longer_quantised() {
    let dir = tempfile::tempdir().unwrap();
    let model = Transformer::load(&golden("nf4-double"), DType::F32).unwrap();
    model.save_pretrained(dir.path(), Stored::F32, None).unwrap();
    let config = fs::read_to_string(dir.path().join("config.json")).unwrap();
    assert!(!config.contains("quant"), "{config}");
    assert_eq!(logits(&Transformer::load(dir.path(), DType::F32).unwrap()), logits(&model));
}

type Parts = HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// The error of a copy whose tensors were changed.
fn damaged(kind: &str, change: &dyn Fn(&mut Parts)) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(golden(kind).join("config.json"), dir.path().join("config.json")).unwrap();
    let bytes = fs::read(golden(kind).join("model.safetensors")).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let mut parts: Parts = (read.tensors().into_iter())
        .map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
        .collect();
    change(&mut parts);
    let views = parts.iter().map(|(name, (dtype, shape, data))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(dir.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    match Transformer::load(dir.path(), DType::F32) {
        Ok(_) => "accepted".into(),
        Err(e) => format!("{e:#}"),
    }
}

#[test]
fn damage_is_named_by_the_tensor() {
    let state = format!("{UP}.quant_state.bitsandbytes__nf4");
    let with_state = |from: &'static str, to: &'static str| {
        let state = state.clone();
        move |parts: &mut Parts| {
            let entry = parts.get_mut(&state).unwrap();
            let text = String::from_utf8(entry.2.clone()).unwrap();
            assert!(text.contains(from), "{text}");
            entry.2 = text.replace(from, to).into_bytes();
            entry.1 = vec![entry.2.len()];
        }
    };
    let without = |end: &'static str| {
        move |parts: &mut Parts| {
            parts.remove(&format!("{UP}{end}")).unwrap();
        }
    };
    let nan = |parts: &mut Parts| {
        let absmax = parts.get_mut(&format!("{UP}.nested_absmax")).unwrap();
        absmax.2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    };
    let short = |parts: &mut Parts| {
        let absmax = parts.get_mut(&format!("{UP}.absmax")).unwrap();
        absmax.2.pop();
        absmax.1 = vec![absmax.2.len()];
    };
    let codes = |parts: &mut Parts| {
        let weight = parts.get_mut(UP).unwrap();
        weight.2.pop();
        weight.1 = vec![weight.2.len(), 1];
    };
    let cases: [(&str, Box<dyn Fn(&mut Parts)>, &str); 9] = [
        ("nf4-double", Box::new(without(".absmax")), "absmax is not there"),
        ("nf4-double", Box::new(without(".nested_absmax")), "nested_absmax is not there"),
        ("nf4-double", Box::new(without("")), "is not there"),
        ("nf4-double", Box::new(short), "absmax is (U8, 191), expected (U8, 192)"),
        ("nf4-double", Box::new(codes), "6143 bytes for 12288 values of 4 bits"),
        ("nf4-double", Box::new(with_state("\"nf4\"", "\"nf3\"")), "it says nf3"),
        ("nf4-double", Box::new(with_state("nested_offset", "nested_shift")), "said by halves"),
        ("nf4-double", Box::new(with_state("\"blocksize\": 64", "\"blocksize\": 0")), "in blocks of 0"),
        ("nf4-double", Box::new(nan), "NaN"),
    ];
    for (kind, change, part) in cases {
        let error = damaged(kind, &change);
        assert!(error.contains("up_proj") && error.contains(part), "{part}: {error}");
    }
    // A matrix whose state is gone is no matrix of the model.
    let error = damaged("nf4", &|parts| {
        parts.remove(&state).unwrap();
    });
    assert!(error.contains("up_proj") && error.contains("bitsandbytes"), "{error}");
    let error = damaged("int8", &|parts| {
        parts.remove("model.layers.0.mlp.up_proj.SCB").unwrap();
    });
    assert!(error.contains("up_proj"), "{error}");
}
