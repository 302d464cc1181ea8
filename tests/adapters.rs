//! PEFT's adapters of every supported kind: PEFT's logits, and the same adapter when it is written again (scripts/golden_adapters.py).
use std::{
    fs,
    path::{Path, PathBuf},
};

use sdrrl::{
    models::{
        transformer::{
            linear::Rows,
            lora::{Lora, LoraConfig, Modules},
            train_step::{PackedBatch, TrainStep, Trainable},
            weights::Transformer,
        },
        weights::safetensors::Checkpoint,
    },
    tensor::{DType, Tensor},
};
use serde_json::{Value, json};

const GOLDEN: &str = "tests/golden/adapters";
const WEIGHTS: &str = "adapter_model.safetensors";

/// (folder, the base's name) of every golden adapter.
fn cases() -> Vec<(PathBuf, String)> {
    let folders = fs::read_dir(GOLDEN).unwrap().flatten().map(|e| e.path()).filter(|p| p.is_dir());
    let mut cases: Vec<_> = folders
        .map(|p| {
            let base = p.file_name().unwrap().to_str().unwrap().split_once('.').unwrap().1.to_string();
            (p, base)
        })
        .collect();
    cases.sort();
    assert_eq!(cases.len(), 43);
    cases
}

fn name(folder: &Path) -> &str {
    folder.file_name().unwrap().to_str().unwrap()
}

fn base(name: &str) -> Transformer {
    Transformer::load(&Path::new("tests/golden/models").join(name), DType::F32).unwrap()
}

fn golden() -> Checkpoint {
    Checkpoint::open_file(&Path::new(GOLDEN).join("golden.safetensors")).unwrap()
}

/// Logits of the golden's ids under `model` with `adapter` beside its weights.
fn logits(model: &Transformer, adapter: Lora) -> Vec<f32> {
    let tokens = golden().integers("tokens").unwrap();
    let mut batch = PackedBatch::default();
    batch.push(&tokens, &vec![1.0; tokens.len()]);
    let mut step = TrainStep::new(model, Trainable::Lora(adapter), tokens.len()).unwrap();
    step.forward(model, &batch).unwrap();
    let mut logits = Tensor::zeros("logits", DType::F32, &[tokens.len(), model.config.vocab_size]).unwrap();
    model.logits(&mut logits, &step.hidden(tokens.len()).unwrap(), Rows::Any).unwrap();
    logits.to_f32_vec().unwrap()
}

/// Every tensor of an adapter's file.
fn stored(dir: &Path) -> Vec<(String, Vec<f32>)> {
    let file = Checkpoint::open_file(&dir.join(WEIGHTS)).unwrap();
    let one = |name: &&str| {
        let t = file.tensor(name, file.shape(name).unwrap(), DType::F32).unwrap();
        (name.to_string(), t.to_f32_vec().unwrap())
    };
    let mut all: Vec<_> = file.names().iter().map(one).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// An adapter that changes nothing.
fn nothing(model: &Transformer) -> Lora {
    Lora::init(model, LoraConfig { r: 1, ..Default::default() }, 1).unwrap()
}

fn assert_near(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(got.iter().all(|x| x.is_finite()) && worst < 1e-4, "{what}: {worst}");
}

fn config_of(folder: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.join("adapter_config.json")).unwrap()).unwrap()
}

fn values(lora: &Lora) -> Vec<(String, Vec<f32>, f32)> {
    let one = |(l, id, a): (usize, _, &sdrrl::models::transformer::lora::Adapter)| {
        let mut values = [a.a.to_f32_vec().unwrap(), a.b.to_f32_vec().unwrap()].concat();
        values.extend(a.magnitude.as_ref().map(|m| m.to_f32_vec().unwrap()).unwrap_or_default());
        (format!("{l} {id:?}"), values, a.scale)
    };
    lora.adapters().map(one).collect()
}

#[test]
fn logits_equal_peft_beside_and_inside_the_weights() {
    let golden = golden();
    for (folder, base_name) in cases() {
        let name = name(&folder);
        let mut model = base(&base_name);
        let want =
            golden.tensor(name, golden.shape(name).unwrap(), DType::F32).unwrap().to_f32_vec().unwrap();
        let lora = Lora::load(&folder, &model).unwrap();
        model.replace(&lora).unwrap();
        if lora.adapters().next().is_some() {
            assert_near(name, &logits(&model, lora), &want);
        }
        let mut model = base(&base_name);
        model.apply_adapter(&Lora::load(&folder, &model).unwrap()).unwrap();
        assert_near(&format!("{name}, merged"), &logits(&model, nothing(&model)), &want);
    }
}

/// Patterns, layers, excluded modules and what only training cares about come out as they went in; the logits too. With `SDRRL_TEST_ADAPTERS=DIR` they are
/// left there for `scripts/golden_adapters.py --check`.
#[test]
fn an_adapter_is_written_again_as_it_was_read() {
    for (folder, base_name) in cases() {
        let name = name(&folder);
        let model = base(&base_name);
        let lora = Lora::load(&folder, &model).unwrap();
        let temporary = tempfile::tempdir().unwrap();
        let kept = std::env::var_os("SDRRL_TEST_ADAPTERS").map(|dir| Path::new(&dir).join(name));
        let dir = kept.unwrap_or_else(|| temporary.path().into());
        lora.save(&dir, "org/base", Some("abc")).unwrap();
        let again = Lora::load(&dir, &model).unwrap();
        assert_eq!(again.config, lora.config, "{name}");
        assert_eq!(values(&again), values(&lora), "{name}");
        if folder.join(WEIGHTS).exists() {
            assert_eq!(stored(&dir), stored(&folder), "{name}");
        }
        let (mut was, mut is) = (config_of(&folder), config_of(&dir));
        assert_eq!((&is["base_model_name_or_path"], &is["revision"]), (&json!("org/base"), &json!("abc")));
        for config in [&mut was, &mut is] {
            for key in ["base_model_name_or_path", "revision", "inference_mode"] {
                config[key].take();
            }
        }
        // As texts, since the order of patterns counts.
        assert_eq!(is.to_string(), was.to_string(), "{name}");
        if lora.adapters().next().is_some() {
            assert_eq!(logits(&model, again), logits(&model, lora), "{name}");
        }
    }
}

/// What is made here with these fields is what PEFT would read.
#[test]
fn a_new_adapter_writes_its_patterns() {
    let model = base("gemma3");
    let config = LoraConfig {
        target_modules: Modules::Matching(r"model\.layers\.(?!1\.).*[qk]_proj".into()),
        exclude_modules: vec!["2.self_attn.k_proj".to_string()].into(),
        rank_pattern: vec![("q_proj".into(), 2), (".*".into(), 5)],
        alpha_pattern: vec![(r"layers\.2\..*".into(), 2.5)],
        ..Default::default()
    };
    let lora = Lora::init(&model, config.clone(), 3).unwrap();
    let shapes: Vec<_> =
        lora.adapters().map(|(l, id, a)| (l, id.module(), a.a.shape()[0], a.scale)).collect();
    assert_eq!(shapes, [(0, "q_proj", 2, 8.0), (0, "k_proj", 5, 3.2), (2, "q_proj", 2, 1.25)]);
    let dir = tempfile::tempdir().unwrap();
    lora.save(dir.path(), "base", None).unwrap();
    let again = Lora::load(dir.path(), &model).unwrap();
    assert_eq!((again.config.clone(), values(&again)), (config, values(&lora)));
    let layers = LoraConfig {
        target_modules: vec!["q_proj".to_string()].into(),
        layers_to_transform: Some(vec![2]),
        layers_pattern: vec!["layers".into()],
        ..Default::default()
    };
    let lora = Lora::init(&model, layers.clone(), 3).unwrap();
    assert_eq!(lora.adapters().map(|(l, ..)| l).collect::<Vec<_>>(), [2]);
    lora.save(dir.path(), "base", None).unwrap();
    assert_eq!(Lora::load(dir.path(), &model).unwrap().config, layers);
    let none = LoraConfig { layers_to_transform: Some(vec![7]), ..Default::default() };
    let error = format!("{:#}", Lora::init(&model, none, 3).unwrap_err());
    assert!(error.contains("layers_to_transform"), "{error}");
}

/// What vLLM asks of an adapter's folder (`PEFTHelper`, `LoRAModel.from_local_checkpoint`): three fields, names of A and B under `base_model.model.`, modules
/// that its models have, no biases and no whole modules. Its `--max-lora-rank` takes any rank up to 512; DoRA it does not know.
#[test]
fn a_folder_is_laid_out_as_vllm_expects() {
    let model = base("qwen3");
    let dir = tempfile::tempdir().unwrap();
    Lora::init(&model, LoraConfig::default(), 3).unwrap().save(dir.path(), "org/base", None).unwrap();
    let config = config_of(dir.path());
    assert!(config["r"].is_u64() && config["lora_alpha"].is_u64() && config["target_modules"].is_array());
    assert_eq!((&config["bias"], &config["modules_to_save"]), (&json!("none"), &Value::Null));
    let bytes = fs::read(dir.path().join(WEIGHTS)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut sides = [0, 0];
    for name in file.names() {
        let path = name.strip_prefix("base_model.model.model.layers.").unwrap_or_else(|| panic!("{name}"));
        let (module, side) = path.strip_suffix(".weight").and_then(|p| p.rsplit_once('.')).unwrap();
        let known = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        assert!(known.contains(&module.rsplit('.').next().unwrap()), "{name}");
        let side = ["lora_A", "lora_B"].iter().position(|s| *s == side).unwrap_or_else(|| panic!("{name}"));
        sides[side] += 1;
        assert_eq!(file.tensor(name).unwrap().shape()[side], 8, "{name}");
    }
    assert_eq!(sides, [14, 14]);
}

/// A copy of a golden adapter with changes in its configuration.
fn changed(case: &str, changes: Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let folder = Path::new(GOLDEN).join(case);
    for entry in fs::read_dir(&folder).unwrap().flatten() {
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let mut config = config_of(&folder);
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
    dir
}

fn refused(dir: &Path, base_name: &str, parts: &[&str]) {
    let error = format!("{:#}", Lora::load(dir, &base(base_name)).expect_err("it is read"));
    assert!(parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
}

#[test]
fn every_tensor_is_used_and_every_targeted_module_has_its_own() {
    let plain = "plain.llama-tied";
    for (changes, parts) in [
        (json!({"target_modules": ["q_proj"]}), &["v_proj.lora_", "of no module"][..]),
        (json!({"target_modules": ["q_proj", "v_proj", "o_proj"]}), &["lora_A", "o_proj", "no lora_A"]),
        (json!({"layers_to_transform": [0]}), &["layers.1", "of no module"]),
        (json!({"exclude_modules": ["q_proj"]}), &["q_proj", "of no module"]),
        (json!({"r": 3}), &["lora_A of model.layers.0.self_attn.q_proj", "[4, 32]"]),
        (json!({"rank_pattern": {"v_proj": 9}}), &["v_proj", "[9, 32]"]),
        (json!({"use_dora": true}), &["lora_magnitude_vector", "q_proj"]),
        (json!({"target_modules": ["q_proj", "v_proj", "lm_head"]}), &["no lora_A of lm_head"]),
        (
            json!({"target_modules": ".*(q_proj|v_proj|embed_tokens)"}),
            &["no lora_embedding_A", "embed_tokens"],
        ),
        (json!({"target_modules": ".*(q_proj|v_proj|norm)"}), &["target_modules", "model.norm"]),
        (json!({"lora_bias": true}), &["lora_bias", "q_proj has no bias"]),
        (json!({"modules_to_save": ["lm_head"]}), &["modules_to_save has lm_head"]),
        (json!({"trainable_token_indices": [3]}), &["trainable_token_indices", "embed_tokens"]),
        (json!({"target_modules": "(.*q_proj"}), &["target_modules", "(.*q_proj"]),
        (json!({"target_modules": "h.*"}), &["of no module"]),
        (json!({"init_lora_weights": "pissa"}), &["adapter_config.json", "init_lora_weights", "pissa"]),
        (json!({"peft_type": "LOHA"}), &["adapter_config.json", "LOHA"]),
    ] {
        refused(changed(plain, changes).path(), "llama-tied", parts);
    }
    // A DoRA adapter read as a plain one would be another.
    refused(changed("dora.qwen2", json!({"use_dora": false})).path(), "qwen2", &["lora_magnitude_vector"]);
    // Phi 3 has no q_proj of its own, nor Llama a qkv_proj.
    refused(changed(plain, json!({})).path(), "phi3", &["q_proj", "of no module"]);
    refused(changed("fused.phi3", json!({})).path(), "llama-tied", &["o_proj", "[4, 32]"]);
    let named = changed("bias-without.llama-tied", json!({}));
    // Biases that the file has not are the base's own, as PEFT has it.
    Lora::load(named.path(), &base("llama-bias")).unwrap();
    fs::remove_file(named.path().join(WEIGHTS)).unwrap();
    refused(named.path(), "llama-tied", &["adapter_model.safetensors", "adapter_model.bin"]);
    // Where PEFT puts adapters with names.
    fs::create_dir(named.path().join("spanish")).unwrap();
    fs::rename(named.path().join("adapter_config.json"), named.path().join("spanish/adapter_config.json"))
        .unwrap();
    refused(named.path(), "llama-tied", &["adapter_config.json", "spanish"]);
    fs::remove_file(named.path().join("spanish/adapter_config.json")).unwrap();
    refused(named.path(), "llama-tied", &["adapter_config.json", "PEFT"]);
}

#[test]
fn what_replaces_tensors_is_held_against_the_model_and_the_file() {
    for (case, base, changes, parts) in [
        (
            "tokens.qwen2",
            "qwen2",
            json!({"trainable_token_indices": [90, 300]}),
            &["token 300", "has 96"][..],
        ),
        ("tokens.qwen2", "qwen2", json!({"trainable_token_indices": [90]}), &["trainable_tokens_delta"]),
        (
            "tokens.qwen2",
            "qwen2",
            json!({"trainable_token_indices": {"q_proj": [1]}}),
            &["indices of q_proj"],
        ),
        ("tokens.qwen2", "qwen2", json!({"trainable_token_indices": null}), &["trainable_tokens_delta"]),
        ("lora-bias.qwen2", "qwen2", json!({"lora_bias": false}), &["lora_B.bias"]),
        (
            "saved-norms.llama-tied",
            "llama-tied",
            json!({"modules_to_save": ["norm", "mlp"]}),
            &["modules_to_save has mlp"],
        ),
        ("embedding.qwen2", "qwen2", json!({"use_dora": true}), &["lora_magnitude_vector"]),
    ] {
        refused(changed(case, changes).path(), base, parts);
    }
}

/// The tensors of a golden adapter under other names or with other values.
fn rewritten(case: &str, change: impl Fn(&str, &mut Vec<f32>) -> Vec<String>) -> tempfile::TempDir {
    let dir = changed(case, json!({}));
    let path = dir.path().join(WEIGHTS);
    let bytes = fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut out: Vec<(String, Vec<usize>, Vec<u8>)> = vec![];
    for (name, view) in file.tensors() {
        let mut values: Vec<f32> = bytemuck::pod_collect_to_vec(view.data());
        for new in change(&name, &mut values) {
            out.push((new, view.shape().to_vec(), bytemuck::cast_slice(&values).to_vec()));
        }
    }
    let views = out.iter().map(|(name, shape, data)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    });
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    dir
}

#[test]
fn names_with_the_adapters_name_are_read_and_other_tensors_are_named() {
    let plain = "plain.llama-tied";
    let model = base("llama-tied");
    let want = values(&Lora::load(&Path::new(GOLDEN).join(plain), &model).unwrap());
    let dressed = |f: fn(&str) -> String| rewritten(plain, move |name, _| vec![f(name)]);
    for same in [
        dressed(|n| n.replace(".weight", ".default.weight")),
        dressed(|n| n.replace(".weight", ".spanish.weight")),
        dressed(|n| n.replace("base_model.model.", "")),
    ] {
        assert_eq!(values(&Lora::load(same.path(), &model).unwrap()), want);
    }
    let with = |extra: &'static str| {
        rewritten(plain, move |name, _| {
            let first = name.contains("layers.0.self_attn.q_proj.lora_A");
            [Some(name.to_string()), first.then(|| extra.to_string())].into_iter().flatten().collect()
        })
    };
    for (extra, said) in [
        ("base_model.model.lm_head.weight", "weight of lm_head"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embedding"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", "lora_B.bias"),
        ("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", "layers.9"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.other.weight", "other"),
        ("a", "no LoRA"),
    ] {
        refused(with(extra).path(), "llama-tied", &[extra, said]);
    }
    let broken = rewritten(plain, |name, values| {
        if name.contains("layers.1.self_attn.v_proj.lora_B") {
            values[5] = f32::NAN;
        }
        vec![name.to_string()]
    });
    refused(broken.path(), "llama-tied", &["layers.1.self_attn.v_proj.lora_B", "NaN"]);
}
