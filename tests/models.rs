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
        transformer::weights::Llama,
        weights::safetensors::Checkpoint,
    },
    ops::{
        adamw::{AdamW, adamw_update},
        grad_norm::global_norm,
    },
    tensor::{DType, Tensor},
};

use crate::common::{assert_close, with_threads};

fn folder(name: &str) -> PathBuf {
    PathBuf::from("tests/golden/models").join(name)
}

struct Golden(Checkpoint);

impl Golden {
    fn open(name: &str) -> Golden {
        Golden(Checkpoint::open_file(&folder(name).join("golden.safetensors")).unwrap())
    }
    fn get(&self, name: &str) -> Vec<f32> {
        let shape = self.0.shape(name).unwrap_or_else(|| panic!("no golden {name}")).to_vec();
        self.0.tensor(name, &shape, DType::F32).unwrap().to_f32_vec().unwrap()
    }
    fn integers(&self, name: &str) -> Vec<u32> {
        self.0.integers(name).unwrap()
    }
    fn batch(&self) -> PackedBatch {
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

fn weight_sum(batch: &PackedBatch) -> f32 {
    batch.weights.iter().sum()
}

/// The families beside Llama and Mistral.
const FAMILIES: [&str; 5] = ["qwen2", "qwen3", "gemma", "gemma2", "gemma3"];

fn load_on(name: &str, device: &Device) -> Llama {
    let model = Llama::load(&folder(name), DType::F32).unwrap();
    if *device == Device::Cpu { model } else { model.to_device(device).unwrap() }
}

fn logits_on(name: &str, device: &Device, tolerance: f64) {
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
fn greedy_on(name: &str, device: &Device) {
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
    for name in ["llama-tied", "mistral-window", "llama-bias", "qwen2", "qwen3", "gemma2", "gemma3"] {
        let golden = Golden::open(name);
        let mut model = Llama::load(&folder(name), DType::F32).unwrap();
        model.make_trainable().unwrap();
        let batch = golden.batch();
        let mut step = TrainStep::new(&model, Trainable::Full, 64).unwrap();
        let loss = step.forward_backward(&mut model, &batch, 1.0 / weight_sum(&batch)).unwrap();
        assert_close(&format!("{name} loss"), &[loss.mean() as f32], &golden.get("full.loss"), 1e-5);
        for p in step.params(&model) {
            let want = golden.get(&format!("full.grad.{}", p.name));
            assert_close(&format!("{name} {}", p.name), p.grad().to_f32_vec().unwrap(), &want, 2e-5);
        }
    }
}

/// A step whose adapters hold the golden's parameters.
fn lora_step(golden: &Golden, model: &Llama, variant: &str) -> TrainStep {
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

/// DoRA on the GPU's kernels: PEFT's loss and gradients.
#[test]
fn dora_gradients_equal_peft_on_the_emulated_gpu() {
    for name in ["llama-tied", "llama-bias"] {
        let golden = Golden::open(name);
        let model = Llama::load(&folder(name), DType::F32).unwrap();
        let mut model = model.to_device(&crate::kernels::emulated()).unwrap();
        let mut step = lora_step(&golden, &model, "dora");
        let batch = golden.batch();
        let loss = step.forward_backward(&mut model, &batch, 1.0 / weight_sum(&batch)).unwrap();
        assert_close(name, &[loss.mean() as f32], &golden.get("lora.dora.loss"), 1e-5);
        for p in step.params(&model) {
            let want = golden.get(&format!("lora.dora.grad.base_model.model.{}", p.name));
            assert_close(&format!("{name} {}", p.name), p.grad().to_f32_vec().unwrap(), &want, 5e-5);
        }
    }
}

fn adapter_gradients_on(name: &str, device: &Device, tolerance: f64) {
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
    assert_close(name, &[loss.mean() as f32], &golden.get("lora.plain.loss"), tolerance);
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
    for name in ["llama-tied", "mistral-window", "llama-bias"] {
        for variant in ["plain", "rslora", "dora"] {
            let golden = Golden::open(name);
            let mut model = Llama::load(&folder(name), DType::F32).unwrap();
            let mut step = lora_step(&golden, &model, variant);
            let batch = golden.batch();
            let loss = step.forward_backward(&mut model, &batch, 1.0 / weight_sum(&batch)).unwrap();
            let want = golden.get(&format!("lora.{variant}.loss"));
            assert_close(&format!("{name} {variant} loss"), &[loss.mean() as f32], &want, 1e-5);
            for p in step.params(&model) {
                let want = golden.get(&format!("lora.{variant}.grad.base_model.model.{}", p.name));
                assert_close(
                    &format!("{name} {variant} {}", p.name),
                    p.grad().to_f32_vec().unwrap(),
                    &want,
                    5e-5,
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
            let mut model = Llama::load(&folder(name), DType::F32).unwrap();
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
    let mut model = Llama::load(&folder("llama-tied"), DType::F32).unwrap();
    model.make_trainable().unwrap();
    let batch = golden.batch();
    let mut step = TrainStep::new(&model, Trainable::Full, 64).unwrap();
    let together = step.forward(&model, &batch).unwrap();
    let mut apart = 0.0;
    for d in batch.cu_seqlens.windows(2) {
        let (start, end) = (d[0] as usize, d[1] as usize);
        let one = PackedBatch {
            tokens: batch.tokens[start..end].to_vec(),
            positions: batch.positions[start..end].to_vec(),
            cu_seqlens: vec![0, (end - start) as u32],
            targets: batch.targets[start..end].to_vec(),
            weights: batch.weights[start..end].to_vec(),
        };
        apart += step.forward(&model, &one).unwrap().weighted_nll;
    }
    assert!((together.weighted_nll - apart).abs() < 1e-12, "{} {apart}", together.weighted_nll);
}

#[test]
fn gradients_do_not_depend_on_the_thread_count() {
    let run = || {
        let golden = Golden::open("mistral-window");
        let mut model = Llama::load(&folder("mistral-window"), DType::F32).unwrap();
        let mut step = lora_step(&golden, &model, "dora");
        step.forward_backward(&mut model, &golden.batch(), 1.0).unwrap();
        step.params(&model).iter().flat_map(|p| p.grad().to_f32_vec().unwrap()).collect::<Vec<f32>>()
    };
    assert_eq!(with_threads(1, run), with_threads(3, run));
}

#[test]
fn merged_weights_answer_as_the_adapter_does() {
    let families = FAMILIES.iter().map(|name| (*name, "plain"));
    for (name, variant) in [("llama-bias", "plain"), ("llama-bias", "dora")].into_iter().chain(families) {
        let golden = Golden::open(name);
        let mut model = Llama::load(&folder(name), DType::F32).unwrap();
        let mut step = lora_step(&golden, &model, variant);
        let batch = golden.batch();
        let with_adapter = step.forward(&model, &batch).unwrap().mean();
        let lora = step.adapter().unwrap();
        let dir = tempfile::tempdir().unwrap();
        lora.save(dir.path(), "base").unwrap();
        model.apply_adapter(&Lora::load(dir.path(), &model).unwrap()).unwrap();
        let mut plain = TrainStep::new(
            &model,
            Trainable::Lora(Lora::init(&model, LoraConfig::default(), 1).unwrap()),
            24,
        )
        .unwrap();
        let merged = plain.forward(&model, &batch).unwrap().mean();
        assert!((merged - with_adapter).abs() < 1e-5, "{name} {variant}: {merged} {with_adapter}");
        model.save_pretrained(&dir.path().join("merged"), DType::F32, None).unwrap();
        let again = Llama::load(&dir.path().join("merged"), DType::F32).unwrap();
        assert_eq!(plain.forward(&again, &batch).unwrap().mean(), merged);
    }
}

#[test]
fn broken_checkpoints_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let source = folder("llama-tied");
    let error = |what: &str| {
        let error = format!("{:#}", Llama::load(dir.path(), DType::F32).unwrap_err());
        assert!(error.contains(what), "{what} is not in: {error}");
    };
    error("config.json");
    std::fs::copy(source.join("config.json"), dir.path().join("config.json")).unwrap();
    error("model.safetensors");
    let whole = std::fs::read(source.join("model.safetensors")).unwrap();
    for keep in [0, 7, 100, whole.len() - 1] {
        std::fs::write(dir.path().join("model.safetensors"), &whole[..keep]).unwrap();
        error("model.safetensors");
    }
    std::fs::write(dir.path().join("model.safetensors"), &whole).unwrap();
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    std::fs::write(
        dir.path().join("config.json"),
        config.replace("\"hidden_size\": 32", "\"hidden_size\": 64"),
    )
    .unwrap();
    error("expected [96, 64]");
    std::fs::write(dir.path().join("config.json"), config.replace("\"llama\"", "\"mamba\"")).unwrap();
    error("model_type is mamba");
    error("`qwen3`");
}

/// The same weights under llama.cpp's names and in its layout: permuted rows, gains of 1 + w.
#[test]
fn gguf_files_hold_the_same_models() {
    for name in FAMILIES.iter().chain(&["llama-bias"]) {
        let own = Llama::load(&folder(name), DType::F32).unwrap();
        let gguf = Llama::load(&folder(name).join("model.gguf"), DType::F32).unwrap();
        assert_eq!(own.config.model_type, gguf.config.model_type);
        let mut spec = gguf.spec.clone();
        if *name == "qwen2" {
            // llama.cpp's qwen2 has no window, its gemmas no scale of queries but the head size's.
            spec.layers.clone_from(&own.spec.layers);
        }
        if ["gemma2", "gemma3"].contains(name) {
            assert_eq!(spec.query_scale, 0.25, "{name}");
            spec.query_scale = own.spec.query_scale;
        }
        for (got, want) in spec.ropes.iter_mut().zip(&own.spec.ropes) {
            assert_eq!(got.frequencies(64).unwrap(), want.frequencies(64).unwrap(), "{name}");
            got.clone_from(want);
        }
        assert_eq!(spec, own.spec, "{name}");
        for ((tensor, got), (_, want)) in gguf.named().iter().zip(own.named()) {
            let (got, want) = (got.to_f32_vec().unwrap(), want.to_f32_vec().unwrap());
            if name.starts_with("gemma") && tensor.ends_with("norm.weight") {
                // 1 + w was rounded once.
                assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-7), "{name} {tensor}");
            } else {
                assert_eq!(got, want, "{name} {tensor}");
            }
        }
    }
}

fn config_error(name: &str, changes: serde_json::Value) -> String {
    let text = std::fs::read_to_string(folder(name).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    match sdrrl::models::transformer::config::Config::from_json(&config.to_string()) {
        Ok(_) => "accepted".into(),
        Err(e) => format!("{e:#}"),
    }
}

/// Fields that mean another arithmetic are refused by name; notes, and neutral values, are not.
#[test]
fn what_would_be_computed_otherwise_is_refused_by_name() {
    use serde_json::json;
    for (name, changes, what) in [
        ("llama-tied", json!({"attention_multiplier": 0.5}), "attention_multiplier"),
        ("llama-tied", json!({"residual_multiplier": 0.2}), "residual_multiplier"),
        ("llama-tied", json!({"logits_scaling": 8}), "logits_scaling"),
        ("llama-tied", json!({"embedding_multiplier": 12}), "embedding_multiplier"),
        ("llama-tied", json!({"final_logit_softcapping": 30}), "final_logit_softcapping"),
        ("llama-tied", json!({"quantization_config": {"bits": 4}}), "quantization_config"),
        ("llama-tied", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        ("llama-tied", json!({"hidden_act": "relu"}), "hidden_act relu"),
        ("llama-tied", json!({"use_sliding_window": true}), "use_sliding_window"),
        ("llama-tied", json!({"a_field_of_tomorrow": 3}), "a_field_of_tomorrow"),
        (
            "llama-tied",
            json!({"rope_parameters": null, "rope_scaling": {"rope_type": "longrope", "factor": 2.0}}),
            "longrope",
        ),
        (
            "llama-tied",
            json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
            "partial_rotary",
        ),
        (
            "llama-tied",
            json!({"rope_parameters": {"rope_type": "default", "mrope_section": [1, 2]}}),
            "mrope_section",
        ),
        ("mistral-window", json!({"attention_bias": true}), "attention_bias"),
        ("mistral-window", json!({"sliding_window": 0}), "window of 0"),
        ("qwen2", json!({"attention_bias": true}), "attention_bias"),
        ("qwen2", json!({"layer_types": ["full_attention"]}), "layer_types"),
        ("qwen2", json!({"layer_types": ["full_attention", "chunked_attention"]}), "chunked_attention"),
        ("qwen2", json!({"use_sliding_window": false}), "sliding_window"),
        ("gemma2", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention"),
        ("gemma2", json!({"final_logit_softcapping": -1.0}), "soft-cap"),
        ("gemma2", json!({"query_pre_attn_scalar": "many"}), "query_pre_attn_scalar"),
        ("gemma", json!({"hidden_act": "silu"}), "silu"),
        ("gemma3", json!({"model_type": "gemma3"}), "gemma3_text"),
        ("gemma3", json!({"rope_parameters": {"rope_theta": 1e4}}), "rope_theta"),
        ("llama-tied", json!({"model_type": "phi3"}), "phi3"),
    ] {
        let error = config_error(name, changes);
        assert!(error.contains(what), "{name}, {what}: {error}");
    }
    for (name, changes) in [
        (
            "llama-tied",
            json!({"attention_multiplier": 1.0, "residual_multiplier": 1, "_name_or_path": "x", "use_qk_norm": false}),
        ),
        ("llama-tied", json!({"sliding_window": 4096})),
        ("mistral-window", json!({"sliding_window": null})),
        ("gemma2", json!({"final_logit_softcapping": null, "attn_logit_softcapping": null})),
    ] {
        assert_eq!(config_error(name, changes.clone()), "accepted", "{name} {changes}");
    }
}

/// Windows are where the family has them, and what files leave out is what transformers' configuration classes say.
#[test]
fn windows_and_defaults_are_the_familys() {
    use serde_json::json;
    let spec = |config: serde_json::Value| {
        let mut all = json!({"vocab_size": 96, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 4,
                             "num_attention_heads": 32, "sliding_window": 7});
        all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        sdrrl::models::transformer::config::Config::from_json(&all.to_string()).unwrap().spec().unwrap()
    };
    let windows = |config| spec(config).layers.iter().map(|l| l.window.unwrap_or(0)).collect::<Vec<_>>();
    assert_eq!(windows(json!({"model_type": "llama"})), [0, 0, 0, 0]);
    assert_eq!(windows(json!({"model_type": "mistral"})), [7, 7, 7, 7]);
    assert_eq!(windows(json!({"model_type": "qwen2", "max_window_layers": 1})), [0, 0, 0, 0]);
    let upper = json!({"model_type": "qwen2", "use_sliding_window": true, "max_window_layers": 1});
    assert_eq!(windows(upper), [0, 7, 7, 7]);
    assert_eq!(windows(json!({"model_type": "gemma", "num_key_value_heads": 1})), [0, 0, 0, 0]);
    assert_eq!(windows(json!({"model_type": "gemma2"})), [7, 0, 7, 0]);
    assert_eq!(windows(json!({"model_type": "gemma3_text", "sliding_window_pattern": 3})), [7, 7, 0, 7]);
    let gemma3 = spec(json!({"model_type": "gemma3_text", "sliding_window_pattern": 3}));
    assert_eq!(
        gemma3.layers.iter().map(|l| gemma3.ropes[l.rope].theta).collect::<Vec<_>>(),
        [1e4, 1e4, 1e6, 1e4]
    );
    let gemma2 = spec(json!({"model_type": "gemma2"}));
    assert_eq!((gemma2.head_size, gemma2.kv_heads, gemma2.query_scale), (256, 4, 1.0 / 16.0));
    assert_eq!(
        (gemma2.attention_softcap, gemma2.final_softcap, gemma2.tied_head),
        (Some(50.0), Some(30.0), true)
    );
    assert_eq!(spec(json!({"model_type": "mistral"})).kv_heads, 8);
    assert_eq!(spec(json!({"model_type": "qwen3"})).head_size, 128);
    assert_eq!(spec(json!({"model_type": "llama"})).kv_heads, 32);
}

/// A tensor that the configuration does not account for would be left out: refused by name.
#[test]
fn a_tensor_without_a_place_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let from = folder("llama-bias");
    std::fs::copy(from.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let config = std::fs::read_to_string(from.join("config.json")).unwrap();
    let config = config.replace("\"attention_bias\": true", "\"attention_bias\": false");
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let error = format!("{:#}", Llama::load(dir.path(), DType::F32).unwrap_err());
    assert!(error.contains("k_proj.bias has no place"), "{error}");
}

/// Before any weight is read: the configuration's heads are too large for the kernels, and the weights do not even fit it.
#[test]
fn what_no_kernel_serves_is_refused_before_weights_load() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(folder("qwen3").join(file), dir.path().join(file)).unwrap();
    }
    let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    let config = config.replace("\"head_dim\": 16", "\"head_dim\": 320");
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let load = |device: &str| {
        format!("{:#}", Llama::load_for(dir.path(), DType::F32, device.parse().unwrap()).unwrap_err())
    };
    assert!(load("emulated").contains("heads of 320 elements"), "{}", load("emulated"));
    assert!(load("cpu").contains("shape"), "{}", load("cpu"));
}

/// What is written has the tensors, bit for bit, and the fields that transformers wrote itself.
#[test]
fn exports_are_what_transformers_wrote() {
    type Tensors = Vec<(String, Vec<usize>, Vec<u8>)>;
    let tensors = |dir: &std::path::Path| -> Tensors {
        let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut all: Tensors = file
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, view.shape().to_vec(), view.data().to_vec()))
            .collect();
        all.sort();
        all
    };
    let fields = |dir: &std::path::Path| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(dir.join("config.json")).unwrap()).unwrap()
    };
    for name in FAMILIES {
        let dir = tempfile::tempdir().unwrap();
        let model = Llama::load(&folder(name), DType::F32).unwrap();
        model.save_pretrained(dir.path(), DType::F32, None).unwrap();
        assert!(tensors(dir.path()) == tensors(&folder(name)), "{name}: other tensors");
        let (got, want) = (fields(dir.path()), fields(&folder(name)));
        for (key, value) in want.as_object().unwrap() {
            assert_eq!(&got[key], value, "{name} {key}");
        }
    }
}
