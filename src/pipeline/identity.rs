//! What the bytes of a result depend on, by one rule for every stage: its settings but those that only decide how fast it goes, the type of the
//! weights and the kind of device where it computes, and the content of every file that it reads.
//!
//! Of a device the kind counts (`cpu`, `cuda`, `emulated`), not the ordinal; threads and batch sizes do not count. The exception is `train`, whose
//! `batch-tokens` decides how a step is cut into micro-batches, and so in which order gradients are added: there it is part of the identity.
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use super::{hash::content_files, placement::Placement};
use crate::data::gguf;
use crate::data::line_process::output_of;

/// Settings that decide how fast a result comes, not which.
const SPEED: [&str; 12] = [
    "batch-rows",
    "batch-tokens",
    "timeout",
    "checkpoint-every",
    "keep-checkpoints",
    "shard",
    // Of a remote engine: a server may move, and be asked at another pace.
    "endpoint",
    "api-key-env",
    "concurrency",
    "requests-per-minute",
    "retries",
    "request-timeout",
];

/// The resolved settings that decide a stage's bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity(pub(super) Value);

impl Identity {
    /// The settings, without those that only decide the speed.
    pub fn of(settings: &impl Serialize) -> Result<Identity> {
        let mut value = serde_json::to_value(settings).context("settings of a stage")?;
        without_speed(&mut value);
        without_place(&mut value);
        Ok(Identity(value))
    }

    /// With another setting.
    pub fn with(mut self, key: &str, value: impl Serialize) -> Result<Identity> {
        self.0[key] = serde_json::to_value(value).with_context(|| format!("setting {key}"))?;
        Ok(self)
    }

    /// With the version of another program: what `version_command` prints.
    pub fn version_of(self, version_command: Option<&str>, environment: &[String]) -> Result<Identity> {
        let Some(command) = version_command else { return Ok(self) };
        let patience = Duration::from_secs(60);
        let version = output_of(command, environment, patience).context("ask for the command's version")?;
        self.with("command-version", version)
    }

    /// With how a model's weights are held and the kind of device that computes.
    pub(super) fn placed(self, placement: Placement) -> Result<Identity> {
        self.with("placement", placement.to_string())
    }
}

fn without_speed(value: &mut Value) {
    if let Some(map) = value.as_object_mut() {
        map.retain(|key, _| !SPEED.contains(&key.as_str()));
    }
}

/// Takes out of settings, or a list of them, where a remote engine is and how fast it is asked.
pub fn without_place(settings: &mut Value) {
    match settings {
        Value::Array(all) => all.iter_mut().for_each(without_place),
        Value::Object(map) => map.get_mut("remote").into_iter().for_each(without_speed),
        _ => {}
    }
}

/// The files whose content decides a stage's bytes, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inputs(pub(super) Vec<(String, PathBuf)>, pub(super) Vec<PathBuf>);

impl Inputs {
    /// None yet.
    pub fn new() -> Inputs {
        Inputs::default()
    }

    /// A file, or a folder as a whole.
    pub fn file(mut self, name: &str, path: &Path) -> Inputs {
        self.0.push((name.to_string(), path.to_path_buf()));
        self
    }

    /// A file, or a folder of rows that are none of the stage's own: what became of them it says apart, and it makes sure itself that none is missing.
    pub fn beside(mut self, name: &str, path: &Path) -> Inputs {
        self.1.push(path.to_path_buf());
        self.file(name, path)
    }

    /// A file or a folder, where there is one.
    pub fn maybe(self, name: &str, path: Option<&Path>) -> Inputs {
        match path {
            Some(path) => self.file(name, path),
            None => self,
        }
    }

    /// Several at once.
    pub fn files(mut self, files: Vec<(String, PathBuf)>) -> Inputs {
        self.0.extend(files);
        self
    }

    /// A model: a `.gguf` file, or every file of a directory that may be read of it, one by one.
    pub fn model(self, name: &str, path: &Path) -> Result<Inputs> {
        self.of_model(name, path, &|_| true)
    }

    /// A model's tokenizer and chat template: everything of a directory but weights, or the `.gguf` file.
    pub fn tokenizer(self, name: &str, path: &Path) -> Result<Inputs> {
        self.of_model(name, path, &|file| !is_weights(file) && file != "generation_config.json")
    }

    /// The chat template of a setting such as `--template`, where that names a file.
    pub fn template(self, template: &str) -> Inputs {
        let template = template.strip_suffix("+bos").unwrap_or(template);
        if template.ends_with(".jinja") { self.file("chat template", Path::new(template)) } else { self }
    }

    /// A shell command line of another program: every file that it names, but those that it writes.
    pub fn command(mut self, name: &str, command: &str) -> Inputs {
        let mut written = false;
        let words = command.split(|c: char| c.is_whitespace() || "|;&()<'\"`=".contains(c));
        for word in words.filter(|w| !w.is_empty()) {
            let (into, target) = match word.split_once('>') {
                Some((_, target)) => (true, target.trim_start_matches('>')),
                None => (written, word),
            };
            written = (into && target.is_empty()) || (word == "tee");
            let path = Path::new(target);
            if !into && path.is_file() && !self.0.iter().any(|(_, known)| known == path) {
                self.0.push((format!("{name}: {target}"), path.to_path_buf()));
            }
        }
        self
    }

    fn of_model(mut self, name: &str, path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Inputs> {
        if !path.is_dir() {
            let Some(parts) = gguf::parts_by_name(path) else { return Ok(self.file(name, path)) };
            let named = |part: PathBuf| {
                let file = part.file_name().unwrap_or_default().to_string_lossy().into_owned();
                (format!("{name}/{file}"), part)
            };
            self.0.extend(parts.into_iter().filter(|part| part.exists()).map(named));
            return Ok(self);
        }
        let readable = |file: &str| {
            let dots = [".json", ".jinja", ".model", ".txt", ".tiktoken", ".yaml"];
            is_weights(file) || dots.iter().any(|dot| file.ends_with(dot))
        };
        let before = self.0.len();
        for (file, path) in content_files(path).with_context(|| format!("input `{name}`"))? {
            if readable(&file) && wanted(&file) {
                self.0.push((format!("{name}/{file}"), path));
            }
        }
        // A folder without any is an error of whoever reads it.
        Ok(if self.0.len() == before { self.file(name, path) } else { self })
    }
}

fn is_weights(file: &str) -> bool {
    [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf"].iter().any(|dot| file.ends_with(dot))
}

/// What a person calls the input `name`.
pub(super) fn readable(name: &str) -> String {
    let Some((owner, file)) = name.split_once('/').filter(|_| !name.starts_with("the ")) else {
        let plain = [
            "rows",
            "examples",
            "shards",
            "chat template",
            "parallel",
            "source",
            "target",
            "file",
            "reference",
        ];
        return match name {
            "shards" => "the token shards".into(),
            "parallel" => "the parallel sentences".into(),
            "file" => "the file of the task".into(),
            "few-shot-file" => "the file of solved questions".into(),
            name if plain.contains(&name) => format!("the {name}"),
            name => name.to_string(),
        };
    };
    match file {
        "chat_template.jinja" | "chat_template.json" => format!("the chat template of the {owner}"),
        "tokenizer_config.json" => {
            format!("tokenizer_config.json of the {owner} (special tokens, chat template)")
        }
        "tokenizer.json" | "tokenizer.model" => format!("the tokenizer of the {owner} ({file})"),
        "generation_config.json" => {
            format!("generation_config.json of the {owner} (how it answers by default)")
        }
        "config.json" => format!("the configuration of the {owner} (config.json)"),
        file if is_weights(file) => format!("the weights of the {owner} ({file})"),
        file => format!("{file} of the {owner}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{device::DeviceChoice, tensor::DType};

    #[test]
    fn the_kind_of_device_and_the_type_count_and_nothing_that_only_decides_speed() {
        let of = |dtype, device: &str, batch: usize| {
            let device: DeviceChoice = device.parse().unwrap();
            let remote = json!({"endpoint": batch, "retries": batch});
            let settings = json!({"batch-tokens": batch, "batch-rows": batch, "timeout": batch, "tau": 1, "remote": remote});
            Identity::of(&settings)
                .unwrap()
                .placed(Placement { dtype, device, ..Placement::default() })
                .unwrap()
        };
        let base = of(DType::F32, "cpu", 1);
        assert_eq!(base.0, json!({"tau": 1, "remote": {}, "placement": "f32"}));
        assert_eq!(base, of(DType::F32, "cpu", 2));
        let mut list = json!(["m", [{"limit": 1, "batch-rows": 2, "remote": {"endpoint": "x", "stop": []}}]]);
        without_place(&mut list);
        assert_eq!(list, json!(["m", [{"limit": 1, "batch-rows": 2, "remote": {"stop": []}}]]));
        let all = [base, of(DType::Bf16, "cpu", 1), of(DType::F32, "cuda", 1), of(DType::F32, "emulated", 1)];
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a != b), "{a:?}");
        }
        assert_eq!(of(DType::F32, "cuda:0", 1), of(DType::F32, "cuda:1", 9));
    }

    #[test]
    fn a_model_is_its_files_and_a_tokenizer_all_but_weights() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["config.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
        {
            std::fs::write(dir.path().join(name), "{}").unwrap();
        }
        for name in ["model.safetensors", "README.md", "metrics.jsonl", ".hidden.json"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let names = |inputs: Inputs| inputs.0.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(
            names(Inputs::new().model("model", dir.path()).unwrap()),
            [
                "model/chat_template.jinja",
                "model/config.json",
                "model/generation_config.json",
                "model/model.safetensors",
                "model/tokenizer_config.json"
            ]
        );
        assert_eq!(
            names(Inputs::new().tokenizer("model", dir.path()).unwrap()),
            ["model/chat_template.jinja", "model/config.json", "model/tokenizer_config.json"]
        );
        assert_eq!(names(Inputs::new().template("auto").template("a/b.jinja")), ["chat template"]);
        assert_eq!(readable("model/chat_template.jinja"), "the chat template of the model");
    }
}
