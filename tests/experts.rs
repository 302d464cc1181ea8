//! Mixtures of experts beside what every family is held to (tests/models.rs): adapters on experts, batches, kept blocks, refusals.
use sdrrl::{
    device::Device,
    infer::{
        engine::{Engine, EngineOptions, Request},
        sampler::SamplingParams,
    },
    models::{
        transformer::{
            config::Config,
            experts::ExpertSpec,
            lora::{Lora, LoraConfig, Modules},
            train_step::{TrainStep, Trainable},
            weight::ComputeType,
            weights::Transformer,
        },
        weights::stored::Stored,
    },
    tensor::{Activations, DType},
};
use serde_json::{Value, json};

use crate::{
    common::{assert_close, program, with_threads},
    kernels::emulated,
    models::{Golden, adapter_gradients_on, folder, greedy_on, load_on, logits_on, weight_sum},
};

const MIXED: &str = "qwen3-moe-mixed";

/// Layers with experts between layers without, and shares that do not sum to 1.
#[test]
fn sparse_and_dense_layers_in_one_model_equal_transformers() {
    for device in [Device::Cpu, emulated()] {
        let close = if device == Device::Cpu { 1e-5 } else { 1e-4 };
        logits_on(MIXED, &device, close);
        greedy_on(MIXED, &device);
        adapter_gradients_on(MIXED, &device, 10.0 * close);
    }
}

/// The golden's adapters on the linears of experts.
fn experts_lora(name: &str, model: &Transformer, dora: bool) -> Lora {
    let of_experts: &[&str] =
        if name == "mixtral" { &["w1", "w2", "w3"] } else { &["gate_proj", "up_proj", "down_proj"] };
    let names = ["q_proj", "v_proj"].iter().chain(of_experts).map(|n| n.to_string()).collect();
    let target_modules = Modules::Named(names);
    let config = LoraConfig { r: 4, alpha: 8.0, target_modules, use_dora: dora, ..LoraConfig::default() };
    Lora::init(model, config, 1).unwrap()
}

fn experts_step(
    golden: &Golden,
    name: &str,
    on_the_cpu: &Transformer,
    model: &Transformer,
    variant: &str,
) -> TrainStep {
    let lora = experts_lora(name, on_the_cpu, variant.ends_with("dora"));
    let step = TrainStep::new(model, Trainable::Lora(lora), 24).unwrap();
    for mut p in step.params(model) {
        p.write(&golden.get(&format!("lora.{variant}.param.base_model.model.{}", p.name))).unwrap();
    }
    step
}

fn experts_on(name: &str, variant: &str, device: &Device, tolerance: f64) {
    let (golden, on_the_cpu, mut model) =
        (Golden::open(name), load_on(name, &Device::Cpu), load_on(name, device));
    let mut step = experts_step(&golden, name, &on_the_cpu, &model, variant);
    let batch = golden.batch();
    let loss = step.forward_backward(&mut model, &batch, 1.0 / weight_sum(&batch)).unwrap();
    assert_close(name, [loss.mean() as f32], &golden.get(&format!("lora.{variant}.loss")), tolerance);
    let mut untouched = 0;
    for p in step.params(&model) {
        let want = golden.get(&format!("lora.{variant}.grad.base_model.model.{}", p.name));
        let got = p.grad().to_f32_vec().unwrap();
        if want.iter().all(|x| *x == 0.0) {
            // No token chose this expert.
            assert!(got.iter().all(|x| *x == 0.0), "{name} {}", p.name);
            untouched += 1;
            continue;
        }
        assert_close(&format!("{name} {variant} {}", p.name), got, &want, tolerance);
    }
    assert!(untouched * 4 < step.params(&model).len(), "{untouched} adapters without a gradient");
}

const EXPERTS: [(&str, &str); 4] =
    [("qwen3-moe", "experts"), (MIXED, "experts"), ("mixtral", "experts"), ("mixtral", "experts-dora")];

#[test]
fn gradients_of_adapters_on_experts_equal_peft() {
    EXPERTS.iter().for_each(|(name, variant)| experts_on(name, variant, &Device::Cpu, 2e-4));
}

#[test]
fn gradients_of_adapters_on_experts_equal_peft_on_the_emulated_gpu() {
    EXPERTS.iter().for_each(|(name, variant)| experts_on(name, variant, &emulated(), 1e-3));
}

/// Written under PEFT's names for the modules of a checkpoint, read again, merged, and written out as a model.
#[test]
fn merged_experts_answer_as_their_adapters_do() {
    for (name, variant) in EXPERTS {
        let (golden, mut model) = (Golden::open(name), load_on(name, &Device::Cpu));
        let batch = golden.batch();
        let mut step = experts_step(&golden, name, &model, &model, variant);
        let adapted = step.forward(&model, &batch).unwrap().mean();
        let dir = tempfile::tempdir().unwrap();
        step.adapter().unwrap().save(dir.path(), "base", None).unwrap();
        model.apply_adapter(&Lora::load(dir.path(), &model).unwrap()).unwrap();
        model.save_pretrained(&dir.path().join("merged"), Stored::F32, None).unwrap();
        let merged = Transformer::load(&dir.path().join("merged"), DType::F32).unwrap();
        let lora = Lora::init(&merged, LoraConfig::default(), 1).unwrap();
        let mut plain = TrainStep::new(&merged, Trainable::Lora(lora), 24).unwrap();
        let got = plain.forward(&merged, &batch).unwrap().mean();
        assert!((got - adapted).abs() < 1e-5, "{name} {variant}: {got} {adapted}");
    }
}

/// Which tokens share an expert with a token, and in which batch they come, changes no bit of what is computed for it.
#[test]
fn no_answer_depends_on_the_batch_or_the_threads() {
    for name in ["qwen3-moe", MIXED, "mixtral"] {
        let model = load_on(name, &Device::Cpu);
        let prompts: Vec<Vec<u32>> =
            (0..5).map(|i| (0..3 + i).map(|j| 3 + (i * 7 + j * 11) % 60).collect()).collect();
        let states = |texts: &[&[u32]]| -> Vec<u32> {
            let mut decoder = sdrrl::models::transformer::decode::Decoder::new(&model, 64, 64).unwrap();
            let mut last = vec![];
            let mut keep = |_: usize, states: &sdrrl::tensor::Tensor| {
                last = states.to_f32_vec().unwrap().iter().map(|x| x.to_bits()).collect();
                Ok(())
            };
            decoder.hidden_states(&model, texts, &mut keep).unwrap();
            last
        };
        let all: Vec<&[u32]> = prompts.iter().map(|p| &p[..]).collect();
        let together = states(&all);
        let apart: Vec<u32> = all.iter().flat_map(|&one| states(&[one])).collect();
        assert_eq!(together, apart, "{name}");
        let answers = |prompts: &[Vec<u32>]| -> Vec<Vec<u32>> {
            let requests: Vec<Request> =
                prompts.iter().map(|tokens| Request { id: "row".into(), tokens: tokens.clone() }).collect();
            let params = SamplingParams { max_new_tokens: 24, ..Default::default() };
            let mut engine = Engine::new(&model, EngineOptions::default()).unwrap();
            let got = engine.generate(&requests, &params, &mut |_, _| {}).unwrap();
            got.into_iter().map(|answer| answer.tokens).collect()
        };
        let one_by_one: Vec<Vec<u32>> =
            prompts.iter().flat_map(|p| answers(std::slice::from_ref(p))).collect();
        assert_eq!(with_threads(3, || answers(&prompts)), one_by_one, "{name}");
        let gradients = || {
            let mut model = load_on(name, &Device::Cpu);
            let golden = Golden::open(name);
            let mut step = experts_step(&golden, name, &model, &model, "experts");
            step.forward_backward(&mut model, &golden.batch(), 1.0).unwrap();
            step.params(&model).iter().flat_map(|p| p.grad().to_f32_vec().unwrap()).collect::<Vec<f32>>()
        };
        assert_eq!(with_threads(1, gradients), with_threads(3, gradients), "{name}");
    }
}

/// bf16 weights: on the CPU the arithmetic of the rounded weights in f32, on a GPU activations of bf16.
#[test]
fn bf16_is_as_near_as_its_rounding() {
    for name in ["qwen3-moe", "mixtral"] {
        let (golden, dir) = (Golden::open(name), tempfile::tempdir().unwrap());
        let model = load_on(name, &Device::Cpu);
        model.save_pretrained(dir.path(), Stored::Bf16, None).unwrap();
        let loss = |model: &Transformer| {
            let lora =
                Lora::init(&Transformer::load(dir.path(), DType::F32).unwrap(), LoraConfig::default(), 1);
            let mut step = TrainStep::new(model, Trainable::Lora(lora.unwrap()), 24).unwrap();
            step.forward(model, &golden.batch()).unwrap().mean()
        };
        let wide = loss(&Transformer::load(dir.path(), DType::F32).unwrap());
        let narrow = Transformer::load(dir.path(), DType::Bf16).unwrap();
        assert!((loss(&narrow) - wide).abs() < 1e-5 * wide, "{name}: {} {wide}", loss(&narrow));
        let on_gpu = loss(&narrow.to_device(&emulated()).unwrap());
        assert!((on_gpu - wide).abs() < 2e-2 * wide, "{name}: {on_gpu} {wide}");
        // What it was before it was rounded is not so near.
        let exact = loss(&model);
        assert!(exact != wide && (exact - wide).abs() < 5e-2 * wide, "{name}: {exact} {wide}");
    }
}

/// The gradients of experts' adapters through the kernels for bf16, whose rounding may make a token choose another expert of nearly the same logit.
#[test]
fn bf16_gradients_on_the_emulated_gpu_are_those_of_the_cpu_but_for_rounding() {
    for name in ["qwen3-moe", MIXED, "mixtral"] {
        let (golden, dir) = (Golden::open(name), tempfile::tempdir().unwrap());
        load_on(name, &Device::Cpu).save_pretrained(dir.path(), Stored::Bf16, None).unwrap();
        let wide = Transformer::load(dir.path(), DType::F32).unwrap();
        let gradients = |mut model: Transformer| -> Vec<f64> {
            let mut step = experts_step(&golden, name, &wide, &model, "experts");
            let batch = golden.batch();
            step.forward_backward(&mut model, &batch, 1.0 / weight_sum(&batch)).unwrap();
            let params = step.params(&model);
            params.iter().flat_map(|p| p.grad().to_f32_vec().unwrap()).map(f64::from).collect()
        };
        let want = gradients(Transformer::load(dir.path(), DType::F32).unwrap());
        let narrow = Transformer::load(dir.path(), DType::Bf16).unwrap();
        let got = gradients(narrow.to_device(&emulated()).unwrap());
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine = dot(&got, &want) / (dot(&got, &got) * dot(&want, &want)).sqrt();
        println!("{name}: cosine {cosine}");
        assert!(cosine > 0.95, "{name}: {cosine}");
    }
}

/// Each expert is its own part of the tensor that a GGUF file keeps all of them in, read or in place.
#[test]
fn stacked_experts_are_read_in_place() {
    for name in ["qwen3-moe", "mixtral"] {
        let file = folder(name).join("model.gguf");
        let own = load_on(name, &Device::Cpu);
        let kept = Transformer::load_as(&file, ComputeType::F32, Some(Activations::F32)).unwrap();
        for ((tensor, got), (_, want)) in kept.named().iter().zip(own.named()) {
            assert_eq!(got.to_f32_vec().unwrap(), want.to_f32_vec().unwrap(), "{name} {tensor}");
        }
        let source = sdrrl::models::weights::WeightSource::open(&file).unwrap().1;
        assert_eq!(source.bytes_loaded(&kept.spec, ComputeType::F32, true).unwrap(), own.bytes(), "{name}");
    }
}

fn refused(name: &str, changes: Value) -> String {
    let text = std::fs::read_to_string(folder(name).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    Config::from_json(&config.to_string()).map_or_else(|e| format!("{e:#}"), |_| "accepted".into())
}

#[test]
fn mixtures_that_cannot_be_are_refused_by_name() {
    for (name, changes, what) in [
        ("mixtral", json!({"num_experts_per_tok": 5}), "num_experts_per_tok is 5 of 4 experts"),
        ("mixtral", json!({"num_experts_per_tok": 0}), "num_experts_per_tok is 0"),
        ("mixtral", json!({"num_experts_per_tok": "two"}), "num_experts_per_tok is \"two\""),
        ("mixtral", json!({"num_local_experts": 1 << 20}), "absurd"),
        ("mixtral", json!({"num_experts": 5}), "two names of one number"),
        ("mixtral", json!({"router_jitter_noise": 0.1}), "router_jitter_noise"),
        ("mixtral", json!({"moe_intermediate_size": 12}), "moe_intermediate_size"),
        ("qwen3-moe", json!({"num_experts_per_tok": 7}), "num_experts_per_tok is 7 of 6 experts"),
        ("qwen3-moe", json!({"moe_intermediate_size": 0}), "6 experts of 0"),
        ("qwen3-moe", json!({"moe_intermediate_size": 1 << 21}), "absurd"),
        ("qwen3-moe", json!({"decoder_sparse_step": 0}), "decoder_sparse_step"),
        ("qwen3-moe", json!({"mlp_only_layers": 1}), "mlp_only_layers"),
        ("qwen3-moe", json!({"mlp_only_layers": [0.5]}), "mlp_only_layers"),
        ("qwen3-moe", json!({"norm_topk_prob": 1}), "norm_topk_prob"),
        ("qwen3-moe", json!({"shared_expert_intermediate_size": 12}), "shared_expert_intermediate_size"),
        ("qwen3", json!({"num_experts": 8}), "num_experts"),
        ("mistral-window", json!({"num_local_experts": 8}), "num_local_experts"),
    ] {
        let error = refused(name, changes.clone());
        assert!(error.contains(what), "{name} {changes}: {error}");
    }
    for (name, changes) in [
        (
            "mixtral",
            json!({"router_aux_loss_coef": 0.02, "output_router_logits": true, "router_jitter_noise": 0.0}),
        ),
        // Files from before transformers 5.
        ("qwen3-moe", json!({"num_local_experts": null, "num_experts": 6, "mlp_only_layers": null})),
    ] {
        assert_eq!(refused(name, changes.clone()), "accepted", "{name} {changes}");
    }
}

/// A folder with the golden's model under another configuration.
fn with_config(name: &str, changes: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(folder(name).join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let mut config = std::fs::read_to_string(folder(name).join("config.json")).unwrap();
    for (from, to) in changes {
        assert!(config.contains(from), "{config}");
        config = config.replace(from, to);
    }
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    dir
}

#[test]
fn experts_that_are_missing_or_of_another_shape_are_named() {
    for (name, changes, what) in [
        (
            "qwen3-moe",
            [("\"num_local_experts\": 6", "\"num_local_experts\": 7")],
            "experts.6.down_proj.weight to begin with",
        ),
        ("qwen3-moe", [("\"num_local_experts\": 6", "\"num_local_experts\": 5")], "experts.5."),
        (
            "qwen3-moe",
            [("\"moe_intermediate_size\": 12", "\"moe_intermediate_size\": 14")],
            "expected [14, 16]",
        ),
        (
            "mixtral",
            [("\"intermediate_size\": 24", "\"intermediate_size\": 26")],
            "block_sparse_moe.experts.0.w1.weight",
        ),
        ("qwen3-moe", [("\"mlp_only_layers\": []", "\"mlp_only_layers\": [2]")], "has no place"),
    ] {
        let dir = with_config(name, &changes);
        let error = format!("{:#}", Transformer::load(dir.path(), DType::F32).unwrap_err());
        assert!(error.contains(what), "{name}: {error}");
    }
}

#[test]
fn what_adapters_of_experts_cannot_be_is_refused_by_name() {
    let model = load_on("mixtral", &Device::Cpu);
    let with = |names: &[&str]| LoraConfig {
        target_modules: Modules::Named(names.iter().map(|n| n.to_string()).collect()),
        ..LoraConfig::default()
    };
    let error = |config: LoraConfig| format!("{:#}", Lora::init(&model, config, 1).unwrap_err());
    assert!(error(with(&["q_proj", "gate"])).contains("block_sparse_moe.gate: routers are frozen"));
    // Mixtral's experts have other names.
    assert!(error(with(&["gate_proj"])).contains("`gate_proj` is no module of this model"));
    let lora = Lora::init(&model, LoraConfig { dropout: 0.1, ..with(&["w1"]) }, 1).unwrap();
    let error = format!("{:#}", TrainStep::new(&model, Trainable::Lora(lora), 8).err().unwrap());
    assert!(error.contains("dropout on the inputs of experts"), "{error}");
    // By themselves adapters are for attention.
    let lora = Lora::init(&model, LoraConfig::default(), 1).unwrap();
    assert_eq!(lora.adapters().count(), 4 * 3);
    let ExpertSpec { count, chosen, .. } = model.spec.experts.unwrap();
    assert_eq!((count, chosen, model.spec.units()), (4, 2, 3 + 3 * 4));
}

/// Before weights are read.
#[test]
fn what_is_reckoned_from_flop_and_bytes_is_refused() {
    for command in [&["plan", "--gpus", "2"][..], &["bench", "train"]] {
        let model = folder("mixtral");
        let out = program().args(command).arg("--model").arg(model).output().unwrap();
        let error = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && error.contains("a mixture of experts"), "{command:?}: {error}");
    }
}
