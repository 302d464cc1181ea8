//! What leaves the program for others: adapters with what belongs beside them, merged models, and the names of bases.
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Output,
};

use sdrrl::{
    models::{
        transformer::{
            lora::{Lora, LoraConfig, Modules},
            weights::Transformer,
        },
        weights::{safetensors::Checkpoint, stored::Stored},
    },
    tensor::DType,
};
use serde_json::{Value, json};

use crate::{
    cli::{ok, text},
    common::{program, uniform},
};

const MODEL: &str = "assets/quickstart/model";

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .unwrap()
}

fn copy_model(to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(MODEL).unwrap().flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A folder with packed questions, and room for trainings.
pub struct Work {
    dir: tempfile::TempDir,
}

impl Work {
    pub fn new(pack: &[&str]) -> Work {
        let work = Work { dir: tempfile::tempdir().unwrap() };
        let rows =
            (0..6).map(|i| format!("{{\"instruction\": \"What is house {i}?\", \"output\": \"Red.\"}}\n"));
        fs::write(work.at("e.jsonl"), rows.collect::<String>()).unwrap();
        let (examples, out) = (work.text("e.jsonl"), work.text("k"));
        ok(&[&["pack", "--model", MODEL, "--examples", &examples, "--out", &out], pack].concat());
        work
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.at(name).to_string_lossy().into_owned()
    }

    /// One step that changes nothing, so small is its rate.
    pub fn train(&self, model: &str, out: &str, more: &[&str], variables: &[(&str, &str)]) -> Output {
        let (shards, out) = (self.text("k"), self.text(out));
        let args = [
            "train",
            "--model",
            model,
            "--shards",
            &shards,
            "--out",
            &out,
            "--max-steps",
            "1",
            "--lr",
            "1e-20",
        ];
        program().args([&args, more].concat()).envs(variables.iter().copied()).output().unwrap()
    }
}

pub fn done(out: &Output) -> String {
    assert!(out.status.success(), "{}", text(&out.stderr));
    text(&out.stdout) + &text(&out.stderr)
}

/// An adapter of the quickstart's model with patterns, a regular expression for its targets, and values that are not zero.
fn patterned(to: &Path) -> Lora {
    let model = Transformer::load(Path::new(MODEL), DType::F32).unwrap();
    let config = LoraConfig {
        r: 3,
        target_modules: Modules::Matching(r"model\.layers\.(?!1\.).*(q|v|down)_proj".into()),
        exclude_modules: vec!["0.self_attn.v_proj".to_string()].into(),
        rank_pattern: vec![("q_proj".into(), 2), (".*".into(), 4)],
        alpha_pattern: vec![(r"layers\.0\..*".into(), 5.0), ("q_proj".into(), 7.5)],
        ..Default::default()
    };
    Lora::init(&model, config, 5).unwrap().save(to, "somewhere", None).unwrap();
    // B is zero in a new adapter.
    let path = to.join("adapter_model.safetensors");
    let file = Checkpoint::open_file(&path).unwrap();
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = (file.names().iter())
        .map(|name| {
            let shape = file.shape(name).unwrap().to_vec();
            let values = uniform(name, shape.iter().product());
            (name.to_string(), shape, values)
        })
        .collect();
    // A norm that was trained whole, and two rows of the embedding.
    let width = model.config.hidden_size;
    for (part, shape) in
        [("norm.weight", vec![width]), ("embed_tokens.token_adapter.trainable_tokens_delta", vec![2, width])]
    {
        let values = uniform(part, shape.iter().product());
        tensors.push((format!("base_model.model.model.{part}"), shape, values));
    }
    let views = tensors.iter().map(|(name, shape, values)| {
        let data = bytemuck::cast_slice(values);
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    });
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    let mut fields = json_of(&to.join("adapter_config.json"));
    fields["modules_to_save"] = json!(["norm"]);
    fields["trainable_token_indices"] = json!([5, 2]);
    fields["lora_dropout"] = json!(0.1);
    fields["eva_config"] = json!({"rho": 2.0});
    fs::write(to.join("adapter_config.json"), fields.to_string()).unwrap();
    Lora::load(to, &model).unwrap()
}

/// Everything of an adapter but its base's name: its configuration as text (the order of patterns counts), and its values.
fn of(dir: &Path) -> (String, Vec<(String, Vec<f32>)>) {
    let mut config = json_of(&dir.join("adapter_config.json"));
    for key in ["base_model_name_or_path", "revision", "inference_mode"] {
        config[key].take();
    }
    let file = Checkpoint::open_file(&dir.join("adapter_model.safetensors")).unwrap();
    let value = |name: &&str| {
        let t = file.tensor(name, file.shape(name).unwrap(), DType::F32).unwrap();
        (name.to_string(), t.to_f32_vec().unwrap())
    };
    (config.to_string(), file.names().iter().map(value).collect())
}

#[test]
fn training_from_an_adapter_keeps_its_patterns_and_says_what_it_does_not_use() {
    let work = Work::new(&[]);
    patterned(&work.at("a"));
    let said = done(&work.train(MODEL, "b", &["--adapter", &work.text("a")], &[]));
    assert!(said.contains("lora_dropout 0.1 of"), "{said}");
    assert!(said.contains("beside the low-rank updates"), "{said}");
    assert_eq!(of(&work.at("b")), of(&work.at("a")));
    // And from what was written.
    done(&work.train(MODEL, "c", &["--adapter", &work.text("b")], &[]));
    assert_eq!(of(&work.at("c")), of(&work.at("a")));
}

#[test]
fn an_adapters_folder_has_its_base_tokenizer_template_and_card() {
    let work = Work::new(&["--template", "alpaca"]);
    done(&work.train(MODEL, "a", &[], &[]));
    let base = std::path::absolute(MODEL).unwrap();
    let config = json_of(&work.at("a/adapter_config.json"));
    assert_eq!(config["base_model_name_or_path"], json!(base.to_string_lossy()));
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(fs::read(work.at("a").join(name)).unwrap(), fs::read(base.join(name)).unwrap(), "{name}");
    }
    let template = fs::read_to_string(work.at("a/chat_template.jinja")).unwrap();
    assert!(template.contains("### Instruction:"), "{template}");
    let card = fs::read_to_string(work.at("a/README.md")).unwrap();
    for part in [
        "library_name: peft",
        "license: unknown",
        "| train | 6 |",
        "1 step of",
        "not known",
        "quickstart/model",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    // A card that somebody wrote on is no other result, and is not written over; an untouched one is.
    fs::write(work.at("a/README.md"), format!("{card}\nNice.\n")).unwrap();
    let again = done(&work.train(MODEL, "a", &[], &[]));
    assert!(again.contains("unchanged, skipped"), "{again}");
    let said = done(&work.train(MODEL, "a", &["--seed", "3", "--restart"], &[]));
    assert!(said.contains("README.md") && said.contains("stays"), "{said}");
    assert!(fs::read_to_string(work.at("a/README.md")).unwrap().ends_with("Nice.\n"));
    fs::write(work.at("a/README.md"), card).unwrap();
    done(&work.train(MODEL, "a", &["--seed", "4", "--restart"], &[]));
    assert!(fs::read_to_string(work.at("a/README.md")).unwrap().contains("seed 4."));
}

/// Two snapshots, of which `main` is not the last by name; the other is broken, so that taking it is seen.
#[test]
fn a_name_is_the_snapshot_that_main_names_and_the_adapter_keeps_the_name() {
    let work = Work::new(&[]);
    let hub = work.at("cache/models--org--name");
    copy_model(&hub.join("snapshots/aaaaaaa1"));
    copy_model(&hub.join("snapshots/bbbbbbb2"));
    fs::write(hub.join("snapshots/bbbbbbb2/config.json"), "{}").unwrap();
    fs::create_dir(hub.join("refs")).unwrap();
    fs::write(hub.join("refs/main"), "aaaaaaa1").unwrap();
    fs::write(hub.join("refs/next"), "bbbbbbb2").unwrap();
    let cache = work.text("cache");
    let variables = [("HF_HUB_CACHE", cache.as_str()), ("HF_HOME", "/nowhere")];
    done(&work.train("org/name", "a", &[], &variables));
    let config = json_of(&work.at("a/adapter_config.json"));
    assert_eq!((&config["base_model_name_or_path"], &config["revision"]), (&json!("org/name"), &Value::Null));
    assert!(fs::read_to_string(work.at("a/README.md")).unwrap().contains("base_model: org/name\n"));
    assert!(!work.train("org/name@next", "b", &[], &variables).status.success());
    fs::write(hub.join("refs/next"), "aaaaaaa1").unwrap();
    done(&work.train("org/name@next", "b", &[], &variables));
    let config = json_of(&work.at("b/adapter_config.json"));
    assert_eq!(
        (&config["base_model_name_or_path"], &config["revision"]),
        (&json!("org/name"), &json!("next"))
    );
    // The same by an option; a path has no revisions.
    done(&work.train("org/name", "d", &["--revision", "next"], &variables));
    let config = json_of(&work.at("d/adapter_config.json"));
    assert_eq!(
        (&config["base_model_name_or_path"], &config["revision"]),
        (&json!("org/name"), &json!("next"))
    );
    for (model, said) in [("org/name@next", "says already"), (MODEL, "is a path")] {
        let refused = work.train(model, "e", &["--revision", "main"], &variables);
        assert!(text(&refused.stderr).contains(said), "{}", text(&refused.stderr));
    }
    let absent = work.train("org/other", "c", &[], &variables);
    assert!(text(&absent.stderr).contains("`hf download org/other`"), "{}", text(&absent.stderr));
}

fn merge(model: &Path, adapter: &Path, out: &Path, more: &[&str]) -> Output {
    let [model, adapter, out] = [model, adapter, out].map(|p| p.to_string_lossy().into_owned());
    let args = ["merge", "--model", &model, "--adapter", &adapter, "--out", &out];
    program().args([&args, more].concat()).output().unwrap()
}

/// The type of every tensor of a file, and config.json's keys of it.
pub fn types(dir: &Path) -> (Vec<safetensors::Dtype>, Value, Value) {
    let bytes = fs::read(dir.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut types: Vec<_> = file.tensors().iter().map(|(_, view)| view.dtype()).collect();
    types.dedup();
    let config = json_of(&dir.join("config.json"));
    (types, config["dtype"].clone(), config["torch_dtype"].clone())
}

#[test]
fn a_merged_model_has_its_bases_type_under_one_key() {
    use safetensors::Dtype;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    patterned(&at("a"));
    fs::write(at("a/chat_template.jinja"), "{{ 'of the adapter' }}").unwrap();
    let model = Transformer::load(Path::new(MODEL), DType::F32).unwrap();
    for (stored, dtype, name) in [
        (Stored::F32, Dtype::F32, "float32"),
        (Stored::Bf16, Dtype::BF16, "bfloat16"),
        (Stored::F16, Dtype::F16, "float16"),
    ] {
        let (base, out) = (at(&format!("{stored}")), at(&format!("{stored}-merged")));
        model.save_pretrained(&base, stored, Some(Path::new(MODEL))).unwrap();
        // The older name is read; one of the two is written.
        let mut config = json_of(&base.join("config.json"));
        config["torch_dtype"] = config["dtype"].take();
        config.as_object_mut().unwrap().remove("dtype");
        fs::write(base.join("config.json"), config.to_string()).unwrap();
        let said = done(&merge(&base, &at("a"), &out, &[]));
        assert!(said.contains(&format!(" as {stored};")), "{said}");
        assert_eq!(types(&out), (vec![dtype], json!(name), Value::Null));
        assert_eq!(fs::read_to_string(out.join("chat_template.jinja")).unwrap(), "{{ 'of the adapter' }}");
        assert!(out.join("tokenizer.json").exists());
        let card = fs::read_to_string(out.join("README.md")).unwrap();
        assert!(
            card.contains("library_name: transformers\n") && card.contains("with an adapter merged in"),
            "{card}"
        );
        assert!(card.contains(&format!("| weights | {stored}, merged in f32")), "{card}");
    }
    // What the adapter's own card tells stands below; a card that somebody wrote stays.
    fs::write(at("a/README.md"), "---\nlanguage:\n- es\n---\n# Of the adapter\n").unwrap();
    done(&merge(&at("bf16"), &at("a"), &at("with-card"), &[]));
    let card = fs::read_to_string(at("with-card/README.md")).unwrap();
    assert!(card.contains("language:\n- es\n") && card.contains("\n## Of the adapter\n"), "{card}");
    fs::write(at("with-card/README.md"), "mine").unwrap();
    let out = merge(&at("bf16"), &at("a"), &at("with-card"), &["--dtype", "f32"]);
    assert!(done(&out).contains(" as f32;") && text(&out.stderr).contains("it stays as it is"));
    assert_eq!(fs::read_to_string(at("with-card/README.md")).unwrap(), "mine");
    done(&merge(&at("bf16"), &at("a"), &at("asked"), &["--dtype", "f32"]));
    assert_eq!(types(&at("asked")).0, [Dtype::F32]);
    // Two names of one field that contradict each other.
    let mut config = json_of(&at("f16/config.json"));
    config["dtype"] = json!("bfloat16");
    fs::write(at("f16/config.json"), config.to_string()).unwrap();
    let refused = merge(&at("f16"), &at("a"), &at("x"), &[]);
    assert!(
        text(&refused.stderr).contains("dtype bfloat16 and torch_dtype float16"),
        "{}",
        text(&refused.stderr)
    );
    assert!(!at("x").exists());
}

/// A model's folder whose file has one other value.
pub fn with_value(to: &Path, tensor: &str, value: f32) {
    copy_model(to);
    let path = to.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let info = metadata.info(tensor).unwrap();
    let at = header + 8 + info.data_offsets.0;
    match info.dtype {
        safetensors::Dtype::F32 => bytes[at..at + 4].copy_from_slice(&value.to_le_bytes()),
        _ => bytes[at..at + 2].copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn broken_weights_are_never_merged_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    patterned(&at("a"));
    for (name, tensor, value) in [
        ("nan", "model.layers.0.self_attn.q_proj.weight", f32::NAN),
        ("far", "model.layers.1.mlp.up_proj.weight", f32::NAN),
        ("infinite", "model.norm.weight", f32::INFINITY),
    ] {
        with_value(&at(name), tensor, value);
        let out = merge(&at(name), &at("a"), &at("out"), &[]);
        let said = text(&out.stderr);
        assert!(!out.status.success() && said.contains(tensor), "{name}: {said}");
        assert!(!at("out/model.safetensors").exists(), "{name}");
    }
    // Too large for the type that is asked for.
    with_value(&at("large"), "model.layers.0.self_attn.q_proj.weight", 70000.0);
    let out = merge(&at("large"), &at("a"), &at("large-out"), &["--dtype", "f16"]);
    let said = text(&out.stderr);
    assert!(!out.status.success() && said.contains("q_proj") && said.contains("f16"), "{said}");
}

/// Under whatever name the base is given as the output, nothing of it is touched.
#[test]
fn a_base_is_never_written_over_whatever_it_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    patterned(&at("a"));
    copy_model(&at("base"));
    fs::create_dir(at("sub")).unwrap();
    symlink(at("base"), at("link")).unwrap();
    symlink(at("link"), at("link-to-link")).unwrap();
    fs::create_dir(at("hard")).unwrap();
    fs::hard_link(at("base/model.safetensors"), at("hard/model.safetensors")).unwrap();
    fs::create_dir(at("soft")).unwrap();
    symlink(at("base/config.json"), at("soft/notes")).unwrap();
    symlink(at("a"), at("adapter-link")).unwrap();
    let contents = |name: &str| {
        let mut files: Vec<_> = fs::read_dir(at(name)).unwrap().flatten().map(|e| e.path()).collect();
        files.sort();
        files.into_iter().map(|p| (p.clone(), fs::read(p).unwrap())).collect::<Vec<_>>()
    };
    let before = [contents("base"), contents("a"), contents("hard"), contents("soft")];
    for out in [
        "base",
        "base/",
        "./base",
        "sub/../base",
        "link",
        "link-to-link/.",
        "hard",
        "soft",
        "a",
        "adapter-link",
    ] {
        let refused = merge(&at("base"), &at("a"), &at(out), &[]);
        let said = text(&refused.stderr);
        assert!(!refused.status.success() && said.contains("choose another"), "{out}: {said}");
        assert!([contents("base"), contents("a"), contents("hard"), contents("soft")] == before, "{out}");
    }
    // A link under the name that is written to first leads nowhere.
    fs::create_dir(at("trap")).unwrap();
    fs::write(at("precious"), "mine").unwrap();
    for name in ["trap/model.safetensors", "trap/config.json"] {
        symlink(at("precious"), at(name)).unwrap();
    }
    let _ = merge(&at("base"), &at("a"), &at("trap"), &[]);
    assert_eq!(fs::read_to_string(at("precious")).unwrap(), "mine");
}
