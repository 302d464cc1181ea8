//! What is read of a family's files: configurations, GGUF files, exports; what is refused, and by which name.
use sdrrl::{
    models::{transformer::weights::Transformer, weights::stored::Stored},
    pipeline::placement::Placement,
    tensor::DType,
};

use crate::models::{FAMILIES, folder};

/// The same weights under llama.cpp's names and in its layout: permuted rows, gains of 1 + w.
#[test]
fn gguf_files_hold_the_same_models() {
    for name in FAMILIES.iter().chain(&["llama-bias"]) {
        let own = Transformer::load(&folder(name), DType::F32).unwrap();
        let gguf = Transformer::load(&folder(name).join("model.gguf"), DType::F32).unwrap();
        // Mistral's files without a window are Llama's.
        let kind = if *name == "mistral-nemo" { "llama" } else { &own.config.model_type };
        assert_eq!(kind, gguf.config.model_type);
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
            for length in [1, 64] {
                let ((got, factor), (want, wanted)) =
                    (got.frequencies(length).unwrap(), want.frequencies(length).unwrap());
                // LongRoPE's numbers stand in the file with 32 bits.
                assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= w * 1e-6), "{name}");
                assert!((factor - wanted).abs() < 1e-6, "{name}");
                assert!(*name == "phi3" || (got, factor) == (want, wanted), "{name}");
            }
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
        ("llama-tied", json!({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}), "short_factor"),
        ("llama-tied", json!({"rope_scaling": {"rope_type": "su", "factor": 2.0}}), "type `su`"),
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
        ("llama-tied", json!({"model_type": "falcon_h1"}), "falcon_h1"),
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
        ("phi3", json!({"partial_rotary_factor": 1.0, "rope_parameters": null, "attention_bias": false})),
        ("hunyuan", json!({"use_qk_norm": true, "use_cla": false, "cla_share_factor": 2, "num_experts": 1})),
        ("gemma2", json!({"final_logit_softcapping": null, "attn_logit_softcapping": null})),
    ] {
        assert_eq!(config_error(name, changes.clone()), "accepted", "{name} {changes}");
    }
}

/// The same of the families with factors, layers without rotation, fused matrices and another rotary base.
#[test]
fn what_newer_families_do_not_compute_is_refused_by_name() {
    use serde_json::json;
    for (name, changes, what) in [
        ("phi3", json!({"partial_rotary_factor": 0.75}), "partial_rotary_factor"),
        ("phi3", json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}), "type `linear`"),
        (
            "phi3",
            json!({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}),
            "1 factors for 4",
        ),
        ("phi3", json!({"attention_bias": true}), "attention_bias"),
        ("granite", json!({"logits_scaling": 0}), "logits_scaling"),
        ("granite", json!({"residual_multiplier": -1}), "residual addition"),
        ("granite", json!({"embedding_multiplier": "12"}), "embedding_multiplier"),
        ("olmo2", json!({"clip_qkv": 8.0}), "clip_qkv"),
        ("smollm3", json!({"no_rope_layers": [1, 0]}), "no_rope_layers has 2 entries for 4"),
        ("smollm3", json!({"no_rope_layers": [1, 0, 2, 1]}), "no_rope_layers has 2"),
        ("smollm3", json!({"no_rope_layers": null, "no_rope_layer_interval": 0}), "no_rope_layer_interval"),
        ("hunyuan", json!({"use_qk_norm": false}), "use_qk_norm"),
        ("hunyuan", json!({"num_experts": 16}), "num_experts"),
        ("hunyuan", json!({"use_cla": true}), "use_cla"),
        (
            "hunyuan",
            json!({"rope_parameters": {"rope_type": "dynamic", "alpha": 50.0, "mrope_section": [1]}}),
            "mrope_section",
        ),
    ] {
        let error = config_error(name, changes);
        assert!(error.contains(what), "{name}, {what}: {error}");
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
        gemma3.layers.iter().map(|l| gemma3.ropes[l.rope.unwrap()].theta).collect::<Vec<_>>(),
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
    assert_eq!(windows(json!({"model_type": "phi3"})), [7, 7, 7, 7]);
    let nopes = |config| spec(config).layers.iter().map(|l| l.rope.is_none()).collect::<Vec<_>>();
    assert_eq!(nopes(json!({"model_type": "smollm3"})), [false, false, false, true]);
    let listed =
        json!({"model_type": "smollm3", "no_rope_layers": [0, 1, 1, 0, 1], "use_sliding_window": true});
    assert_eq!(nopes(listed.clone()), [true, false, false, true]);
    assert_eq!(windows(listed), [7, 0, 0, 7]);
    // Falcon3's config.json is Llama's with heads of a size of their own.
    let falcon3 = spec(
        json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "head_dim": 256, "num_key_value_heads": 4,
                              "attention_bias": false, "mlp_bias": false, "rope_scaling": null, "rope_theta": 1000042,
                              "pretraining_tp": 1, "attention_dropout": 0.0, "use_cache": true, "torch_dtype": "bfloat16"}),
    );
    assert_eq!((falcon3.head_size, falcon3.query_size(), falcon3.kv_size()), (256, 8192, 1024));
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
    let error = format!("{:#}", Transformer::load(dir.path(), DType::F32).unwrap_err());
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
        let placement = Placement { device: device.parse().unwrap(), ..Placement::default() };
        format!("{:#}", Transformer::load_for(dir.path(), placement).unwrap_err())
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
        let model = Transformer::load(&folder(name), DType::F32).unwrap();
        model.save_pretrained(dir.path(), Stored::F32, None).unwrap();
        assert!(tensors(dir.path()) == tensors(&folder(name)), "{name}: other tensors");
        let (got, want) = (fields(dir.path()), fields(&folder(name)));
        for (key, value) in want.as_object().unwrap() {
            assert_eq!(&got[key], value, "{name} {key}");
        }
    }
}

#[test]
fn broken_checkpoints_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let source = folder("llama-tied");
    let error = |what: &str| {
        let error = format!("{:#}", Transformer::load(dir.path(), DType::F32).unwrap_err());
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
