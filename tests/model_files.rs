//! Model folders of other people: what is no decoder is named as what it is, damage is found when it is read, defaults are transformers'.
use std::path::Path;

use sdrrl::{
    data::tokenizer::Tokenizer,
    models::{
        transformer::{config::Config, lora::Lora, lora::LoraConfig, weights::Transformer},
        weights::{safetensors::Checkpoint, stored::Stored},
    },
    tensor::DType,
};
use serde_json::{Value, json};

use crate::models::folder;

fn copy(from: &Path, to: &Path) {
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The error of a copy of `name` whose config.json has other values.
fn refused(name: &str, changes: Value) -> String {
    let dir = tempfile::tempdir().unwrap();
    copy(&folder(name), dir.path());
    let path = dir.path().join("config.json");
    let mut config = json_of(&path);
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(&path, config.to_string()).unwrap();
    match Transformer::load(dir.path(), DType::F32) {
        Ok(_) => "accepted".into(),
        Err(e) => format!("{e:#}"),
    }
}

#[test]
fn quantised_checkpoints_are_named_by_their_method() {
    for (config, what) in [
        (
            json!({"quant_method": "gptq", "bits": 4}),
            "quantised by GPTQ (quantization_config in config.json, 4 bits)",
        ),
        (json!({"quant_method": "awq", "bits": 4, "group_size": 128}), "quantised by AWQ"),
        (json!({"quant_method": "fp8", "activation_scheme": "dynamic"}), "quantised by FP8"),
        (json!({"quant_method": "compressed-tensors"}), "quantised by compressed-tensors"),
        (json!({"quant_method": "hqq"}), "quantised by HQQ"),
        (json!({"bits": 3}), "a method that it does not name"),
    ] {
        let error = refused("llama-tied", json!({"quantization_config": config}));
        assert!(error.contains(what) && error.contains("GGUF"), "{what}: {error}");
    }
    assert!(refused("llama-tied", json!({"quantization": {"bits": 4}})).contains("MLX"));
    assert_eq!(refused("llama-tied", json!({"quantization_config": null})), "accepted");
    // What is quantised by bitsandbytes is seen from the tensors.
    let known = json!({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}});
    assert_eq!(refused("llama-tied", known), "accepted");
}

/// Rewrites model.safetensors: every tensor goes through `change`, which may rename, alter or drop it.
fn rewrite(dir: &Path, change: &dyn Fn(&str, Vec<f32>) -> Option<(String, Vec<f32>)>) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let mut tensors = vec![];
    for name in checkpoint.names() {
        let shape = checkpoint.shape(name).unwrap().to_vec();
        let values = checkpoint.tensor(name, &shape, DType::F32).unwrap().to_f32_vec().unwrap();
        let name = if name == "lm_head.weight" { name.to_string() } else { format!("model.{name}") };
        let Some((name, values)) = change(&name, values) else { continue };
        tensors.push((name, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()));
    }
    let views = tensors.iter().map(|(name, shape, data)| {
        (
            name.clone(),
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap(),
        )
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    drop(checkpoint);
    std::fs::write(dir.join("new"), bytes).unwrap();
    std::fs::rename(dir.join("new"), dir.join("model.safetensors")).unwrap();
}

fn load_error(dir: &Path) -> String {
    format!("{:#}", Transformer::load(dir, DType::F32).unwrap_err())
}

#[test]
fn tensors_of_other_checkpoints_are_recognised() {
    for (from, to, what) in [
        ("model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.qweight", "GPTQ or AWQ"),
        (
            "model.layers.1.mlp.up_proj.weight",
            "model.layers.1.mlp.up_proj.weight_packed",
            "compressed-tensors",
        ),
        ("model.norm.weight", "score.weight", "classifier"),
        ("model.norm.weight", "vision_tower.norm.weight", "text and images"),
        ("model.norm.weight", "base_model.model.q_proj.lora_A.weight", "an adapter's"),
        ("model.norm.weight", "model.layers.0.mlp.experts.0.w1.weight", "mixture of experts"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        copy(&folder("llama-tied"), dir.path());
        rewrite(dir.path(), &|name, values| {
            Some((if name == from { to.to_string() } else { name.to_string() }, values))
        });
        let error = load_error(dir.path());
        assert!(error.contains(what) && error.contains(to.trim_start_matches("model.")), "{what}: {error}");
    }
}

#[test]
fn partial_checkpoints_say_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    copy(&folder("llama-tied"), dir.path());
    rewrite(dir.path(), &|name, values| (!name.contains("layers.1")).then(|| (name.to_string(), values)));
    let error = load_error(dir.path());
    assert!(
        error.contains("9 of the model's 20 tensors are not there, layers.1.input_layernorm.weight"),
        "{error}"
    );
    // An index whose files are not all there.
    std::fs::rename(
        dir.path().join("model.safetensors"),
        dir.path().join("model-00001-of-00003.safetensors"),
    )
    .unwrap();
    let shard = |i: usize| format!("model-{i:05}-of-00003.safetensors");
    let index = |first: &str| {
        let index = json!({"weight_map": {first: shard(1), "b": shard(2), "c": shard(3)}});
        std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    };
    index("model.embed_tokens.weight");
    let error = load_error(dir.path());
    assert!(
        error.contains("2 of the 3 files") && error.contains("model-00002-of-00003.safetensors"),
        "{error}"
    );
    for i in [2, 3] {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
        std::fs::write(dir.path().join(shard(i)), pointer).unwrap();
    }
    assert!(load_error(dir.path()).contains("Git LFS pointer"), "{}", load_error(dir.path()));
    // An index and a shard of two downloads.
    index("model.layers.9.input_layernorm.weight");
    let error = load_error(dir.path());
    assert!(
        error.contains(&shard(1)) && error.contains("has no tensor model.layers.9.input_layernorm"),
        "{error}"
    );
}

#[test]
fn other_kinds_of_models_are_named() {
    for (changes, what) in [
        (json!({"architectures": ["LlamaForSequenceClassification"]}), "a sequence classifier"),
        (json!({"architectures": ["LlamaForTokenClassification"]}), "a token classifier"),
        (json!({"architectures": ["LlamaForQuestionAnswering"]}), "question-answering"),
        (json!({"model_type": "bert"}), "an encoder"),
        (json!({"model_type": "xlm-roberta"}), "`score` reads it"),
        (json!({"model_type": "m2m_100"}), "`translate --engine nllb`"),
        (json!({"model_type": "t5"}), "an encoder with a decoder"),
        (json!({"model_type": "clip"}), "a vision model"),
        (json!({"model_type": "qwen2_5_vl"}), "text and images"),
        (json!({"model_type": "gemma3"}), "text and images"),
        (json!({"model_type": "dbrx"}), "a mixture of experts"),
        (json!({"model_type": "qwen2_moe"}), "a mixture of experts"),
        (json!({"model_type": "mamba"}), "state-space"),
        (json!({"model_type": "whisper"}), "a speech model"),
        (json!({"vision_config": {"hidden_size": 3}}), "vision_config"),
        (json!({"is_encoder_decoder": true}), "is_encoder_decoder"),
    ] {
        let error = refused("llama-tied", changes);
        assert!(error.contains(what), "{what}: {error}");
    }
    for architectures in
        [json!(["LlamaModel"]), json!(["LlamaForCausalLM"]), json!(["OtherForCausalLM"]), json!(null)]
    {
        assert_eq!(refused("llama-tied", json!({"architectures": architectures})), "accepted");
    }
    let error = refused("llama-bias", json!({"architectures": ["LlamaModel"], "tie_word_embeddings": true}));
    assert_eq!(error, "accepted", "a head of its own, whatever the class says");
}

#[test]
fn folders_without_a_model_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = || load_error(dir.path());
    assert!(error().contains("config.json"), "{}", error());
    std::fs::write(dir.path().join("m-Q4_K.gguf"), "").unwrap();
    assert!(error().contains("m-Q4_K.gguf"), "{}", error());
    std::fs::write(dir.path().join("adapter_config.json"), r#"{"base_model_name_or_path": "org/base"}"#)
        .unwrap();
    assert!(error().contains("an adapter (PEFT)") && error().contains("org/base"), "{}", error());
    let weights = folder("llama-tied").join("model.safetensors");
    assert!(load_error(&weights).contains("give the folder"), "{}", load_error(&weights));
}

/// A number that is none in a base or an adapter, wherever it is and in whatever type, is found by the tensor's name.
#[test]
fn damaged_weights_are_found_when_they_are_loaded() {
    let dir = tempfile::tempdir().unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        copy(&folder("llama-tied"), dir.path());
        rewrite(dir.path(), &|name, mut values| {
            if name == "model.layers.1.mlp.down_proj.weight" {
                values[50] = bad;
            }
            Some((name.to_string(), values))
        });
        for dtype in [DType::F32, DType::Bf16] {
            let error = format!("{:#}", Transformer::load(dir.path(), dtype).unwrap_err());
            assert!(
                error.contains("model.layers.1.mlp.down_proj.weight holds") && error.contains("[1, 2]"),
                "{error}"
            );
        }
    }
    let model = Transformer::load(&folder("llama-tied"), DType::F32).unwrap();
    let lora = Lora::init(&model, LoraConfig::default(), 1).unwrap();
    lora.save(dir.path(), "base", None).unwrap();
    Lora::load(dir.path(), &model).unwrap();
    let path = dir.path().join("adapter_model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let error = format!("{:#}", Lora::load(dir.path(), &model).map(|_| ()).unwrap_err());
    assert!(error.contains("lora_") && error.contains("holds NaN"), "{error}");
}

/// A configuration that ties the head, and a file that has another one: what is in the file counts, in transformers 5 as here.
#[test]
fn a_head_of_its_own_is_used_whatever_the_configuration_says() {
    let model = Transformer::load(&folder("llama-tied-head"), DType::F32).unwrap();
    assert!(!model.config.tie_word_embeddings && !model.spec.tied_head);
    let dir = tempfile::tempdir().unwrap();
    model.save_pretrained(dir.path(), Stored::F32, None).unwrap();
    assert!(Checkpoint::open(dir.path()).unwrap().has("lm_head.weight"));
    assert_eq!(json_of(&dir.path().join("config.json"))["tie_word_embeddings"], false);
    // A head with the embedding's values is the embedding; one of the two alone is both.
    let same = tempfile::tempdir().unwrap();
    copy(&folder("llama-tied"), same.path());
    let embedding = Checkpoint::open(same.path()).unwrap();
    let shape = embedding.shape("embed_tokens.weight").unwrap().to_vec();
    let want = embedding.tensor("embed_tokens.weight", &shape, DType::F32).unwrap().to_f32_vec().unwrap();
    drop(embedding);
    rewrite(same.path(), &|name, values| {
        Some((
            if name == "model.embed_tokens.weight" { "lm_head.weight".into() } else { name.to_string() },
            values,
        ))
    });
    let model = Transformer::load(same.path(), DType::F32).unwrap();
    assert!(model.config.tie_word_embeddings);
    assert_eq!(model.weights.embed_tokens.to_f32_vec().unwrap(), want);
}

/// Where a config.json is silent, what transformers' configuration classes say (tests/golden/models/defaults.json).
#[test]
fn what_is_left_out_is_the_familys_default() {
    let golden = json_of(&folder("defaults.json"));
    for (family, want) in golden.as_object().unwrap() {
        let config = Config::from_json(&json!({"model_type": family}).to_string()).unwrap();
        let number = |key: &str| want[key].as_u64().map(|x| x as usize);
        let spec = config.spec().unwrap();
        let sizes = (
            spec.vocab_size,
            spec.hidden_size,
            spec.intermediate_size,
            spec.layers.len(),
            spec.heads,
            spec.kv_heads,
        );
        let wanted = [
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
        ];
        let wanted: Vec<usize> = wanted.iter().map(|k| number(k).unwrap()).collect();
        assert_eq!(vec![sizes.0, sizes.1, sizes.2, sizes.3, sizes.4, sizes.5], wanted, "{family}");
        let head = number("head_dim").unwrap_or(wanted[1] / wanted[4]);
        assert_eq!((spec.head_size, spec.tied_head), (head, want["tie_word_embeddings"] == true), "{family}");
        assert_eq!(config.max_position_embeddings, number("max_position_embeddings").unwrap(), "{family}");
        assert_eq!(config.rms_norm_eps, want["rms_norm_eps"].as_f64().unwrap(), "{family}");
        assert_eq!(config.bos_token_id, number("bos_token_id").map(|x| x as u32), "{family}");
        assert_eq!(
            config.eos(),
            number("eos_token_id").map(|x| x as u32).into_iter().collect::<Vec<_>>(),
            "{family}"
        );
        let caps = [spec.attention_softcap, spec.final_softcap];
        let cap = |key: &str| want[key].as_f64().map(|x| x as f32);
        assert_eq!(caps, [cap("attn_logit_softcapping"), cap("final_logit_softcapping")], "{family}");
        let scalar = want["query_pre_attn_scalar"].as_f64().unwrap_or(head as f64);
        let scale = want["attention_multiplier"].as_f64().unwrap_or(scalar.powf(-0.5));
        assert!((spec.query_scale as f64 - scale).abs() < 1e-7, "{family}");
        for (l, layer) in spec.layers.iter().enumerate() {
            let kind = want["layer_types"][l].as_str();
            let slides = kind.map_or(family == "mistral", |kind| kind == "sliding_attention");
            assert_eq!(layer.window, number("sliding_window").filter(|_| slides), "{family} {l}");
            let rope = &want["rope_parameters"];
            let theta = rope["rope_theta"].as_f64().or(rope[kind.unwrap_or("none")]["rope_theta"].as_f64());
            assert_eq!(Some(spec.ropes[layer.rope.unwrap_or(0)].theta), theta, "{family} {l}");
        }
    }
}

/// A tokenizer may have more tokens than the embedding, as long as no text has them.
#[test]
fn tokens_beyond_the_embedding_are_refused_where_they_occur() {
    use sdrrl::data::{conversation::Prompt, template::ChatTemplate};
    use sdrrl::infer::{
        answerer::{AnswerOptions, Answerer},
        generation_config::GenerationConfig,
    };
    let tokenizer = Tokenizer::load(Path::new("tests/golden/tokenizer/bpe.json")).unwrap();
    let (vocab, inside) = (tokenizer.vocab_size(), tokenizer.encode("the cat", false).unwrap());
    let cut = *inside.iter().max().unwrap() as usize + 1;
    assert!(
        cut < vocab
            && tokenizer.encode("language tokenizer", false).unwrap().iter().any(|&t| t as usize >= cut),
        "{cut} {vocab}"
    );
    let config = json!({"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "vocab_size": cut, "max_position_embeddings": 64});
    let model = Transformer::random(Config::from_json(&config.to_string()).unwrap(), 3).unwrap();
    let template = ChatTemplate::load("plain", &tokenizer).unwrap();
    let generation = GenerationConfig::default();
    let answerer = Answerer { model, tokenizer: tokenizer.into(), template: template.into(), generation };
    let options = AnswerOptions { max_new_tokens: Some(2), ..Default::default() };
    let ask = |text: &str| answerer.answer(&[("r", Prompt::new(None, text, ""))], &options, &mut |_| {});
    ask("the cat").unwrap();
    let error = format!("{:#}", ask("language tokenizer").unwrap_err());
    assert!(error.contains("row r") && error.contains("beyond the model's vocabulary"), "{error}");
}

#[test]
fn a_field_of_the_wrong_type_is_named() {
    let sizes = json!({"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 48,
        "max_position_embeddings": 64});
    for (field, value) in [
        ("attention_bias", json!(null)),
        ("hidden_size", json!("16")),
        ("rms_norm_eps", json!([1e-5])),
        ("num_hidden_layers", json!(-1)),
    ] {
        let mut config = sizes.clone();
        config[field] = value;
        let error = format!("{:#}", Config::from_json(&config.to_string()).unwrap_err());
        assert!(error.contains(&format!("{field}: invalid")), "{field}: {error}");
    }
}
