//! Every family against transformers and peft: logits, gradients, losses, greedy ids (tests/golden/models, scripts/golden_models.py).
use std::path::PathBuf;

use sdrrl::{
    device::Device,
    infer::{
        engine::{Engine, EngineOptions, Request},
        sampler::SamplingParams,
    },
    models::{
        transformer::linear::Rows,
        transformer::lora::{Lora, LoraConfig},
        transformer::train_step::{PackedBatch, TrainStep, Trainable},
        transformer::weights::Transformer,
        weights::{safetensors::Checkpoint, stored::Stored},
    },
    ops::{
        adamw::{AdamW, adamw_update},
        grad_norm::global_norm,
    },
    tensor::{DType, Tensor},
};

use crate::common::{assert_close, with_threads};

pub fn folder(name: &str) -> PathBuf {
    PathBuf::from("tests/golden/models").join(name)
}

pub struct Golden(Checkpoint);

impl Golden {
    pub fn open(name: &str) -> Golden {
        Golden(Checkpoint::open_file(&folder(name).join("golden.safetensors")).unwrap())
    }
    pub fn get(&self, name: &str) -> Vec<f32> {
        let shape = self.0.shape(name).unwrap_or_else(|| panic!("no golden {name}")).to_vec();
        self.0.tensor(name, &shape, DType::F32).unwrap().to_f32_vec().unwrap()
    }
    pub fn integers(&self, name: &str) -> Vec<u32> {
        self.0.integers(name).unwrap()
    }
    pub fn batch(&self) -> PackedBatch {
        let (tokens, cu, weights) =
            (self.integers("tokens"), self.integers("cu_seqlens"), self.get("weights"));
        let mut batch = PackedBatch::default();
        for d in cu.windows(2) {
            let (start, end) = (d[0] as usize, d[1] as usize);
            // `push` takes the weight of a token, the golden that of predicting the next one.
            let mut of_token = vec![0.0; end - start];
            of_token[1..].copy_from_slice(&weights[start..end - 1]);
            batch.push(&tokens[start..end], &of_token);
        }
        batch
    }
}

pub fn weight_sum(batch: &PackedBatch) -> f32 {
    batch.weights.iter().sum()
}

/// The families beside Llama and Mistral.
pub const FAMILIES: [&str; 13] = [
    "qwen2",
    "qwen3",
    "qwen3-moe",
    "mixtral",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "granite",
    "olmo2",
    "smollm3",
    "hunyuan",
    "mistral-nemo",
];

pub fn load_on(name: &str, device: &Device) -> Transformer {
    let model = Transformer::load(&folder(name), DType::F32).unwrap();
    if *device == Device::Cpu { model } else { model.to_device(device).unwrap() }
}

pub fn logits_on(name: &str, device: &Device, tolerance: f64) {
    let golden = Golden::open(name);
    let model = load_on(name, device);
    let batch = golden.batch();
    let on_the_cpu = load_on(name, &Device::Cpu);
    let lora = Lora::init(&on_the_cpu, LoraConfig::default(), 1).unwrap();
    let mut step = TrainStep::new(&model, Trainable::Lora(lora), 32).unwrap();
    step.forward(&model, &batch).unwrap();
    let n = batch.tokens.len();
    let dims = [n, model.config.vocab_size];
    let mut logits = Tensor::zeros_on(device, "logits", DType::F32, &dims).unwrap();
    model.logits(&mut logits, &step.hidden(n).unwrap(), Rows::Any).unwrap();
    assert_close(name, logits.to_f32_vec().unwrap(), &golden.get("logits"), tolerance);
}

#[test]
fn logits_equal_transformers() {
    let names = [
        "llama-tied",
        "mistral-window",
        "llama-bias",
        "llama-rope-llama3",
        "llama-rope-linear",
        "llama-rope-yarn",
        "llama-rope-dynamic",
        "llama-rope-longrope",
        "llama-tied-head",
    ];
    for name in names.iter().chain(&FAMILIES) {
        logits_on(name, &Device::Cpu, 1e-5);
    }
}

#[test]
fn logits_equal_transformers_on_the_emulated_gpu() {
    for name in FAMILIES {
        logits_on(name, &crate::kernels::emulated(), 1e-4);
    }
}

/// 64 ids, one after the other in the cache: windows, rotary embeddings and caps hold in decode steps too.
pub fn greedy_on(name: &str, device: &Device) {
    let golden = Golden::open(name);
    let model = load_on(name, device);
    let end = golden.integers("cu_seqlens")[1] as usize;
    let request = Request { id: "row".into(), tokens: golden.integers("tokens")[..end].to_vec() };
    let params = SamplingParams { max_new_tokens: 64, ..Default::default() };
    let mut engine = Engine::new(&model, EngineOptions::default()).unwrap();
    let got = engine.generate(&[request], &params, &mut |_, _| {}).unwrap();
    assert_eq!(got[0].tokens, golden.integers("greedy"), "{name}");
}

#[test]
fn greedy_ids_equal_transformers() {
    FAMILIES.iter().for_each(|name| greedy_on(name, &Device::Cpu));
}

#[test]
fn greedy_ids_equal_transformers_on_the_emulated_gpu() {
    FAMILIES.iter().for_each(|name| greedy_on(name, &crate::kernels::emulated()));
}

#[test]
fn full_gradients_equal_pytorch() {
    for name in [
        "llama-tied",
        "mistral-window",
        "llama-bias",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3",
        "qwen3-moe",
        "qwen3-moe-mixed",
        "mixtral",
    ] {
        let golden = Golden::open(name);
        let mut model = Transformer::load(&folder(name), DType::F32).unwrap();
        model.make_trainable().unwrap();
        let batch = golden.batch();
        let mut step = TrainStep::new(&model, Trainable::Full, 64).unwrap();
        let loss = step.forward_backward(&mut model, &batch, 1.0 / weight_sum(&batch)).unwrap();
        assert_close(&format!("{name} loss"), [loss.mean() as f32], &golden.get("full.loss"), 1e-5);
        for p in step.params(&model) {
            let want = golden.get(&format!("full.grad.{}", p.name));
            assert_close(&format!("{name} {}", p.name), p.grad().to_f32_vec().unwrap(), &want, 2e-5);
        }
    }
}

/// A step whose adapters hold the golden's parameters.
fn lora_step(golden: &Golden, model: &Transformer, variant: &str) -> TrainStep {
    let config = LoraConfig {
        r: 4,
        alpha: 8.0,
        use_rslora: variant == "rslora",
        use_dora: variant == "dora",
        ..LoraConfig::default()
    };
    let lora = Lora::init(model, config, 1).unwrap();
    let step = TrainStep::new(model, Trainable::Lora(lora), 24).unwrap();
    for mut p in step.params(model) {
        let values = golden.get(&format!("lora.{variant}.param.base_model.model.{}", p.name));
        p.write(&values).unwrap();
    }
    step
}

/// DoRA on the GPU's kernels: PEFT's loss and gradients; Phi 3's matrices are several linears' each.
#[test]
fn dora_gradients_equal_peft_on_the_emulated_gpu() {
    for name in ["llama-tied", "llama-bias", "phi3"] {
        let golden = Golden::open(name);
        let model = Transformer::load(&folder(name), DType::F32).unwrap();
        let mut model = model.to_device(&crate::kernels::emulated()).unwrap();
        let mut step = lora_step(&golden, &model, "dora");
        let batch = golden.batch();
        let loss = step.forward_backward(&mut model, &batch, 1.0 / weight_sum(&batch)).unwrap();
        assert_close(name, [loss.mean() as f32], &golden.get("lora.dora.loss"), 1e-5);
        for p in step.params(&model) {
            let want = golden.get(&format!("lora.dora.grad.base_model.model.{}", p.name));
            assert_close(&format!("{name} {}", p.name), p.grad().to_f32_vec().unwrap(), &want, 5e-5);
        }
    }
}

pub fn adapter_gradients_on(name: &str, device: &Device, tolerance: f64) {
    let golden = Golden::open(name);
    let on_the_cpu = load_on(name, &Device::Cpu);
    let mut model = load_on(name, device);
    let config = LoraConfig { r: 4, alpha: 8.0, ..LoraConfig::default() };
    let lora = Lora::init(&on_the_cpu, config, 1).unwrap();
    let mut step = TrainStep::new(&model, Trainable::Lora(lora), 24).unwrap();
    for mut p in step.params(&model) {
        let values = golden.get(&format!("lora.plain.param.base_model.model.{}", p.name));
        p.write(&values).unwrap();
    }
    let batch = golden.batch();
    let loss = step.forward_backward(&mut model, &batch, 1.0 / weight_sum(&batch)).unwrap();
    assert_close(name, [loss.mean() as f32], &golden.get("lora.plain.loss"), tolerance);
    for p in step.params(&model) {
        let want = golden.get(&format!("lora.plain.grad.base_model.model.{}", p.name));
        assert_close(&format!("{name} {}", p.name), p.grad().to_f32_vec().unwrap(), &want, tolerance);
    }
}

#[test]
fn every_familys_adapter_gradients_equal_peft() {
    FAMILIES.iter().for_each(|name| adapter_gradients_on(name, &Device::Cpu, 1e-4));
}

#[test]
fn every_familys_adapter_gradients_equal_peft_on_the_emulated_gpu() {
    FAMILIES.iter().for_each(|name| adapter_gradients_on(name, &crate::kernels::emulated(), 1e-3));
}

#[test]
fn adapter_gradients_equal_peft() {
    let all = ["plain", "rslora", "dora"];
    // Phi 3's gradients of A are sums of three, of which PyTorch's own in f32 are 3e-5 off those in f64.
    for (name, variants, tolerance) in [
        ("llama-tied", &all[..], 5e-5),
        ("mistral-window", &all, 5e-5),
        ("llama-bias", &all, 5e-5),
        ("phi3", &["dora"], 1e-4),
    ] {
        for &variant in variants {
            let golden = Golden::open(name);
            let mut model = Transformer::load(&folder(name), DType::F32).unwrap();
            let mut step = lora_step(&golden, &model, variant);
            let batch = golden.batch();
            let loss = step.forward_backward(&mut model, &batch, 1.0 / weight_sum(&batch)).unwrap();
            let want = golden.get(&format!("lora.{variant}.loss"));
            assert_close(&format!("{name} {variant} loss"), [loss.mean() as f32], &want, 1e-5);
            for p in step.params(&model) {
                let want = golden.get(&format!("lora.{variant}.grad.base_model.model.{}", p.name));
                assert_close(
                    &format!("{name} {variant} {}", p.name),
                    p.grad().to_f32_vec().unwrap(),
                    &want,
                    tolerance,
                );
            }
        }
    }
}

#[test]
fn ten_training_steps_have_pytorchs_losses() {
    for name in ["llama-tied", "mistral-window", "llama-bias"] {
        for variant in ["plain", "rslora", "dora"] {
            let golden = Golden::open(name);
            let mut model = Transformer::load(&folder(name), DType::F32).unwrap();
            let mut step = lora_step(&golden, &model, variant);
            let batch = golden.batch();
            let mut moments: Vec<(Tensor, Tensor)> = vec![];
            for p in step.params(&model) {
                let zeros = || Tensor::zeros("moment", DType::F32, p.value().shape()).unwrap();
                moments.push((zeros(), zeros()));
            }
            let mut losses = vec![];
            for t in 1..=10 {
                step.zero_grads().unwrap();
                losses.push(
                    step.forward_backward(&mut model, &batch, 1.0 / weight_sum(&batch)).unwrap().mean()
                        as f32,
                );
                let params = step.params(&model);
                let norm = global_norm(&params.iter().map(|p| p.grad()).collect::<Vec<_>>()).unwrap();
                let grad_scale = (1.0 / (norm + 1e-6)).min(1.0) as f32;
                let hyper = AdamW {
                    lr: 0.01,
                    beta1: 0.9,
                    beta2: 0.999,
                    eps: 1e-8,
                    weight_decay: 0.0,
                    step: t,
                    grad_scale,
                };
                for (mut p, (m, v)) in params.into_iter().zip(&mut moments) {
                    let mut value = p.value().to_device(&Device::Cpu).unwrap();
                    adamw_update(&mut value, m, v, p.grad(), &hyper).unwrap();
                    p.write(&value.to_f32_vec().unwrap()).unwrap();
                }
            }
            assert_close(
                &format!("{name} {variant}"),
                &losses,
                &golden.get(&format!("lora.{variant}.losses")),
                1e-4,
            );
        }
    }
}

#[test]
fn a_document_does_not_see_its_neighbours() {
    let golden = Golden::open("llama-tied");
    let mut model = Transformer::load(&folder("llama-tied"), DType::F32).unwrap();
    model.make_trainable().unwrap();
    let batch = golden.batch();
    let mut step = TrainStep::new(&model, Trainable::Full, 64).unwrap();
    let together = step.forward(&model, &batch).unwrap();
    let mut apart = 0.0;
    for d in batch.cu_seqlens.windows(2) {
        let (start, end) = (d[0] as usize, d[1] as usize);
        let one = PackedBatch {
            tokens: batch.tokens[start..end].to_vec(),
            cu_seqlens: vec![0, (end - start) as u32],
            targets: batch.targets[start..end].to_vec(),
            weights: batch.weights[start..end].to_vec(),
            ids: vec![0],
            source: vec![],
        };
        apart += step.forward(&model, &one).unwrap().weighted_nll;
    }
    assert!((together.weighted_nll - apart).abs() < 1e-12, "{} {apart}", together.weighted_nll);
}

#[test]
fn gradients_do_not_depend_on_the_thread_count() {
    let run = || {
        let golden = Golden::open("mistral-window");
        let mut model = Transformer::load(&folder("mistral-window"), DType::F32).unwrap();
        let mut step = lora_step(&golden, &model, "dora");
        step.forward_backward(&mut model, &golden.batch(), 1.0).unwrap();
        step.params(&model).iter().flat_map(|p| p.grad().to_f32_vec().unwrap()).collect::<Vec<f32>>()
    };
    assert_eq!(with_threads(1, run), with_threads(3, run));
}

#[test]
fn merged_weights_answer_as_the_adapter_does() {
    let families = FAMILIES.iter().map(|name| (*name, "plain"));
    for (name, variant) in
        [("llama-bias", "plain"), ("llama-bias", "dora"), ("phi3", "dora")].into_iter().chain(families)
    {
        let golden = Golden::open(name);
        let mut model = Transformer::load(&folder(name), DType::F32).unwrap();
        let mut step = lora_step(&golden, &model, variant);
        let batch = golden.batch();
        let with_adapter = step.forward(&model, &batch).unwrap().mean();
        let lora = step.adapter().unwrap();
        let dir = tempfile::tempdir().unwrap();
        lora.save(dir.path(), "base", None).unwrap();
        model.apply_adapter(&Lora::load(dir.path(), &model).unwrap()).unwrap();
        let mut plain = TrainStep::new(
            &model,
            Trainable::Lora(Lora::init(&model, LoraConfig::default(), 1).unwrap()),
            24,
        )
        .unwrap();
        let merged = plain.forward(&model, &batch).unwrap().mean();
        assert!((merged - with_adapter).abs() < 1e-5, "{name} {variant}: {merged} {with_adapter}");
        model.save_pretrained(&dir.path().join("merged"), Stored::F32, None).unwrap();
        let again = Transformer::load(&dir.path().join("merged"), DType::F32).unwrap();
        assert_eq!(plain.forward(&again, &batch).unwrap().mean(), merged);
    }
}
